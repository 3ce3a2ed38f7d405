"""Where parameters enter a forward pass, read from its autograd graph.

A hooked module shows a use of a parameter rightly only if all of the parameter's ways to the
outputs lead through that module's own output. The graph tells for every edge into a parameter
inside which calls it lies, whatever the Python code did: another function of the same weight, a
flag, a hook, a module that was replaced.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fedcurv.per_sample.added import Node, Operand, meetings_of
from fedcurv.per_sample.recent import remember

# a node and which of its outputs
Edge = tuple[Node, int]

# nodes that pass values on as they are
_PASSING = frozenset(
    (
        *("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "AliasBackward0"),
        *("SqueezeBackward0", "SqueezeBackward1", "UnsqueezeBackward0", "SelectBackward0"),
        *("SliceBackward0", "CloneBackward0", "ToCopyBackward0"),
    )
)

# reentrant checkpoints: they run modules without gradients at first
_HIDING = ("CheckpointFunctionBackward",)

_UNKNOWN = object()


class Span(NamedTuple):
    """What one call of a module computed.

    Attributes:
        layer: the module's place among the hooked ones.
        tops: the edges at which its outputs leave it.
        bottoms: the nodes at which its inputs come in.
    """

    layer: int
    tops: Sequence[Edge]
    bottoms: Sequence[Node]


def edges_of(tensors: Sequence[Tensor]) -> list[Edge]:
    """Return the edges of those tensors that a graph leads to."""
    return [(t.grad_fn, t.output_nr) for t in tensors if t.grad_fn is not None]


def nodes_of(tensors: Sequence[Tensor]) -> list[Node]:
    """Return the nodes of those tensors that a graph leads to."""
    return [t.grad_fn for t in tensors if t.grad_fn is not None]


def leaves_of(parameters: Mapping[str, Tensor]) -> dict[Node, str]:
    """Return each parameter's own node and its name."""
    return {get_gradient_edge(p).node: name for name, p in parameters.items()}


