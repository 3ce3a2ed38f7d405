"""Sums over samples of squared per-sample gradients of a whole model.

One batched forward and backward pass per set of labels, in which hooks apply the rules of
``layer_rules``; gradients of single samples are not kept. Parameters that no rule covers (other
layers, functional use, tied weights, modules called twice) go by ``torch.func.vmap`` over the
model, or by one sample at a time where vmap cannot run it.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedcurv.layer_rules import Rule, rule_for
from fedcurv.likelihoods import NegativeLogLikelihood
from fedcurv.parameters import accumulation_dtype
from fedcurv.single_samples import SingleSamples, Squares, WeightedLabels

logger = logging.getLogger(__name__)

# from a batch's targets and outputs to the sets of labels to sum over
LabelsOf = Callable[[Tensor, Tensor], Sequence[WeightedLabels]]

# float32 rounding in a deep network stays well below, a wrong rule well above
_CHECK_TOLERANCE = 1e-3
_REMEMBERED_CHECKS = 256


@dataclass
class _Findings:
    """What the self-check learned of models of one structure.

    Attributes:
        slow: parameters whose rule does not hold, or that are used outside of their module.
        idle: parameters with a rule that nothing depended on. Their modules' calls are counted, so
            that a later use is noticed.
    """

    slow: set[str] = field(default_factory=set)
    idle: set[str] = field(default_factory=set)


_findings: dict[str, _Findings] = {}


class PerSampleSquares:
    """Computes Σ_n w_n (∂ℓ_n/∂p)² for every parameter p, with ℓ a loss per sample.

    A context manager: the model is hooked inside.

    Args:
        model: in eval mode.
        parameters: the trainable ones, by name.
        losses_of: ℓ, one value per sample.
        self_check: compare the rules with single samples on the first two samples that come,
            unless a model of the same structure has been compared before, and use vmap for what
            disagrees.

    Attributes:
        losses_are_finite: whether all losses so far were, as a tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        losses_of: NegativeLogLikelihood,
        *,
        self_check: bool = True,
    ) -> None:
        self._model = model
        self._losses_of = losses_of
        self._names = set(parameters)
        self._single = SingleSamples(model, parameters, losses_of)
        self._covered = _covered(model, parameters)
        self._findings = _Findings()
        self._structure = _structure_of(model, parameters) if self_check else ""
        self._trainable = list(parameters.values())
        self._handles: list[RemovableHandle] = []
        self._squares: Squares = {}
        self._called: Counter[nn.Module] = Counter()
        self._samples = 0
        self._told: set[str] = set()
        device = self._trainable[0].device
        self._anchor = torch.zeros((), requires_grad=True, device=device)
        self.losses_are_finite = torch.ones((), dtype=torch.bool, device=device)

    def __enter__(self) -> "PerSampleSquares":
        """Hook the model."""
        for module, (rule, names) in self._covered.items():
            hook = partial(self._watch, rule, names)
            self._handles.append(module.register_forward_hook(hook))
        return self

    def __exit__(self, *_: object) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def __call__(self, inputs: Tensor, targets: Tensor, labels_of: LabelsOf) -> Squares:
        """Return the sums over a batch, without the parameters for which they are zero.

        Args:
            inputs: shape (N, ...).
            targets: shape (N, ...).
            labels_of: gives the sets of labels to sum over.
        """
        if self._structure:
            self._check(inputs[:2], targets[:2])
            self._structure = ""
        squares, labels = self._by_rules(inputs, targets, labels_of)
        slow = self._not_covered()
        if slow:
            squares |= self._single.squares(inputs, labels, slow)
        self._tell(slow)
        return squares

    def _by_rules(
        self, inputs: Tensor, targets: Tensor, labels_of: LabelsOf
    ) -> tuple[Squares, Sequence[WeightedLabels]]:
        """Return squares by rule and the labels; count in ``_called`` what the hooks saw."""
        self._squares, self._called, self._samples = {}, Counter(), len(inputs)
        self._require_gradients(False)
        try:
            with torch.enable_grad():
                outputs = self._model(inputs)
                labels = labels_of(targets, outputs.detach())
                for index, (y, weights) in enumerate(labels):
                    losses = self._losses_of(outputs, y)
                    total = losses.sum() if weights is None else losses @ weights.sqrt()
                    self.losses_are_finite &= total.detach().isfinite()
                    if outputs.requires_grad:
                        torch.autograd.backward(total, retain_graph=index + 1 < len(labels))
        finally:
            self._samples = 0  # the hooks have nothing to do outside of this
            self._require_gradients(True)
        return self._squares, labels

    def _require_gradients(self, required: bool) -> None:
        for parameter in self._trainable:
            parameter.requires_grad_(required)

    def _watch(
        self,
        rule: Rule,
        names: Mapping[str, str],
        module: nn.Module,
        inputs: tuple[object, ...],
        output: object,
    ) -> Tensor | None:
        """Forward hook: ask for the gradient of the output, in which the squares are formed."""
        if not self._samples:
            return None
        self._called[module] += 1
        x = inputs[0] if len(inputs) == 1 else None
        if not isinstance(x, Tensor) or not isinstance(output, Tensor) or len(x) != self._samples:
            self._called[module] += 1  # not as the rules expect it: as good as called twice
            return None
        replaced = None
        if not output.requires_grad:
            # no parameter requires gradients: let the graph begin at the first of these modules
            output = replaced = output + self._anchor.to(output.dtype)
        add = partial(self._add_squares, rule, names, module, x.detach())
        output.register_hook(add)  # type: ignore[no-untyped-call]
        return replaced

    def _add_squares(
        self, rule: Rule, names: Mapping[str, str], module: nn.Module, x: Tensor, gradient: Tensor
    ) -> None:
        dtype = accumulation_dtype(gradient)
        x = x.to(dtype) if x.is_floating_point() else x
        with torch.no_grad():
            for local, square in rule(module, x, gradient.to(dtype)).items():
                name = names.get(local)
                if name in self._squares:
                    self._squares[name] += square
                elif name is not None:
                    self._squares[name] = square

    def _not_covered(self) -> set[str]:
        fast = {
            name
            for module, (_, names) in self._covered.items()
            if self._called[module] == 1
            for name in names.values()
        }
        return (self._names - fast - self._findings.idle) | self._findings.slow

    def _check(self, inputs: Tensor, targets: Tensor) -> None:
        """Find the parameters whose rules disagree with single samples, and those of no use."""
        known = _findings.get(self._structure)
        if known is None:
            fast, _ = self._by_rules(inputs, targets, lambda y, _: [(y, None)])
            alone = self._single.one_by_one(inputs, targets, self._names)
            expected = {n: g.to(accumulation_dtype(g)).square().sum(0) for n, g in alone.items()}
            not_covered = self._not_covered()
            with_rule = {name for _, names in self._covered.values() for name in names.values()}
            idle = not_covered & with_rule - self._single.reached
            disagreeing = _disagreeing(fast, expected) - not_covered
            known = _Findings(slow=not_covered - idle | disagreeing, idle=idle)
            if disagreeing:
                logger.warning(
                    "Fisher diagonal of %s: the rules for %s disagree with single samples; vmap is "
                    "used for them",
                    type(self._model).__name__,
                    ", ".join(sorted(disagreeing)),
                )
            if all(bool(square.isfinite().all()) for square in expected.values()):
                while len(_findings) >= _REMEMBERED_CHECKS:
                    _findings.pop(next(iter(_findings)))
                _findings[self._structure] = known
        self._findings = known

    def _tell(self, slow: set[str]) -> None:
        new = slow - self._told
        if new:
            self._told |= new
            modules = sorted({name.rpartition(".")[0] or name for name in new})
            logger.info(
                "Fisher diagonal of %s: no closed form for %s; vmap is used for them",
                type(self._model).__name__,
                ", ".join(modules),
            )


