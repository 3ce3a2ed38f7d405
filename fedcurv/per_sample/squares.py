"""Sums over samples of squared per-sample gradients of a whole model.

One batched forward pass, and one backward pass for each cotangent of the outputs, in which hooks
apply the closed forms of ``catalogue``; gradients of single samples are not kept. Parameters of
other modules go by ``torch.func.vmap`` over that module, and what no module shows rightly
(functional use, parameters of the model itself) by vmap over the whole model; where vmap fails, one
sample is taken at a time.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from fedcurv.global_state import random_states_kept
from fedcurv.parameters import plain
from fedcurv.per_sample.attention import AttentionByProjections
from fedcurv.per_sample.findings import Findings
from fedcurv.per_sample.graph import Graph, Uses, leaves_of
from fedcurv.per_sample.layers import (
    Layer,
    Pass,
    Phase,
    ReplayedLayer,
    RuleLayer,
    Watched,
    axes_by_comparison,
    axes_by_size,
    layers_of,
)
from fedcurv.per_sample.memory import keep_freed_memory
from fedcurv.per_sample.replay import Call, Replay, close
from fedcurv.per_sample.rules import LayerRule

logger = logging.getLogger(__name__)

# from outputs to the cotangents to sum over, each in the outputs' shape
CotangentsOf = Callable[[Tensor], Sequence[Tensor]]

# gradients of single samples that are summed over several uses take at most this many numbers
_NUMBERS_AT_ONCE = 2**21


# from a computation that was not seen before, and inputs for it, to what a check of it finds out
Check = Callable[[Hashable, Tensor], Findings]


@dataclass
class Look:
    """What one sample showed.

    Attributes:
        key: equal for two computations only if they join the same modules in the same way.
        outputs: of the sample.
        calls: of hooked modules.
        uses: of parameters.
    """

    key: Hashable
    outputs: Tensor
    calls: list[Watched]
    uses: Uses


@dataclass
class Layout:
    """How the squares of passes of one signature are taken.

    Attributes:
        axes: by call, where the samples lie.
        names: by call, the module's own names of the parameters that it is to show.
        whole: parameters that only the whole model shows.
        waits: layers whose squares cannot be taken before all their gradients are known.
        ends: see ``Uses``.
        ambiguous: whether the axes are to be looked for again at the next pass.
    """

    axes: list[Any]
    names: list[frozenset[str]]
    whole: frozenset[str]
    waits: set[Layer]
    ends: Sequence[tuple[int, int]]
    ambiguous: bool


class PerSampleSquares:
    """Sums Σ_n (∂⟨f(x_n), v_n⟩/∂p)² for every parameter p, with v a cotangent of the outputs.

    A context manager: inside the model is hooked.

    Args:
        model: in eval mode.
        parameters: the trainable ones, by name.
        findings: what is known to begin with.
        looks: whether a single sample shows where the samples lie and whether they interact.
        check: asked about every computation that was not seen before; None: nobody is.

    Attributes:
        totals: the sums, by name.
        findings: what is known by now.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        findings: Findings,
        *,
        looks: bool = True,
        check: Check | None = None,
    ) -> None:
        self._model = model
        self._parameters = dict(parameters)
        self.findings = findings
        self._looks = looks
        self._check = check
        self._attentions = {
            name: AttentionByProjections(module)
            for name, module in model.named_modules()
            if isinstance(module, nn.MultiheadAttention) and AttentionByProjections.fits(module)
        }
        self._layers = layers_of(model, parameters, self._attentions, findings.by_loop)
        self._rule_layers = [layer for layer in self._layers if isinstance(layer, RuleLayer)]
        self._whole = Replay("", model, parameters, findings.by_loop)
        self._told: set[str] = set()
        self._pass = Pass()
        self._stack = ExitStack()
        self._layouts: dict[Hashable, Layout] = {}
        self._checked: set[Hashable] = set()
        self._first_look: Look | None = None
        rules = {
            name: layer.rule for layer in self._rule_layers for name, _ in layer.sources.values()
        }
        self.totals = {
            name: rules.get(name, LayerRule()).new_total(p) for name, p in parameters.items()
        }
        for layer in self._layers:
            layer.totals = {
                local: self.totals[name][rows] for local, (name, rows) in layer.sources.items()
            }
        self._leaves = leaves_of(parameters)

    def __enter__(self) -> "PerSampleSquares":
        """Prepare the model."""
        keep_freed_memory()
        with ExitStack() as stack:
            stack.enter_context(_requiring_gradients(list(self._parameters.values())))
            stack.enter_context(_plain_attention())
            stack.enter_context(_no_memory_of_casts())
            for attention in self._attentions.values():
                stack.enter_context(attention.in_place())
            for layer in self._layers:
                stack.callback(layer.hook(self._pass).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the model as it was."""
        self._stack.close()

    def begin(self, inputs: Tensor) -> None:
        """Look at one sample of the first batch, and have the computation checked if it is new."""
        if self._looks:
            self._first_look = self._look_at(inputs)

    def add(self, inputs: Tensor, cotangents_of: CotangentsOf) -> Sequence[Tensor] | None:
        """Add the sums over a batch and return the cotangents.

        Args:
            inputs: shape (N, ...).
            cotangents_of: gives the cotangents to sum over.

        Returns:
            the cotangents; None, with nothing added, if the samples interact, so that each must be
            a batch of its own.

        Raises:
            ValueError: if the model returns anything but one tensor, or something else each time.
        """
        samples = inputs.shape[0]
        if samples > 1 and self.findings.alone:
            return None
        # a model that draws random numbers must draw them once more where it is run once more
        state = torch.get_rng_state() if samples == 1 else None
        try:
            outputs, calls, graph = self._forward(inputs)
            layout = self._layouts.get(graph.signature)
            if layout is None or (layout.ambiguous and samples > 1):
                layout = self._layout_of(inputs, outputs, calls, graph)
                if layout is None:
                    self._interact()
                    return None
                self._layouts[graph.signature] = layout
            del graph
            cotangents = cotangents_of(outputs.detach())
            if layout.whole and not self._add_by_whole(
                inputs, outputs, cotangents, layout.whole, state
            ):
                self._interact()
                return None
            self._add_by_layers(inputs, outputs, cotangents, layout, calls, state)
        finally:
            for layer in self._rule_layers:
                layer.reset()
            self._pass.calls = []
        return cotangents

    def _add_by_layers(
        self,
        inputs: Tensor,
        outputs: Tensor,
        cotangents: Sequence[Tensor],
        layout: Layout,
        calls: Sequence[Watched],
        state: Tensor | None,
    ) -> None:
        for call, axes, names in zip(calls, layout.axes, layout.names, strict=True):
            if isinstance(call.layer, RuleLayer) and not names:
                call.args = ()
            call.axes, call.names = axes, names
        self._pass.cotangents, self._pass.waits = len(cotangents), layout.waits
        replayed = [(call.layer, call) for call in calls if isinstance(call.layer, ReplayedLayer)]
        ends = [calls[index].span.tops[place] for index, place in layout.ends]
        for number, v in enumerate(cotangents):
            for _, call in replayed:
                call.gradients[:] = [None] * len(call.gradients)  # the list that hooks fill
            self._pass.last = number + 1 == len(cotangents)
            if ends:
                _backward(outputs, v, ends, retain_graph=not self._pass.last)
            failed: set[str] = set()
            for layer, call in replayed:
                if not layer.add_squares(call):
                    failed |= {name for name, _ in layer.sources.values()}
            self._add_what_waited()
            if failed and not self._add_by_whole(inputs, outputs, [v], failed, state):
                raise ValueError(
                    f"{type(self._model).__name__} computes something else when the same batch is "
                    f"run once more, as {', '.join(sorted(failed))} need; give batches of one "
                    "sample"
                )
        for summing in self._rule_layers:
            summing.add_summed()
        self._tell_of(layout, replayed)

    def _forward(self, inputs: Tensor) -> tuple[Tensor, list[Watched], Graph]:
        self._pass.calls, self._pass.phase = [], Phase.FORWARD
        try:
            with torch.enable_grad():
                outputs = self._model(inputs)
        finally:
            self._pass.phase = Phase.NOTHING
        if not isinstance(outputs, Tensor):
            raise ValueError(
                f"expected a model that returns one tensor, got {type(outputs).__name__} from "
                f"{type(self._model).__name__}; wrap it in a module that returns its logits"
            )
        if not outputs.is_floating_point():
            raise ValueError(
                f"expected a model that returns real numbers, got {outputs.dtype} from "
                f"{type(self._model).__name__}"
            )
        outputs = plain(outputs)
        calls = self._pass.calls
        return outputs, calls, Graph(outputs, self._leaves, [call.span for call in calls])

    def _look_at(self, inputs: Tensor) -> Look:
        """Run one sample, the second: of samples that are summed up so far the first is right."""
        one = inputs[1:2] if len(inputs) > 1 else inputs
        with _buffers_kept(self._model), random_states_kept(one.device):
            outputs, calls, graph = self._forward(one)
        look = Look(_key(self._model, calls, graph), outputs.detach(), calls, graph.uses())
        self._have_checked(look.key, inputs)
        return look

    def _have_checked(self, key: Hashable, inputs: Tensor) -> None:
        if self._check is None or key in self._checked:
            return
        self._checked.add(key)
        self.__exit__()  # the check hooks the model itself
        with _buffers_kept(self._model), random_states_kept(inputs.device):
            found = self._check(key, inputs)
        self.__enter__()
        self.findings.slow |= found.slow
        self.findings.by_loop |= found.by_loop
        if found.alone:
            self._interact()
        self.findings.bytes_per_number = found.bytes_per_number or self.findings.bytes_per_number

    def _layout_of(
        self, inputs: Tensor, outputs: Tensor, calls: list[Watched], graph: Graph
    ) -> Layout | None:
        """Return how to take a pass's squares; None if its samples interact."""
        samples, uses = len(inputs), graph.uses()
        axes = [axes_by_size(call, samples) for call in calls]
        if self._looks and samples > 1:
            look, self._first_look = self._first_look or self._look_at(inputs), None
            if self.findings.alone or not _agree(outputs, calls, uses, look):
                return None
            axes = [
                axes_by_comparison(call, alone, samples)
                for call, alone in zip(calls, look.calls, strict=True)
            ]
        elif self._looks and self._check is not None:
            self._have_checked(_key(self._model, calls, graph), inputs)
        if graph.hides:
            self.findings.by_loop.add("")
            return Layout(
                axes, [frozenset()] * len(calls), frozenset(self._parameters), set(), (), False
            )
        whole = self._not_in_layers(calls, axes, uses)
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
            call.layer.any_axis and call.outputs[0].sizes[:-1].count(samples) > 1 for call in calls
        )
        return Layout(axes, names, whole, waits, uses.ends, ambiguous)

    def _not_in_layers(
        self, calls: Sequence[Watched], axes: Sequence[Any], uses: Uses
    ) -> frozenset[str]:
        """Return the parameters with a use that no call shows rightly."""
        whole = set(uses.apart) | (self.findings.slow & uses.names)
        covered: Counter[str] = Counter()
        number = Counter(call.layer for index, call in enumerate(calls) if index in uses.reached)
        owners: dict[str, set[Layer]] = defaultdict(set)
        for layer in number:
            for name, _ in layer.sources.values():
                owners[name].add(layer)
        for index, call in enumerate(calls):
            if index not in uses.reached:
                continue
            by_rule = isinstance(call.layer, RuleLayer)
            for name, _ in call.layer.sources.values():
                here = uses.inside.get((index, name), 0)
                covered[name] += here
                alone = by_rule or (number[call.layer] == 1 and len(owners[name]) == 1)
                if axes[index] is None or not alone or (by_rule and here != 1):
                    whole.add(name)
        whole |= {name for name in uses.names if covered[name] != uses.edges[name]}
        return frozenset(whole & uses.names)

    def _add_by_whole(
        self,
        inputs: Tensor,
        outputs: Tensor,
        cotangents: Sequence[Tensor],
        names: Iterable[str],
        state: Tensor | None,
    ) -> bool:
        """Add squares by running the model again; return whether it gave the same outputs."""
        squares = {name: torch.zeros_like(self.totals[name]) for name in names}
        for v in cotangents:
            call = Call((inputs,), {}, [v], ((0,), {}, [0]), outputs.detach(), state)
            if not self._whole.add_squares(call, squares):
                return False
        for name, square in squares.items():
            self.totals[name].add_(square)
        return True

    def _interact(self) -> None:
        if self.findings.alone:
            return
        self.findings.alone = True
        logger.warning(
            "Fisher diagonal of %s: outputs depend on what else is in a batch, so each sample is "
            "one of its own",
            type(self._model).__name__,
        )

    @torch.no_grad()
    def _add_what_waited(self) -> None:
        """Add what could not be added before all uses of a parameter were known."""
        uses: dict[tuple[str, int | None], list[_Use]] = defaultdict(list)
        for layer in self._rule_layers:
            for names, x, g in layer.waiting:
                for local in names:
                    name, rows = layer.sources[local]
                    uses[name, rows.start].append(_Use(layer, local, x, g))
            layer.waiting.clear()
        for several in uses.values():
            _add_squares_of_sums(several)

    def _tell_of(self, layout: Layout, replayed: Sequence[tuple[Layer, Watched]]) -> None:
        modules = {layer.name for layer, call in replayed if call.names}
        modules |= {name.rpartition(".")[0] or name for name in layout.whole}
        if (new := modules - self._told) and (self._check is not None or not self._looks):
            self._told |= new
            logger.info(
                "Fisher diagonal of %s: no closed form for %s; single samples are run through %s",
                type(self._model).__name__,
                ", ".join(sorted(new)),
                "the whole model" if layout.whole else "these modules",
            )


