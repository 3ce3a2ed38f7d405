"""Parameters of the model itself that are added to what is by sample, or repeated for each sample.

Class tokens and positions are such. What belongs to a sample of the gradient of the sum is the
sample's gradient of the parameter, summed over where it was repeated within the sample.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedcurv.parameters import accumulation_dtype
from fedcurv.per_sample.watched import WHOLE, differing_axis

# a node of the graph, by its place in the walk, and which of its operands
Operand = tuple[int, int]

# nodes whose gradient is, but for a factor, that of each operand for every sample
ADDING = ("ExpandBackward0", "AddBackward0", "SubBackward0")


class Addition(NamedTuple):
    """One use of a parameter in a sum.

    Attributes:
        place: of the sum's node in the walk.
        operand: which the parameter is.
        axis: of the samples in the sum, or ``WHOLE``.
    """

    place: int
    operand: int
    axis: int


def additions_of(
    uses: Mapping[str, Sequence[Operand]],
    shapes: Mapping[int, Sequence[int]],
    alone: Mapping[int, Sequence[int]] | None,
    parameters: Mapping[str, Tensor],
    samples: int,
) -> dict[str, list[Addition]]:
    """Return the additions of those parameters in all of whose sums the samples are found.

    Args:
        uses: by name, the operands that a parameter is.
        shapes: of the sums, by place.
        alone: likewise, for one sample; None if there was no look at one, so that nothing tells
            where several samples are.
        parameters: by name.
        samples: how many there are.
    """
    found: dict[str, list[Addition]] = {}
    for name, operands in uses.items():
        additions = []
        for place, operand in operands:
            axis = _axis(
                shapes.get(place),
                None if alone is None else alone.get(place, ()),
                parameters[name].shape,
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
    """A sum in a pass that shows a parameter.

    Attributes:
        name: of the parameter.
        addition: which use of it.
        node: of the graph.
        times: what the parameter is multiplied by in it.
    """

    name: str
    addition: Addition
    node: Any
    times: float


def sums_of(added: Mapping[str, Sequence[Addition]], node_at: Callable[[int], Any]) -> list[Sum]:
    """Return the sums of a pass, given its nodes by place."""
    return [
        Sum(name, addition, node := node_at(addition.place), _factor(node, addition.operand))
        for name, additions in added.items()
        for addition in additions
    ]


def _factor(node: Any, operand: int) -> float:
    if operand == 0:
        return 1.0
    alpha = float(node._saved_alpha)
    return -alpha if type(node).__name__ == "SubBackward0" else alpha


@torch.no_grad()
def add_sums(
    totals: Mapping[str, Tensor], sums: Sequence[Sum], gradients: Sequence[Tensor | None]
) -> None:
    """Add the squares of the parameters' gradients.

    Args:
        totals: where to add, by name.
        sums: all that a parameter is in.
        gradients: theirs come first, in their order; None for one that does not count.
    """
    if not sums:
        return
    by_sample: dict[str, Tensor] = {}
    for one, gradient in zip(sums, gradients, strict=False):
        if gradient is not None:
            total = totals[one.name]
            here = one.times * _of_samples(gradient, one.addition.axis, total.shape)
            so_far = by_sample.get(one.name)
            by_sample[one.name] = here if so_far is None else so_far + here
    for name, gradients_of_samples in by_sample.items():
        totals[name].add_(gradients_of_samples.square().sum(0))


def _of_samples(gradient: Tensor, axis: int, own: Sequence[int]) -> Tensor:
    """Return each sample's gradient of the parameter, shape (N, *own)."""
    own = tuple(own)
    within = _aligned(own, gradient.ndim)
    if axis == WHOLE:
        gradient = gradient.unsqueeze(0)
    else:
        gradient = gradient.movedim(axis, 0)
        del within[axis]
    gradient = gradient.to(accumulation_dtype(gradient))
    repeated = [d for d, size in enumerate(within, 1) if size == 1 and gradient.shape[d] > 1]
    if repeated:
        gradient = gradient.sum(repeated)
    return gradient.reshape(len(gradient), *own)