class Graph:
    """The graph of a forward pass.

    Args:
        outputs: that it computed.
        leaves: by node, the names of the parameters.
        spans: of the calls of hooked modules, in the order in which they ended.

    Attributes:
        signature: equal for two passes only if nodes of the same kinds are joined in the same way,
            to the same parameters and calls.
    """

    def __init__(self, outputs: Tensor, leaves: Mapping[Node, str], spans: Sequence[Span]) -> None:
        self._root = get_gradient_edge(outputs) if outputs.requires_grad else None
        self._leaves = leaves
        self._spans = spans
        nodes = [] if self._root is None else [self._root.node]
        # what every node is known by: a parameter by its name, others in the order of the walk
        known: dict[Node, object] = {None: None, **leaves}
        for node in nodes:
            known[node] = 0
        found: list[object] = []
        for node in nodes:  # grows meanwhile
            found.append(type(node))
            for child, number in node.next_functions:
                place = known.get(child, _UNKNOWN)
                if place is _UNKNOWN:
                    place = known[child] = len(nodes)
                    nodes.append(child)  # type: ignore[arg-type]
                found.append(place)
                if number:
                    found.append((number,))
        self._nodes = nodes
        for layer, tops, bottoms in spans:
            found.append((layer, len(tops)))
            for node, number in tops:
                found += known.get(node), number
            found += [known.get(node) for node in bottoms]
        self.signature = tuple(found)

    def node(self, place: int) -> Node:
        """Return a node by its place in the walk."""
        return self._nodes[place]

    def shapes(self, places: Iterable[int]) -> dict[int, tuple[int, ...]]:
        """Return the shapes of what these nodes computed, where torch tells them."""
        data = {place: getattr(self._nodes[place], "_input_metadata", ()) for place in places}
        return {place: tuple(one[0].shape) for place, one in data.items() if one}

    def tops(self, ends: Sequence[tuple[int, int]]) -> list[Edge]:
        """Return the edges at which these (call, output) leave their calls."""
        return [self._spans[call].tops[place] for call, place in ends]

    def last_operation(self) -> str:
        """Return the name of the node that computed the outputs' values; "" if there is none."""
        node = None if self._root is None else self._root.node
        while node is not None and type(node).__name__ in _PASSING:
            node = node.next_functions[0][0]
        return "" if node is None else type(node).__name__

    def hides(self) -> bool:
        """Return whether a checkpoint leaves a part of the computation to the backward pass."""
        return any(type(node).__name__ in _HIDING for node in self._nodes)

    def uses(self) -> "Uses":
        """Return which uses of parameters lie in which calls, as the signature tells."""
        if (uses := _remembered.get(self.signature)) is None:
            uses = remember(_remembered, self.signature, self._uses(), _REMEMBERED)
        return uses

    def _uses(self) -> "Uses":
        tops: dict[tuple[Node, int], list[int]] = {}
        for index, span in enumerate(self._spans):
            for edge in span.tops:
                tops.setdefault(edge, []).append(index)
        contexts = self._contexts(tops)
        inside: Counter[tuple[int, str]] = Counter()
        apart: set[str] = set()
        edges: Counter[str] = Counter()
        for node in self._nodes:
            for child, _ in node.next_functions:
                if (name := self._leaves.get(child)) is None:
                    continue
                edges[name] += 1
                around = contexts[node]
                if len(around) != 1:
                    apart.add(name)
                    continue
                (calls,) = around
                if not calls:
                    apart.add(name)
                for call in calls:
                    inside[call, name] += 1
        reached = {c for (node, _), calls in tops.items() if node in contexts for c in calls}
        return Uses(
            dict(edges),
            frozenset(apart),
            dict(inside),
            frozenset(reached),
            self._ends(),
            meetings_of(self._nodes, self._leaves),
        )

    def _contexts(
        self, tops: Mapping[tuple[Node, int], Sequence[int]]
    ) -> dict[Node, set[tuple[int, ...]]]:
        """Return for every node the calls around it, once for each way in which it is reached."""
        bottoms = [set(span.bottoms) for span in self._spans]

        def entered(node: Node, number: int, calls: tuple[int, ...]) -> tuple[int, ...]:
            while calls and node in bottoms[calls[-1]]:
                calls = calls[:-1]
            # of nested calls with one output the inner one ended first
            new = reversed(tops.get((node, number), ()))
            return calls + tuple(call for call in new if node not in bottoms[call])

        contexts: dict[Node, set[tuple[int, ...]]] = {}
        if self._root is None:
            return contexts
        waiting = [(self._root.node, entered(self._root.node, self._root.output_nr, ()))]
        while waiting:
            node, calls = waiting.pop()
            known = contexts.setdefault(node, set())
            if calls in known:
                continue
            known.add(calls)
            waiting += [
                (child, entered(child, number, calls))
                for child, number in node.next_functions
                if child is not None and child not in self._leaves
            ]
        return contexts

    def _ends(self) -> tuple[tuple[int, int], ...]:
        """Return (call, output) of the outputs of calls below which lies no other call's."""
        hooked = {node for span in self._spans for node, _ in span.tops}
        above: dict[Node, bool] = {}
        waiting = [] if self._root is None else [(self._root.node, False)]
        while waiting:
            node, children_known = waiting.pop()
            if children_known:
                above[node] = any(
                    child in hooked or above.get(child, False) for child, _ in node.next_functions
                )
            elif node not in above:
                above[node] = False
                waiting.append((node, True))
                waiting += [
                    (child, False)
                    for child, _ in node.next_functions
                    if child is not None and child not in self._leaves
                ]
        return tuple(
            (index, place)
            for index, span in enumerate(self._spans)
            for place, (node, _) in enumerate(span.tops)
            if above.get(node) is False
        )


@dataclass(frozen=True)
class Uses:
    """How parameters enter a pass.

    Attributes:
        edges: by name of the parameters that the outputs depend on, the number of uses.
        apart: those with a use that does not lie inside calls alone.
        inside: by call and name, the number of uses.
        reached: the calls that the outputs depend on.
        ends: (call, output) below which no other call lies: where a backward pass may end.
        added: where those parameters meet the samples that enter nothing else; see ``added``.
    """

    edges: Mapping[str, int]
    apart: frozenset[str]
    inside: Mapping[tuple[int, str], int]
    reached: frozenset[int]
    ends: tuple[tuple[int, int], ...]
    added: Mapping[str, tuple[Operand, ...]]

    @property
    def places(self) -> set[int]:
        """The places of the nodes in ``added``."""
        return {place for operands in self.added.values() for place, _ in operands}

    @property
    def names(self) -> Set[str]:
        """The parameters that the outputs depend on."""
        return self.edges.keys()


_REMEMBERED = 256

_remembered: dict[Hashable, Uses] = {}


def backward(
    outputs: Tensor, v: Tensor, ends: Sequence[Edge], *, retain_graph: bool
) -> Sequence[Tensor | None]:
    """Go backward as far as to these edges, and return their gradients, not parameters'."""
    device = outputs.device.type
    v = v.to(outputs.dtype)
    with (
        torch.autocast(device, enabled=False)
        if torch.is_autocast_enabled(device)
        else nullcontext()
    ):
        edges = [GradientEdge(*end) for end in ends]
        return torch.autograd.grad(outputs, edges, v, retain_graph=retain_graph, allow_unused=True)
