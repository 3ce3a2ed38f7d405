"""Hooked modules: what each pass over a batch shows of them, and what they add to the squares."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedcurv.global_state import random_states, same_states
from fedcurv.parameters import accumulation_dtype, plain
from fedcurv.per_sample.graph import Span, edges_of, nodes_of
from fedcurv.per_sample.nests import mapped, tensors_of
from fedcurv.per_sample.projections import Source, StandIn
from fedcurv.per_sample.replay import Call, Replay
from fedcurv.per_sample.rules.registry import LayerRule, rule_for
from fedcurv.per_sample.samples import FAILURES
from fedcurv.per_sample.watched import WHOLE, Watched

logger = logging.getLogger(__name__)


class Phase(Enum):
    """What is under way; hooks have something to do in a forward pass alone."""

    NOTHING = 0
    FORWARD = 1


@dataclass
class Pass:
    """The pass over a batch that is under way.

    Attributes:
        phase: of it.
        calls: of hooked modules so far.
        spans: of each call. Apart from it: hooks hold calls, and nodes of the graph hold hooks, so
            that a call with nodes would be a circle, which no reference count frees.
        cotangents: how many backward passes there are, known in them.
        last: whether no further backward pass follows.
        waits: layers whose squares cannot be taken before all their gradients are known.
    """

    phase: Phase = Phase.NOTHING
    calls: list[Watched] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    cotangents: int = 0
    last: bool = False
    waits: set[Layer] = field(default_factory=set)


class Layer:
    """A module with parameters of its own.

    Args:
        name: of the module in the model.
        module: to be hooked.
        sources: by its parameters' own names, their names in the model and which rows of them.

    Attributes:
        totals: by own name, where to add squares.
        index: its place among the hooked ones.
        any_axis: whether samples may lie along any axis of its input.
    """

    any_axis = True

    def __init__(self, name: str, module: nn.Module, sources: Mapping[str, Source]) -> None:
        self.name = name
        self.module = module
        self.sources = sources
        self.index = 0
        self.totals: dict[str, Tensor] = {}

    def hook(self, under_way: Pass) -> RemovableHandle:
        """Watch the module's calls, before hooks of the user's change what it returns."""
        return self.module.register_forward_hook(
            partial(self._on_call, under_way), with_kwargs=True, prepend=True
        )

    def _on_call(
        self, under_way: Pass, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
    ) -> None:
        if under_way.phase is not Phase.FORWARD or not torch.is_grad_enabled():
            return
        if (watched := self._watch(under_way, args, kwargs, output)) is not None:
            call, span = watched
            under_way.calls.append(call)
            under_way.spans.append(span)

    def _watch(
        self, under_way: Pass, args: Any, kwargs: dict[str, Any], output: Any
    ) -> tuple[Watched, Span] | None:
        """Ask for the gradient of the output; None: the call cannot be shown."""
        raise NotImplementedError


class ClosedFormLayer(Layer):
    """A module with a closed form.

    Attributes:
        waiting: (own names, x, g) of calls, if the pass says that they wait for one another.
        summed: (names, x, Σ_v of the rule's ``summand``) over the backward passes so far.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        sources: Mapping[str, Source],
        rule: LayerRule,
    ) -> None:
        self.rule, self.any_axis = rule, rule.any_axis
        self.waiting: list[tuple[frozenset[str], Tensor, Tensor]] = []
        self.summed: tuple[frozenset[str], Tensor, Tensor] | None = None
        super().__init__(name, module, sources)

    def reset(self) -> None:
        """Forget the last pass."""
        self.waiting.clear()
        self.summed = None

    def totals_of(self, names: frozenset[str]) -> dict[str, Tensor]:
        """Return the totals of these."""
        return {local: total for local, total in self.totals.items() if local in names}

    def _watch(
        self, under_way: Pass, args: Any, kwargs: dict[str, Any], output: Any
    ) -> tuple[Watched, Span] | None:
        x = args[0] if args else kwargs.get("input")
        if (
            not isinstance(x, Tensor)
            or not isinstance(output, Tensor)
            or not output.requires_grad
            or output.is_leaf
        ):
            return None
        span = Span(self.index, ((output.grad_fn, output.output_nr),), nodes_of([x]))
        call = Watched(self, (x,), {}, [output.shape], by_rule=True)
        on_gradient = partial(self._on_gradient, under_way, call, x._version)
        output.register_hook(on_gradient)  # type: ignore[no-untyped-call]  # torch's own
        return call, span

    def _on_gradient(self, under_way: Pass, call: Watched, version: int, g: Tensor) -> None:
        if not call.names:
            return
        (x,), axis = call.args, call.axes
        if under_way.last:  # what is done with goes back to the allocator before the next layer
            call.args = ()
        if x._version != version and not call.names <= self.rule.without_input:
            raise RuntimeError(
                f"the input of {self.name or type(self.module).__name__} was changed in place "
                "after the layer had used it; use the operation that returns a new tensor"
            )
        x, g = plain(x), plain(g)
        if axis == WHOLE:
            x, g = x.unsqueeze(0), g.unsqueeze(0)
        elif axis:
            x, g = x.transpose(0, axis), g.transpose(0, axis)
        dtype = accumulation_dtype(g)
        if x.dtype != dtype and x.is_floating_point():
            x = x.to(dtype)
        if g.dtype != dtype:
            g = g.to(dtype)
        if self in under_way.waits:
            self.waiting.append((call.names, x, g))
        elif under_way.cotangents > 1 and (summand := self.rule.summand(x, g)) is not None:
            so_far = summand if self.summed is None else self.summed[2].add_(summand)
            self.summed = (call.names, x, so_far)
        else:
            self.rule.add_squares(self.module, x, g, self.totals_of(call.names))

    @torch.no_grad()
    def add_summed(self) -> None:
        """Add what was summed over the backward passes."""
        if self.summed is not None:
            names, x, summed = self.summed
            self.rule.add_summed(x, summed, self.totals_of(names))
            self.summed = None


