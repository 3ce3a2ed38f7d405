"""How the squares of a pass are taken: which calls show which parameters, and where samples lie."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fedcurv.per_sample.added import Addition
from fedcurv.per_sample.graph import Graph, Uses
from fedcurv.per_sample.layers import ClosedFormLayer, Layer
from fedcurv.per_sample.rounding import close
from fedcurv.per_sample.samples import Samples
from fedcurv.per_sample.watched import Watched


@dataclass
class Look:
    """What one sample showed.

    Attributes:
        key: equal for two computations only if they join the same modules in the same way.
        one: the sample.
        outputs: of it.
        calls: of hooked modules.
        uses: of parameters.
        sums: the shapes of the sums outside of calls that parameters are in, by place.
    """

    key: Hashable
    one: Samples
    outputs: Tensor
    calls: list[Watched]
    uses: Uses
    sums: Mapping[int, Sequence[int]]

    def is_of(self, inputs: Samples) -> bool:
        """Return whether it is the look at the second of these samples."""
        pairs = zip(self.one.tensors, inputs.tensors, strict=True)
        return all(torch.equal(one, several[1:2]) for one, several in pairs)


@dataclass
class Layout:
    """How the squares of passes of one signature and number of samples are taken.

    Attributes:
        axes: by call, where the samples lie.
        names: by call, the module's own names of the parameters that it is to show.
        whole: parameters that only the whole model shows.
        waits: layers whose squares cannot be taken before all their gradients are known.
        ends: see ``Uses``.
        ambiguous: whether the axes are to be looked for again at the next pass.
        added: by name, the sums that show a parameter.
    """

    axes: list[Any]
    names: list[frozenset[str]]
    whole: frozenset[str]
    waits: set[Layer]
    ends: Sequence[tuple[int, int]]
    ambiguous: bool
    added: Mapping[str, Sequence[Addition]] = field(default_factory=dict)


def layout_of(
    calls: Sequence[Watched],
    axes: Sequence[Any],
    uses: Uses,
    slow: Set[str],
    samples: int,
    added: Mapping[str, Sequence[Addition]],
) -> Layout:
    """Return how to take the squares of passes like this one.

    Args:
        calls: of the pass.
        axes: by call, where the samples lie; None where that is unknown.
        uses: of parameters in it.
        slow: parameters for which calls are not to be trusted.
        samples: how many there are.
        added: places that may show a parameter which no closed form does, by name.
    """
    whole = _not_in_layers(calls, axes, uses, slow)
    by_rule = {
        name
        for call in calls
        if isinstance(call.layer, ClosedFormLayer)
        for name, _ in call.layer.sources.values()
    }
    added = {n: a for n, a in added.items() if n not in slow and (n in whole or n not in by_rule)}
    whole |= added.keys()
    names = [
        frozenset(
            local
            for local, (name, _) in call.layer.sources.items()
            if name in uses.names and name not in whole
        )
        if index in uses.reached
        else frozenset()
        for index, call in enumerate(calls)
    ]
    several = Counter(
        (name, rows.start)
        for call, locals_ in zip(calls, names, strict=True)
        for local, (name, rows) in call.layer.sources.items()
        if local in locals_
    )
    waits = {
        call.layer
        for call, locals_ in zip(calls, names, strict=True)
        for local, (name, rows) in call.layer.sources.items()
        if local in locals_ and several[name, rows.start] > 1
    }
    ambiguous = samples > 1 and any(
        call.layer.any_axis and call.sizes[0][:-1].count(samples) > 1 for call in calls
    )
    whole -= added.keys()
    return Layout(list(axes), names, whole, waits, uses.ends, ambiguous, added)


def _not_in_layers(
    calls: Sequence[Watched], axes: Sequence[Any], uses: Uses, slow: Set[str]
) -> frozenset[str]:
    """Return the parameters with a use that no call shows rightly."""
    whole = set(uses.apart) | (slow & uses.names)
    covered: Counter[str] = Counter()
    number = Counter(call.layer for index, call in enumerate(calls) if index in uses.reached)
    owners: dict[str, set[Layer]] = defaultdict(set)
    for layer in number:
        for name, _ in layer.sources.values():
            owners[name].add(layer)
    for index, call in enumerate(calls):
        if index not in uses.reached:
            continue
        by_rule = isinstance(call.layer, ClosedFormLayer)
        for name, _ in call.layer.sources.values():
            here = uses.inside.get((index, name), 0)
            covered[name] += here
            alone = by_rule or (number[call.layer] == 1 and len(owners[name]) == 1)
            if axes[index] is None or not alone or (by_rule and here != 1):
                whole.add(name)
    whole |= {name for name in uses.names if covered[name] != uses.edges[name]}
    return frozenset(whole & uses.names)


def agree(outputs: Tensor, calls: Sequence[Watched], uses: Uses, look: Look) -> bool:
    """Return whether a sample of a batch went the way that it goes alone."""
    if [call.layer for call in calls] != [call.layer for call in look.calls]:
        return False
    if uses.inside != look.uses.inside or uses.apart != look.uses.apart:
        return False
    return close(look.outputs, outputs.detach()[1:2])


def key_of(model: nn.Module, calls: Sequence[Watched], graph: Graph) -> Hashable:
    """Return what a computation on one sample has in common only with its like."""
    modules = tuple(
        (type(call.layer.module), call.layer.module.extra_repr(), call.key()) for call in calls
    )
    return type(model), graph.signature, modules
