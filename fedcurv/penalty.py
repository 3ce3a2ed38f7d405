"""FedCurv's penalty λ Σ_j (θ − θ̂_j)ᵀ diag(F_j) (θ − θ̂_j), from the sums of F_j and F_j θ̂_j.

Three ways to feel it: as a term of the loss, as a gradient 2λ(Pθ − Q) added before the optimiser's
step, or as an exact proximal step after it. The Hessian is 2λP, so the first two diverge once
lr·λ·max(P) > 1; the proximal step is stable for every λ and learning rate.
"""

import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from fedcurv.curvature import Curvature, require_same_shapes, shapes_of
from fedcurv.parameters import (
    accumulation_dtype,
    gradients_of,
    listed,
    trainable_parameters,
)
from fedcurv.quadratic import Quadratic

PenaltyMode = Literal["gradient", "proximal"]

_Hook = Callable[[torch.optim.Optimizer, Any, Any], None]


def checked_strength(strength: float) -> float:
    """Return λ as a float.

    Raises:
        ValueError: if it is negative or not finite.
    """
    if not 0.0 <= strength < math.inf:
        raise ValueError(
            f"strength must be finite and >= 0, got {strength!r}; use 0 for plain FedAvg"
        )
    return float(strength)


class CurvaturePenalty:
    """The pull of other nodes' curvature on one model's parameters.

    It holds two numbers for each parameter, in float32 at least: P and Q; or, once proximal steps
    are taken, what makes them a single operation (see :meth:`proximal_step`).

    Args:
        model: its trainable parameters must be exactly those of ``curvature``.
        curvature: the other nodes' sums; copied to the parameters' device and precision once.
        strength: λ >= 0. There is no ½ in front (arXiv 1910.07796).
        consume: take over the tensors of ``curvature`` where that spares a copy; it must not be
            used afterwards.

    Attributes:
        strength: λ.
        found_optimizer: whether it has been attached to an optimizer of the model's parameters.

    Raises:
        ValueError: if strength is negative or not finite, the parameters differ, or the statistics
            are not valid.
    """

    def __init__(
        self, model: nn.Module, curvature: Curvature, *, strength: float, consume: bool = False
    ) -> None:
        self.strength = checked_strength(strength)
        parameters = trainable_parameters(model)
        require_same_shapes(
            shapes_of(parameters), shapes_of(curvature.precision), "the model", "the statistics"
        )
        curvature.check()
        self._names = list(parameters)
        self._parameters: list[Tensor] = list(parameters.values())
        self.found_optimizer = False
        # by optimizer that it is attached to, the indices of each group's parameters
        self._groups: weakref.WeakKeyDictionary[torch.optim.Optimizer, list[list[int]]] = (
            weakref.WeakKeyDictionary()
        )
        self._quadratics = [
            Quadratic(
                _beside(p.detach(), curvature.precision[n], copy=not consume),
                _beside(p.detach(), curvature.information[n], copy=not consume),
            )
            for n, p in parameters.items()
        ]
        self._largest = max(float(s.first.max()) for s in self._quadratics if s.first.numel())
        # a bfloat16 gradient could not hold Pθ before Q is taken off it
        self._mixes_types = any(
            s.first.dtype != p.dtype
            for p, s in zip(self._parameters, self._quadratics, strict=True)
        )

    @property
    def curvature(self) -> Curvature:
        """The statistics that pull, as copies."""
        precision = {n: q.precision().clone() for n, q in self._named_quadratics()}
        information = {n: q.information().clone() for n, q in self._named_quadratics()}
        return Curvature(precision, information)

    def _named_quadratics(self) -> Iterable[tuple[str, Quadratic]]:
        return zip(self._names, self._quadratics, strict=True)

    def value(self) -> Tensor:
        """Return λ Σ_i P_i (θ_i − Q_i/P_i)², a scalar with gradient 2λ(Pθ − Q), to add to a loss.

        This is the double sum of the definition less its minimum over θ, a constant that says how
        far the nodes' solutions lie apart and that no step can change. So it is >= 0, it is 0 at
        the others' shared optimum, and float32 loses nothing to cancellation.
        """
        terms = []
        for parameter, quadratic in zip(self._parameters, self._quadratics, strict=True):
            away = parameter - quadratic.optimum(parameter.detach())
            terms.append((quadratic.precision() * away.square()).sum())
        return self.strength * torch.stack(terms).sum()

    @torch.no_grad()
    def add_gradient(self, scale: float | Tensor = 1.0) -> None:
        """Add 2λ(Pθ − Q), times ``scale``, to every parameter's ``.grad`` (made if it is None)."""
        if self.strength == 0.0:
            return
        for quadratic in self._quadratics:
            quadratic.become_sums()
        precision = [s.first for s in self._quadratics]
        information = [s.second for s in self._quadratics]
        gradients = gradients_of(self._parameters)
        factor = 2.0 * self.strength
        if isinstance(scale, float) and not self._mixes_types:
            torch._foreach_addcmul_(gradients, precision, self._parameters, value=factor * scale)
            torch._foreach_add_(gradients, information, alpha=-factor * scale)
            return
        pull = torch._foreach_mul(precision, self._parameters)
        torch._foreach_sub_(pull, information)
        torch._foreach_mul_(pull, scale)
        torch._foreach_add_(gradients, pull, alpha=factor)

    @torch.no_grad()
    def proximal_step(self, lr: float | Mapping[str, float]) -> None:
        """Set θ ← (θ + 2·lr·λ·Q) / (1 + 2·lr·λ·P), elementwise.

        This is the minimiser of ‖u − θ‖²/(2·lr) + λ(uᵀPu − 2uᵀQ) over u. As long as a learning rate
        stays, the step is computed as θ + W(θ* − θ), with θ* = Q/P and W = cP/(1 + cP), c = 2·lr·λ,
        which are held in the place of Q and P.

        Args:
            lr: learning rate >= 0 of all parameters, or of each by name (those left out stay).
        """
        if self.strength == 0.0:
            return
        rates = lr if isinstance(lr, Mapping) else dict.fromkeys(self._names, lr)
        by_rate: dict[float, list[int]] = {}
        for index, name in enumerate(self._names):
            if name in rates:
                by_rate.setdefault(rates[name], []).append(index)
        for rate, indices in by_rate.items():
            self._step_towards_optimum(indices, rate)

    def _step_towards_optimum(
        self, indices: Sequence[int], lr: float, skipped: Tensor | None = None
    ) -> None:
        """Take the proximal step of some parameters, or none where ``skipped`` is 1."""
        if lr == 0.0 or not indices:
            return
        parameters = [self._parameters[i] for i in indices]
        quadratics = [self._quadratics[i] for i in indices]
        factor = 2.0 * lr * self.strength
        for quadratic in quadratics:
            quadratic.become_proximal(factor)
        weights, optima = [q.first for q in quadratics], [q.second for q in quadratics]
        if skipped is not None:  # asked on the device: the host must not wait for an answer
            weights = list(torch._foreach_mul(weights, 1.0 - skipped))
        if self._mixes_types:
            for parameter, weight, optimum in zip(parameters, weights, optima, strict=True):
                parameter.copy_(parameter.to(weight).lerp_(optimum, weight))
        else:
            torch._foreach_lerp_(parameters, optima, weights)

    def attach(
        self, optimizer: torch.optim.Optimizer | None = None, *, mode: PenaltyMode = "gradient"
    ) -> RemovableHandle:
        """Make every ``optimizer.step()`` feel the penalty; ``handle.remove()`` ends it.

        Args:
            optimizer: must hold the model's trainable parameters; learning rates are read at each
                step, so schedulers and parameter groups work. None is for training code that makes
                its own: whichever optimizer steps with these parameters, as long as this object
                lives.
            mode: ``gradient`` adds the penalty's gradient before the step: the paper's way, after
                any clipping of the loss's own gradient. ``proximal`` follows the step with the
                exact proximal one, whose learning rate is each group's ``lr``.

        Raises:
            ValueError: for an unknown mode or an optimizer without some of the parameters; for the
                optimizer that is found later, at its first step.
            TypeError: for LBFGS, which evaluates the loss several times within a step; likewise.
            RuntimeError: at a step that is given a closure in mode ``gradient``, whose backward
                pass would come after the penalty's gradient; add :meth:`value` to the loss there.
        """
        if mode not in get_args(PenaltyMode):
            raise ValueError(
                f"mode must be one of {', '.join(get_args(PenaltyMode))}, got {mode!r}"
            )
        if optimizer is None:
            return self._attach_to_any(mode)
        self._check(optimizer, mode)
        if mode == "gradient":
            return optimizer.register_step_pre_hook(self._before_step)
        return optimizer.register_step_post_hook(self._after_step)

    def _attach_to_any(self, mode: PenaltyMode) -> RemovableHandle:
        # hooks of all optimizers outlive whoever attached: they must not keep the penalty alive
        this = weakref.ref(self)

        def hook(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            penalty = this()
            if penalty is None or not penalty._concerns(optimizer, mode):
                return
            (penalty._before_step if mode == "gradient" else penalty._after_step)(
                optimizer, args, kwargs
            )

        register: Callable[[_Hook], RemovableHandle] = (
            register_optimizer_step_pre_hook
            if mode == "gradient"
            else register_optimizer_step_post_hook
        )
        handle = register(hook)
        weakref.finalize(self, handle.remove)
        return handle

    def _concerns(self, optimizer: torch.optim.Optimizer, mode: PenaltyMode) -> bool:
        if optimizer in self._groups:
            return True
        own = {id(p) for p in self._parameters}
        if own.isdisjoint(id(p) for group in optimizer.param_groups for p in group["params"]):
            return False
        self._check(optimizer, mode)
        return True

    def _check(self, optimizer: torch.optim.Optimizer, mode: PenaltyMode) -> None:
        """Refuse an optimizer that cannot feel the penalty; note which parameters it has where."""
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TypeError(
                "expected an optimizer that takes one gradient per step, got LBFGS; add "
                "penalty.value() to the loss inside its closure instead"
            )
        index_by_id = {id(p): index for index, p in enumerate(self._parameters)}
        groups = [
            [index_by_id[id(p)] for p in group["params"] if id(p) in index_by_id]
            for group in optimizer.param_groups
        ]
        held = {index for group in groups for index in group}
        missing = [name for index, name in enumerate(self._names) if index not in held]
        if missing:
            raise ValueError(
                "expected an optimizer with all trainable parameters of the model, got one without "
                f"{listed(missing)}; make the optimizer from the same model, or freeze these with "
                "requires_grad_(False)"
            )
        if mode == "gradient":
            self._warn_of_divergence(max(float(group["lr"]) for group in optimizer.param_groups))
        self._groups[optimizer] = groups
        self.found_optimizer = True

    def _warn_of_divergence(self, lr: float) -> None:
        if lr * self.strength * self._largest > 1:
            # Python shows a warning of one text once, not for every client and round
            warnings.warn(
                f"strength={self.strength:g} at lr={lr:g}: lr·strength·max(P) is above 1, where "
                "plain gradient steps on the penalty diverge; use mode='proximal', or a smaller "
                "strength",
                RuntimeWarning,
                stacklevel=4,
            )

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if any(argument is not None for argument in (*args[1:], kwargs.get("closure"))):
            raise RuntimeError(
                "expected optimizer.step() without a closure while a penalty is attached in mode "
                "'gradient', got one; add penalty.value() to the loss inside the closure instead"
            )
        # set while torch.amp.GradScaler runs a fused optimizer, whose gradients are still scaled
        scale = getattr(optimizer, "grad_scale", None)
        self.add_gradient(1.0 if scale is None else scale)

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self.strength == 0.0:
            return
        # set likewise: 1 where the optimizer skipped this step, so that there is none to follow
        skipped = getattr(optimizer, "found_inf", None)
        groups = self._groups[optimizer]
        for indices, group in zip(groups, optimizer.param_groups, strict=False):
            self._step_towards_optimum(indices, float(group["lr"]), skipped)


def _beside(parameter: Tensor, statistic: Tensor, *, copy: bool) -> Tensor:
    """Return a statistic laid out as its parameter is, in float32 at least: Pθ − Q cancels."""
    dtype = accumulation_dtype(parameter)
    fits = (statistic.device, statistic.dtype, statistic.stride()) == (
        parameter.device,
        dtype,
        parameter.stride(),
    )
    if fits and not copy:
        return statistic
    return torch.empty_like(parameter, dtype=dtype).copy_(statistic)
