"""Sums over samples of squared per-sample gradients of a whole model.

One batched forward pass, and one backward pass for each cotangent of the outputs, in which hooks
apply the closed forms of ``catalogue``; gradients of single samples are not kept. Parameters of
other modules go by ``torch.func.vmap`` over that module, and what no module shows rightly
(functional use, parameters of the model itself) by vmap over the whole model; where vmap fails, one
sample is taken at a time.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedcurv.per_sample.attention import AttentionByProjections
from fedcurv.per_sample.findings import Findings
from fedcurv.per_sample.layers import Pass, ReplayedLayer, RuleLayer, layers_of
from fedcurv.per_sample.memory import keep_freed_memory
from fedcurv.per_sample.replay import Call, Replay
from fedcurv.per_sample.rules import LayerRule

logger = logging.getLogger(__name__)

# from outputs to the cotangents to sum over, each in the outputs' shape
CotangentsOf = Callable[[Tensor], Sequence[Tensor]]

# gradients of single samples that are summed over several uses take at most this many numbers
_NUMBERS_AT_ONCE = 2**21


class PerSampleSquares:
    """Sums Σ_n (∂⟨f(x_n), v_n⟩/∂p)² for every parameter p, with v a cotangent of the outputs.

    A context manager: inside the model is hooked and none of its parameters requires gradients.

    Args:
        model: in eval mode.
        parameters: the trainable ones, by name.
        findings: of a self-check of this model.

    Attributes:
        totals: the sums, by name.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], findings: Findings
    ) -> None:
        self._model = model
        self._parameters = dict(parameters)
        self._findings = findings
        self._attentions = {
            name: AttentionByProjections(module)
            for name, module in model.named_modules()
            if isinstance(module, nn.MultiheadAttention) and AttentionByProjections.fits(module)
        }
        self._layers = layers_of(model, parameters, self._attentions, findings)
        self._rule_layers = [layer for layer in self._layers if isinstance(layer, RuleLayer)]
        self._replayed = [layer for layer in self._layers if isinstance(layer, ReplayedLayer)]
        self._whole = Replay("", model, parameters, findings.by_loop)
        self._told: set[str] = set()
        anchor = torch.zeros((), requires_grad=True, device=next(iter(parameters.values())).device)
        self._pass = Pass(findings, anchor)
        self._stack = ExitStack()
        rules = {
            name: layer.rule for layer in self._rule_layers for name, _ in layer.sources.values()
        }
        self.totals = {
            name: rules.get(name, LayerRule()).new_total(p) for name, p in parameters.items()
        }
        for layer in self._layers:
            layer.totals = {
                local: self.totals[name][rows]
                for local, (name, rows) in layer.sources.items()
                if name not in findings.slow
            }

    def __enter__(self) -> "PerSampleSquares":
        """Prepare the model."""
        keep_freed_memory()
        with ExitStack() as stack:
            stack.enter_context(_without_gradients(list(self._parameters.values())))
            stack.enter_context(_plain_attention())
            for attention in self._attentions.values():
                stack.enter_context(attention.in_place())
            for layer in self._layers:
                stack.callback(layer.hook(self._pass).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the model as it was."""
        self._stack.close()

    def add(self, inputs: Tensor, cotangents_of: CotangentsOf) -> Sequence[Tensor]:
        """Add the sums over a batch and return the cotangents.

        Args:
            inputs: shape (N, ...).
            cotangents_of: gives the cotangents to sum over.

        Raises:
            ValueError: if the model returns anything but one tensor.
        """
        for layer in self._layers:
            layer.reset()
        under_way = self._pass
        slow: set[str] = set()
        under_way.samples, under_way.in_backward = inputs.shape[0], False
        try:
            with torch.enable_grad():
                outputs = self._model(inputs)
            if not isinstance(outputs, Tensor):
                raise ValueError(
                    f"expected a model that returns one tensor, got {type(outputs).__name__} from "
                    f"{type(self._model).__name__}; wrap it in a module that returns its logits"
                )
            cotangents = cotangents_of(outputs.detach())
            under_way.in_backward, under_way.cotangents = True, len(cotangents)
            for index, v in enumerate(cotangents):
                if outputs.requires_grad:
                    _backward(outputs, v, retain_graph=index + 1 < len(cotangents))
                slow = self._finish_layers()
                if slow:
                    call = Call((inputs,), {}, [v], ((0,), {}, [0]))
                    self._whole.add_squares(call, {name: self.totals[name] for name in slow})
            for layer in self._rule_layers:
                layer.add_summed()
        finally:
            under_way.samples = 0  # the hooks have nothing to do outside of this
        if self._replayed or slow:
            self._tell_of(slow)
        return cotangents

    def not_covered(self) -> set[str]:
        """Return the parameters that no layer showed rightly in the last pass."""
        used: set[str] = set()
        unfit = set(self._findings.slow)
        for layer in self._layers:
            names = {name for name, _ in layer.sources.values()}
            if not layer.fit:
                unfit |= names
            elif layer.uses:
                used |= names
        return self._parameters.keys() - (used | self._findings.idle) | unfit

    def names_in_layers(self) -> set[str]:
        """Return the parameters that some layer owns."""
        return {name for layer in self._layers for name, _ in layer.sources.values()}

    @torch.no_grad()
    def _finish_layers(self) -> set[str]:
        """Add what could not be added during the backward pass; return what no layer covered."""
        for replayed in self._replayed:
            replayed.add_squares()
        slow = self.not_covered()
        uses: dict[tuple[str, int | None], list[_Use]] = defaultdict(list)
        for layer in self._rule_layers:
            for local, (name, rows) in layer.sources.items() if layer.waiting else ():
                if name not in slow:
                    uses[name, rows.start] += [_Use(layer, local, *pair) for pair in layer.waiting]
            layer.waiting.clear()
        for several in uses.values():
            _add_squares_of_sums(several)
        return slow

    def _tell_of(self, slow: set[str]) -> None:
        modules = {layer.name for layer in self._replayed if layer.uses}
        modules |= {name.rpartition(".")[0] or name for name in slow}
        if (new := modules - self._told) and not self._findings.infer:
            self._told |= new
            logger.info(
                "Fisher diagonal of %s: no closed form for %s; single samples are run through %s",
                type(self._model).__name__,
                ", ".join(sorted(new)),
                "the whole model" if slow else "these modules",
            )


def _backward(outputs: Tensor, v: Tensor, *, retain_graph: bool) -> None:
    device = outputs.device.type
    if torch.is_autocast_enabled(device):  # it would reach into the rules
        with torch.autocast(device, enabled=False):
            torch.autograd.backward(outputs, v.to(outputs.dtype), retain_graph=retain_graph)
    else:
        torch.autograd.backward(outputs, v.to(outputs.dtype), retain_graph=retain_graph)


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
def _without_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let backward passes compute gradients of activations alone."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Keep transformers from fused kernels that skip their modules where nothing is trained."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