def tolerance_of(outputs: Tensor, parameters: Iterable[Tensor]) -> float:
    """Return by how much right results may differ: more in half precision."""
    dtypes = {outputs.dtype, *(p.dtype for p in parameters)}
    device = outputs.device.type
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    return max(1e-3, *(16 * torch.finfo(dtype).eps for dtype in dtypes))


def _agree(outputs: Tensor, calls: Sequence[Watched], uses: Uses, look: Look) -> bool:
    """Return whether a sample of a batch went the way that it goes alone."""
    if [call.layer for call in calls] != [call.layer for call in look.calls]:
        return False
    if uses.inside != look.uses.inside or uses.apart != look.uses.apart:
        return False
    return close(look.outputs, outputs.detach()[1:2])


def _key(model: nn.Module, calls: Sequence[Watched], graph: Graph) -> Hashable:
    """Return what a computation on one sample has in common only with its like."""
    modules = tuple(
        (type(call.layer.module), call.layer.module.extra_repr(), str(call.shapes()))
        for call in calls
    )
    return type(model), graph.signature, modules


def _backward(
    outputs: Tensor, v: Tensor, ends: Sequence[GradientEdge], *, retain_graph: bool
) -> None:
    """Go backward as far as to these edges; gradients of parameters are not computed."""
    device = outputs.device.type
    v = v.to(outputs.dtype)
    with (
        torch.autocast(device, enabled=False)
        if torch.is_autocast_enabled(device)
        else nullcontext()
    ):
        torch.autograd.grad(outputs, ends, v, retain_graph=retain_graph, allow_unused=True)