def _covered(
    model: nn.Module, parameters: Mapping[str, nn.Parameter]
) -> dict[nn.Module, tuple[Rule, dict[str, str]]]:
    """Return every module with a rule, and the names of the parameters that it alone owns."""
    name_by_id = {id(p): name for name, p in parameters.items()}
    owners = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    covered = {}
    for module in model.modules():
        names = {
            local: name_by_id[id(p)]
            for local, p in module._parameters.items()
            if id(p) in name_by_id and owners[id(p)] == 1
        }
        rule = rule_for(module)
        if names and rule is not None:
            covered[module] = (rule, names)
    return covered


def _disagreeing(fast: Squares, expected: Squares) -> set[str]:
    # a bias before a normalisation has a gradient of nothing but rounding
    smallest = 1e-6 * max(float(square.norm()) for square in expected.values())
    return {
        name
        for name, square in expected.items()
        if not float((fast.get(name, 0) - square).norm())
        <= _CHECK_TOLERANCE * max(float(square.norm()), smallest)
    }


def _structure_of(model: nn.Module, parameters: Mapping[str, Tensor]) -> str:
    """Return a text that models of one class, configuration and set of parameters share."""
    shapes = ";".join(f"{name}{tuple(p.shape)}{p.dtype}" for name, p in parameters.items())
    return f"{type(model).__module__}.{type(model).__qualname__}|{model!r}|{shapes}"
