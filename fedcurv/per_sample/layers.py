"""Hooked modules: what each pass over a batch shows of them, and what they add to the squares."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedcurv.parameters import accumulation_dtype
from fedcurv.per_sample.attention import AttentionByProjections, Source
from fedcurv.per_sample.catalogue import rule_for
from fedcurv.per_sample.findings import Findings
from fedcurv.per_sample.replay import Call, Replay, mapped, tensors_of
from fedcurv.per_sample.rules import LayerRule

logger = logging.getLogger(__name__)


@dataclass
class Pass:
    """The pass over a batch that is under way; 0 samples: none is.

    Attributes:
        findings: of the model's self-check.
        anchor: what a graph may begin with.
        samples: in the batch.
        in_backward: whether the forward pass is over.
        cotangents: how many backward passes there are, known in them.
    """

    findings: Findings
    anchor: Tensor
    samples: int = 0
    in_backward: bool = False
    cotangents: int = 0


class Layer:
    """A module with parameters of its own.

    Args:
        name: of the module in the model.
        module: to be hooked.
        sources: by its parameters' own names, their names in the model and which rows of them.

    Attributes:
        totals: by own name, where to add squares.
        uses: calls in this pass.
        fit: whether this pass showed nothing that the layer cannot deal with.
        shares: whether other layers own one of the parameters too.
    """

    def __init__(self, name: str, module: nn.Module, sources: Mapping[str, Source]) -> None:
        self.name = name
        self.module = module
        self.sources = sources
        self.totals: dict[str, Tensor] = {}
        self.shares = False
        self.reset()

    def reset(self) -> None:
        """Forget the last pass."""
        self.uses = 0
        self.fit = True
        # run without gradients first and once more in the backward pass, as by some checkpoints
        self._is_late = False

    def hook(self, under_way: Pass) -> RemovableHandle:
        """Watch the module's calls."""
        return self.module.register_forward_hook(
            partial(self._on_call, under_way), with_kwargs=True
        )

    def _on_call(
        self, under_way: Pass, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
    ) -> Any:
        if not under_way.samples:
            return None
        if not torch.is_grad_enabled():
            self._is_late = True
            return None
        if under_way.in_backward and not self._is_late:
            return None  # a checkpoint computes once more what the first call's hooks wait for
        self.uses += 1
        return self._watch(under_way, args, kwargs, output)

    def _watch(self, under_way: Pass, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """Ask for the gradient of the output; return what is to take its place, or None."""
        raise NotImplementedError


class RuleLayer(Layer):
    """A module with a closed form.

    Attributes:
        waiting: (x, g) of calls whose squares cannot be taken before all calls are known.
        summed: (x, Σ_v of the rule's ``summand``) over the backward passes so far, which share x.
    """

    def __init__(
        self, name: str, module: nn.Module, sources: Mapping[str, Source], rule: LayerRule
    ) -> None:
        self.rule = rule
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.summed: tuple[Tensor, Tensor] | None = None
        super().__init__(name, module, sources)

    def reset(self) -> None:
        """Forget the last pass."""
        super().reset()
        self.waiting.clear()
        self.summed = None

    def _watch(self, under_way: Pass, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        x = args[0] if args else kwargs.get("input")
        samples = under_way.samples
        if not isinstance(x, Tensor) or not isinstance(output, Tensor) or not x.ndim:
            self.fit = False
            return None
        axis = under_way.findings.axis_of(self.name, x, samples)
        if not x.ndim > axis < output.ndim or not x.shape[axis] == samples == output.shape[axis]:
            self.fit = False
            return None
        beginning = None
        if not output.requires_grad:
            output = beginning = _beginning(output, under_way.anchor)
        output.register_hook(partial(self._on_gradient, under_way, x, axis))
        return beginning

    def _on_gradient(self, under_way: Pass, x: Tensor, axis: int, g: Tensor) -> None:
        if not self.fit or not self.totals:
            return
        if axis:
            x, g = x.transpose(0, axis), g.transpose(0, axis)
        dtype = accumulation_dtype(g)
        if x.dtype != dtype and x.is_floating_point():
            x = x.to(dtype)
        if g.dtype != dtype:
            g = g.to(dtype)
        if self.uses > 1 or self.shares or self._is_late:
            self.waiting.append((x, g))
        elif under_way.cotangents > 1 and (summand := self.rule.summand(x, g)) is not None:
            self.summed = (x, summand if self.summed is None else self.summed[1].add_(summand))
        else:
            self.rule.add_squares(self.module, x, g, self.totals)

    @torch.no_grad()
    def add_summed(self) -> None:
        """Add what was summed over the backward passes."""
        if self.summed is not None:
            self.rule.add_summed(*self.summed, self.totals)
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
        self._call: Call | None = None
        super().__init__(name, module, sources)

    def reset(self) -> None:
        """Forget the last pass."""
        super().reset()
        self._call = None

    def _watch(self, under_way: Pass, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        findings, samples = under_way.findings, under_way.samples
        outputs = tensors_of(output)
        if findings.infer or self.name not in findings.axes:
            axis_of = partial(_axis_of, samples, (0, 1) if findings.infer else (0,))
            axes = mapped(axis_of, (args, kwargs, outputs))
        else:
            axes = findings.axes[self.name]
        if findings.infer:
            findings.axes[self.name] = axes
        self.fit = self.uses == 1 and not self.shares
        call = self._call = Call(args, kwargs, [None] * len(outputs), axes)
        position = iter(range(len(outputs)))

        def watched(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            value = value if value.requires_grad else value + under_way.anchor
            value.register_hook(partial(call.cotangents.__setitem__, next(position)))
            return value

        return mapped(watched, output)

    def add_squares(self) -> None:
        """Add the squares of the last pass, if it can be replayed; else the layer is not fit."""
        call, squares = self._call, {n: torch.zeros_like(t) for n, t in self.totals.items()}
        if call is None or not self.fit or not squares or all(v is None for v in call.cotangents):
            return
        outputs = list(zip(call.cotangents, call.axes[2], strict=True))
        if any(v is not None and axis is None for v, axis in outputs):
            self.fit = False
            return
        axes = (*call.axes[:2], [None if v is None else axis for v, axis in outputs])
        try:
            self._replay.add_squares(replace(call, axes=axes), squares)
        except (RuntimeError, TypeError, ValueError, KeyError, IndexError) as error:
            logger.debug("%s cannot be replayed: %s", self.name, error)
            self.fit = False
            return
        for name, square in squares.items():
            self.totals[name].add_(square)


class _Beginning(torch.autograd.Function):
    """Lets a graph begin at a tensor that no gradient is asked for, without a copy."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        return None, None


def _beginning(output: Tensor, anchor: Tensor) -> Tensor:
    if output._is_view():
        return output + anchor
    beginning: Tensor = _Beginning.apply(output, anchor)
    return beginning


def _axis_of(samples: int, candidates: tuple[int, ...], value: Any) -> int | None:
    if not isinstance(value, Tensor):
        return None
    fitting = [a for a in candidates if value.ndim > a and value.shape[a] == samples]
    return fitting[0] if fitting else None


def layers_of(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    attentions: Mapping[str, AttentionByProjections],
    findings: Findings,
) -> list[Layer]:
    """Return every module that owns some of the parameters, but for the model itself.

    Args:
        model: whose modules are meant.
        parameters: the trainable ones, by name.
        attentions: by name, the modules whose projections are hooked in their place.
        findings: of a self-check of this model.
    """
    name_by_id = {id(p): name for name, p in parameters.items()}
    layers: list[Layer] = []
    for name, module in model.named_modules():
        own = {n: p for n, p in module.named_parameters(recurse=False) if id(p) in name_by_id}
        name_of = {local: name_by_id[id(p)] for local, p in own.items()}
        if name in attentions:
            layers += _layers_of_attention(name, attentions[name], name_of)
            continue
        sources = {local: (source, slice(None)) for local, source in name_of.items()}
        rule = rule_for(module)
        if sources and rule is not None:
            layers.append(RuleLayer(name, module, sources, rule))
        elif sources and module is not model:
            layers.append(ReplayedLayer(name, module, sources, own, findings.by_loop))
    owners = Counter((n, rows.start) for layer in layers for n, rows in layer.sources.values())
    for layer in layers:
        layer.shares = any(owners[n, rows.start] > 1 for n, rows in layer.sources.values())
    return layers


def _layers_of_attention(
    name: str, attention: AttentionByProjections, name_of: Mapping[str, str]
) -> Iterator[Layer]:
    for part, projection in attention.projections().items():
        sources = {
            local: (name_of[source], rows)
            for local, (source, rows) in projection.sources.items()
            if source in name_of
        }
        rule = rule_for(projection)
        if sources and rule is not None:
            yield RuleLayer(f"{name}.{part}", projection, sources, rule)