class _Use(NamedTuple):
    """One use of a parameter: under its own name in a layer, with input and gradient."""

    layer: RuleLayer
    local: str
    x: Tensor
    g: Tensor


def _add_squares_of_sums(uses: Sequence[_Use]) -> None:
    """Add Σ_n (Σ_u G_un)², where G_un is what use u gives to the gradient of sample n."""
    first = uses[0]
    total = first.layer.totals[first.local]
    if len(uses) == 1:
        first.layer.rule.add_squares(first.layer.module, first.x, first.g, {first.local: total})
        return
    size = max(1, _NUMBERS_AT_ONCE // total.numel())
    for begin in range(0, len(first.x), size):
        part = slice(begin, begin + size)
        gradients = [
            use.layer.rule.gradients(use.layer.module, use.x[part], use.g[part])[use.local]
            for use in uses
        ]
        total.add_(sum(gradients[1:], gradients[0]).square_().sum(0))


@contextmanager
def _requiring_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Put back which parameters require gradients, should a forward pass change that."""
    parameters = list(parameters)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put back the values of buffers that are changed inside."""
    before = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, version, value in before:
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(value)


@contextmanager
def _no_memory_of_casts() -> Iterator[None]:
    """Let autocast convert each time: what it kept from a pass without gradients has no graph."""
    before = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Keep transformers from fused kernels that skip their modules where nothing is trained."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
