"""FedDyn's part of a client: a linear term and a quadratic one (arXiv 2111.04263)."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Context, Message
from torch import Tensor, nn

from fedcurv.clients.methods.remembering import RememberingTerm
from fedcurv.clients.settings import TrainingSettings
from fedcurv.clients.terms import AffineGradient, LocalTerm
from fedcurv.parameters import gradients_of
from fedcurv.steps import (
    Steppable,
    once_a_step,
    require_hooks,
    require_no_closure,
    require_single_gradient,
    scale_of,
)

_IN_LOSS = "add −⟨g, θ⟩ + (α/2)·‖θ − θ_t‖² to the loss inside its closure instead"


class FedDynTerm(RememberingTerm):
    """Adds −⟨g, θ⟩ + (α/2)‖θ − θ_t‖² to the objective; then g ← g − α(θ − θ_t).

    Any optimizer may minimise it, in any number of steps, and so may a site's workers.
    """

    method, part = "feddyn", "linear"

    def __init__(
        self,
        message: Message,
        context: Context,
        model: nn.Module,
        *,
        state_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(message, context, model, state_dir=state_dir)
        self._alpha = self._told.number
        if not 0.0 < self._alpha < math.inf:
            raise ValueError(f"feddyn: expected α > 0 and finite, got {self._alpha!r}")
        anchors = list(self._start.values())
        self._pull = _Pull(self._steppable, anchors, self._alpha, self._own)
        self._is_attached, self._steps = False, 0

    def attach_to(self, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Make every step feel the term; see ``MethodTerm``."""
        self._is_attached = True
        return super().attach_to(optimizer)

    def for_workers(self) -> LocalTerm:
        """Return the term alone."""
        return FedDynPull(self._alpha, {name: own.cpu() for name, own in self._own.items()})

    def _require_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        _require_fit(optimizer, self._steppable)

    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._pull.add_to_gradients(optimizer)
        self._steps += 1

    def _affine(self, lr: float) -> AffineGradient:
        return AffineGradient(self._alpha, {name: -own for name, own in self._own.items()})

    def _finish(self, trained: Mapping[str, Tensor]) -> tuple[float, str]:
        if self._is_attached and not self._steps:
            raise ValueError(
                f"feddyn: {self._client} took no steps of the model that the term is about; train "
                "the model that ClientTerm got"
            )
        self._remember(
            {n: (self._own_of(n) - self._alpha * self._way_of(n, trained)).float() for n in trained}
        )
        return 1.0, self._began_from


@dataclass(frozen=True)
class FedDynPull(LocalTerm):
    """FedDyn's term around the weights that a worker begins with.

    Attributes:
        alpha: α > 0.
        linear: g by parameter name; nothing for zero.
    """

    alpha: float
    linear: Mapping[str, Tensor]

    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, settings: TrainingSettings
    ) -> object:
        """Add the term's gradient before every step."""
        require_hooks(optimizer)
        steppable = Steppable({n: p for n, p in model.named_parameters() if p.requires_grad})
        _require_fit(optimizer, steppable)
        anchors = [p.detach().clone() for p in steppable.parameters]
        pull = _Pull(steppable, anchors, self.alpha, self.linear)

        @torch.no_grad()
        def felt(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            require_no_closure(args, kwargs, "FedDyn's term is attached", _IN_LOSS)
            pull.add_to_gradients(optimizer)

        return optimizer.register_step_pre_hook(once_a_step(felt))


class _Pull:
    """The term's gradient, −g + α(θ − θ_t), with the anchors for θ_t."""

    def __init__(
        self,
        steppable: Steppable,
        anchors: Sequence[Tensor],
        alpha: float,
        linear: Mapping[str, Tensor],
    ) -> None:
        self._steppable, self._alpha = steppable, alpha
        self._anchors = anchors
        named = zip(steppable.names, steppable.parameters, strict=True)
        self._linear = [linear[n].to(p.device, p.dtype) for n, p in named] if linear else []

    def add_to_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        for group, indices in self._steppable.stepped_by(optimizer):
            parameters = [self._steppable.parameters[i] for i in indices]
            pulls = torch._foreach_sub(parameters, [self._anchors[i] for i in indices])
            torch._foreach_mul_(pulls, self._alpha)
            if self._linear:
                torch._foreach_sub_(pulls, [self._linear[i] for i in indices])
            scale = scale_of(optimizer, group)
            if isinstance(scale, Tensor):
                torch._foreach_mul_(pulls, scale)
                scale = 1.0
            torch._foreach_add_(gradients_of(parameters), pulls, alpha=scale)


def _require_fit(optimizer: torch.optim.Optimizer, steppable: Steppable) -> None:
    require_single_gradient(optimizer, _IN_LOSS)
    steppable.require_dense_steps(optimizer, "take SGD or Adagrad, or sparse=False")
