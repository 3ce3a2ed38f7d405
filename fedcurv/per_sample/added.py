"""Parameters that enter as something that all samples share: added, multiplied, or repeated.

Class tokens, positions and scales are such, and tables of positions, whose rows are picked by the
same numbers for all samples. What is shared may be a function of the parameter alone: a part of it,
or its exponential. What belongs to a sample of the gradient where it meets the samples is that
sample's gradient of what is shared, summed over where it was repeated within the sample; from there
autograd leads each sample's to the parameter.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fedcurv.parameters import accumulation_dtype, fresh_gradients
from fedcurv.per_sample.watched import WHOLE, differing_axis

# a node of the autograd graph; torch gives its classes no common public name
Node = Any

# a node of the graph, by its place in the walk, and which of its operands
Operand = tuple[int, int]

# nodes where what all share meets the samples: what the gradient is times for an operand is known
_MEETING = frozenset(
    ("ExpandBackward0", "RepeatBackward0", "AddBackward0", "SubBackward0", "MulBackward0")
)

# nodes that compute of one tensor, and of nothing else but numbers that are no samples'
_OF_ONE = frozenset(
    (
        *("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "AliasBackward0"),
        *("SqueezeBackward0", "SqueezeBackward1", "SqueezeBackward2", "UnsqueezeBackward0"),
        *("SelectBackward0", "SliceBackward0", "SplitBackward0", "UnbindBackward0"),
        *("TransposeBackward0", "PermuteBackward0", "TBackward0", "CloneBackward0"),
        *("ToCopyBackward0", "NegBackward0", "ExpBackward0", "SoftplusBackward0"),
        *("SigmoidBackward0", "TanhBackward0", "ReluBackward0", "PowBackward0"),
        *("SoftmaxBackward0", "EmbeddingBackward0"),
    )
)

# gradients of single samples that are led to a parameter take at most this many numbers at once
_NUMBERS_AT_ONCE = 2**21


def meetings_of(
    nodes: Sequence[Node], leaves: Mapping[Node, str]
) -> dict[str, tuple[Operand, ...]]:
    """Return where parameters meet samples, for those all of whose ways lead to such places.

    Args:
        nodes: of the graph, in the order of the walk.
        leaves: by node, the names of the parameters.
    """
    found: dict[str, list[Operand]] = defaultdict(list)
    otherwise: set[str] = set()
    names = dict(_computed_of_one(nodes, leaves))
    known = {**leaves, **names}
    for place, node in enumerate(nodes):
        for operand, (child, _) in enumerate(node.next_functions):
            if (name := known.get(child)) is None:
                continue
            if type(node).__name__ in _MEETING:
                found[name].append((place, operand))
            elif node not in names:
                otherwise.add(name)
    return {name: tuple(places) for name, places in found.items() if name not in otherwise}


def _computed_of_one(
    nodes: Sequence[Node], leaves: Mapping[Node, str]
) -> Iterator[tuple[Node, str]]:
    """Yield nodes that compute something of one parameter alone, and its name."""
    for node in nodes:
        below = node
        while type(below).__name__ in _OF_ONE and len(below.next_functions) == 1:
            below = below.next_functions[0][0]
            if below in leaves:
                yield node, leaves[below]
                break


class Addition(NamedTuple):
    """One place where a parameter meets the samples.

    Attributes:
        place: of the node in the walk.
        operand: which one comes from the parameter.
        axis: of the samples in what the node computed, or ``WHOLE``.
    """

    place: int
    operand: int
    axis: int


def additions_of(
    uses: Mapping[str, Sequence[Operand]],
    shapes: Mapping[int, Sequence[int]],
    alone: Mapping[int, Sequence[int]] | None,
    own: Callable[[str, Operand], Sequence[int]],
    samples: int,
) -> dict[str, list[Addition]]:
    """Return the places of those parameters in all of whose places the samples are found.

    Args:
        uses: by name, the operands that come from a parameter.
        shapes: of what was computed, by place.
        alone: likewise, for one sample; None if there was no look at one, so that nothing tells
            where several samples are.
        own: gives the shape of an operand, as it is before it is repeated.
        samples: how many there are.
    """
    found: dict[str, list[Addition]] = {}
    for name, operands in uses.items():
        additions = []
        for place, operand in operands:
            axis = _axis(
                shapes.get(place),
                None if alone is None else alone.get(place, ()),
                own(name, (place, operand)),
                samples,
            )
            if axis is not None:
                additions.append(Addition(place, operand, axis))
        if len(additions) == len(operands):
            found[name] = additions
    return found


def _axis(
    shape: Sequence[int] | None, alone: Sequence[int] | None, own: Sequence[int], samples: int
) -> int | None:
    """Return along which axis the samples are, if the parameter is repeated along it."""
    if shape is None:
        return None
    if samples == 1:
        return WHOLE
    axis = None if alone is None else differing_axis(samples, shape, alone)
    if axis is None or _aligned(own, len(shape))[axis] != 1:
        return None
    return axis


def _aligned(shape: Sequence[int], axes: int) -> list[int]:
    return [1] * (axes - len(shape)) + list(shape)


class Sum(NamedTuple):
    """A place in a pass that shows a parameter.

    Attributes:
        name: of the parameter.
        addition: which use of it.
        node: of the graph.
        times: what the operand is multiplied by in it.
        own: the operand's shape.
        source: the edge that computed it; None if it is the parameter itself.
    """

    name: str
    addition: Addition
    node: Node
    times: float | Tensor
    own: Sequence[int]
    source: GradientEdge | None


def sums_of(
    added: Mapping[str, Sequence[Addition]],
    node_at: Callable[[int], Node],
    parameters: Mapping[str, Tensor],
) -> list[Sum]:
    """Return the places in a pass, given its nodes by place."""
    found = []
    for name, additions in added.items():
        for addition in additions:
            node = node_at(addition.place)
            own = shape_of_operand(node, addition.operand, parameters[name])
            source = _source(node, addition.operand)
            found.append(Sum(name, addition, node, _factor(node, addition.operand), own, source))
    return found


def shape_of_operand(node: Node, operand: int, parameter: Tensor) -> Sequence[int]:
    """Return the shape of one operand of a node, which comes from this parameter."""
    source = _source(node, operand)
    if source is None:
        return parameter.shape
    return tuple(source.node._input_metadata[source.output_nr].shape)


def _source(node: Node, operand: int) -> GradientEdge | None:
    child, number = node.next_functions[operand]
    return GradientEdge(child, number) if child.next_functions else None


def _factor(node: Node, operand: int) -> float | Tensor:
    kind = type(node).__name__
    if kind == "MulBackward0":
        other: Tensor = node._saved_self if operand else node._saved_other
        return other.detach()
    if operand == 0:
        return 1.0
    alpha = float(node._saved_alpha)
    return -alpha if kind == "SubBackward0" else alpha


@torch.no_grad()
def add_sums(
    totals: Mapping[str, Tensor],
    sums: Sequence[Sum],
    gradients: Sequence[Tensor | None],
    parameters: Mapping[str, nn.Parameter],
) -> None:
    """Add the squares of the parameters' gradients.

    Args:
        totals: where to add, by name.
        sums: all places of each parameter.
        gradients: theirs come first, in their order; None for one that does not count.
        parameters: by name.
    """
    if not sums:
        return
    by_name: dict[str, list[tuple[Sum, Tensor]]] = defaultdict(list)
    for one, gradient in zip(sums, gradients, strict=False):
        if gradient is not None:
            by_name[one.name].append((one, _of_samples(gradient, one)))
    for name, places in by_name.items():
        total, samples = totals[name], len(places[0][1])
        led = any(one.source is not None for one, _ in places)
        size = max(1, _NUMBERS_AT_ONCE // total.numel()) if led else samples
        for begin in range(0, samples, size):
            parts = [
                _at_parameter(one, g[begin : begin + size], parameters[name]) for one, g in places
            ]
            total.add_(sum(parts[1:], parts[0]).square().sum(0))


def _of_samples(gradient: Tensor, one: Sum) -> Tensor:
    """Return each sample's gradient of the operand, shape (N, *own)."""
    own, axis = tuple(one.own), one.addition.axis
    gradient = gradient.to(accumulation_dtype(gradient))
    if isinstance(one.times, Tensor):
        gradient = gradient * one.times
    within = _aligned(own, gradient.ndim)
    if axis == WHOLE:
        gradient = gradient.unsqueeze(0)
    else:
        gradient = gradient.movedim(axis, 0)
        del within[axis]
    repeated = [d for d, size in enumerate(within, 1) if size == 1 and gradient.shape[d] > 1]
    if repeated:
        gradient = gradient.sum(repeated, keepdim=True)
    for d, size in enumerate(within, 1):
        if gradient.shape[d] != size:  # in tiles
            gradient = torch.unflatten(gradient, d, (-1, size)).sum(d)
    gradient = gradient.reshape(len(gradient), *own)
    return gradient if isinstance(one.times, Tensor) else one.times * gradient


def _at_parameter(one: Sum, gradients: Tensor, parameter: nn.Parameter) -> Tensor:
    """Return each sample's gradient of the parameter, given those of the operand."""
    if one.source is None:
        return gradients
    with fresh_gradients([parameter]):
        leaf = get_gradient_edge(parameter)
        (led,) = torch.autograd.grad(
            one.source,
            leaf,
            gradients.to(parameter.dtype),
            retain_graph=True,
            is_grads_batched=True,
        )
    return led.to(accumulation_dtype(led))