class ReplayedLayer(Layer):
    """A module without a closed form, to be run once more on single samples."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        sources: Mapping[str, Source],
        parameters: Mapping[str, nn.Parameter],
        by_loop: set[str],
    ) -> None:
        self._replay = Replay(name, module, parameters, by_loop)
        super().__init__(name, module, sources)

    def _watch(
        self, under_way: Pass, args: Any, kwargs: dict[str, Any], output: Any
    ) -> tuple[Watched, Span] | None:
        outputs = tensors_of(output)
        with_graph = [value for value in outputs if value.requires_grad]
        if not with_graph or any(value.is_leaf for value in with_graph):
            return None  # tensors may be hidden in an object of a class of its own
        span = Span(self.index, edges_of(with_graph), nodes_of(tensors_of((args, kwargs))))
        sizes = [value.shape for value in outputs]
        call = Watched(self, args, kwargs, sizes, gradients=[None] * len(outputs))
        for place, value in enumerate(outputs):
            if value.requires_grad:
                keep = partial(call.gradients.__setitem__, place)
                value.register_hook(keep)  # type: ignore[no-untyped-call]  # torch's own
        return call, span

    def add_squares(self, call: Watched) -> bool:
        """Add the squares of a call; return whether it could be replayed."""
        totals = {local: t for local, t in self.totals.items() if local in call.names}
        if not totals or all(v is None for v in call.gradients):
            return True
        axes = call.axes
        if any(
            v is not None and axis is None for v, axis in zip(call.gradients, axes[2], strict=True)
        ):
            return False
        squares = {name: torch.zeros_like(total) for name, total in totals.items()}
        of_outputs = [
            None if v is None else axis for v, axis in zip(call.gradients, axes[2], strict=True)
        ]
        args, kwargs = mapped(_detached, (call.args, call.kwargs))
        replayed = Call(args, kwargs, list(call.gradients), (axes[0], axes[1], of_outputs))
        try:
            self._replay.add_squares(replayed, squares)
        except FAILURES as error:
            logger.debug("%s cannot be replayed: %s", self.name, error)
            return False
        for name, square in squares.items():
            totals[name].add_(square)
        return True

    @contextmanager
    def noting_draws(self, names: set[str]) -> Iterator[None]:
        """Add the module's parameters, by their names in the model, if a call of it draws."""
        device = next(iter(self.module.parameters())).device
        before: list[tuple[Tensor, ...]] = []

        def begin(*_: object) -> None:
            before.append(random_states(device))

        def end(*_: object) -> None:
            if not same_states(before.pop(), random_states(device)):
                names.update(name for name, _ in self.sources.values())

        handles = [
            self.module.register_forward_pre_hook(begin),
            self.module.register_forward_hook(end),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _detached(value: Any) -> Any:
    return plain(value.detach()) if isinstance(value, Tensor) else value


def layers_of(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    stand_ins: Mapping[str, StandIn],
    by_loop: set[str],
) -> list[Layer]:
    """Return every module that owns some of the parameters, but for the model itself.

    Args:
        model: whose modules are meant.
        parameters: the trainable ones, by name.
        stand_ins: by name, for the modules whose projections are hooked in their place.
        by_loop: names of modules that vmap cannot run; see ``Replay``.
    """
    name_by_id = {id(p): name for name, p in parameters.items()}
    layers: list[Layer] = []
    for name, module in model.named_modules():
        own = {n: p for n, p in module.named_parameters(recurse=False) if id(p) in name_by_id}
        name_of = {local: name_by_id[id(p)] for local, p in own.items()}
        if isinstance(module, torch.jit.ScriptModule):
            continue  # which has no hooks
        if name in stand_ins:
            layers += _layers_of_projections(name, stand_ins[name], name_of)
            continue
        sources = {local: (source, slice(None)) for local, source in name_of.items()}
        rule = rule_for(module)
        if sources and rule is not None:
            # what other parameters do, those of parametrizing hooks say, no closed form knows
            shown = {local: source for local, source in sources.items() if local in rule.parameters}
            layers.append(ClosedFormLayer(name, module, shown, rule))
        elif sources and module is not model:
            layers.append(ReplayedLayer(name, module, sources, own, by_loop))
    for index, layer in enumerate(layers):
        layer.index = index
    return layers


def _layers_of_projections(
    name: str, stand_in: StandIn, name_of: Mapping[str, str]
) -> Iterator[Layer]:
    for part, projection in stand_in.projections.items():
        sources = {
            local: (name_of[source], rows)
            for local, (source, rows) in projection.sources.items()
            if source in name_of
        }
        rule = rule_for(projection)
        if sources and rule is not None:
            yield ClosedFormLayer(f"{name}.{part}", projection, sources, rule)
