"""SCAFFOLD's part of a client: its control variate (arXiv 1910.06378, option II)."""

import os
from collections.abc import Mapping

import torch
from flwr.app import Context, Message
from torch import Tensor, nn

from fedcurv.clients.methods.remembering import RememberingTerm
from fedcurv.clients.methods.term import require_sgd
from fedcurv.clients.settings import TrainingSettings
from fedcurv.clients.terms import AffineGradient, LocalTerm
from fedcurv.curvature import shapes_of
from fedcurv.parameters import gradients_of
from fedcurv.steps import scale_of

_ONE_PROCESS = "the steps of a site's workers are not one optimizer's; use client.trainer=local"


class ScaffoldTerm(RememberingTerm):
    """Adds c − c_i to every gradient; then c_i ← c_i − c + (x − y)/Σ_k lr_k.

    With one learning rate for K steps the divisor is the paper's K·lr. Weight decay is part of the
    objective, and of the control variate.
    """

    method, part = "scaffold", "control"

    def __init__(
        self,
        message: Message,
        context: Context,
        model: nn.Module,
        *,
        state_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(message, context, model, state_dir=state_dir)
        control = self._told.control
        of_model = {
            name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)
        }
        wanted = {name: of_model[name] for name in self._names}
        if control and shapes_of(control) != wanted:
            raise ValueError(
                f"scaffold: expected the server's control variate for {sorted(wanted)[:3]} and so "
                f"on, got it for {sorted(control)[:3]}, or with other shapes; let all clients "
                "train the same parameters"
            )
        names = self.names if control else []
        self._control = {n: control[n] for n in names}  # the message's own bytes
        self._rates = 0.0
        self._pulls: list[Tensor] = []
        if self._control or self._own:
            self._pulls = [self._pull(name).to(s.dtype) for name, s in self._start.items()]

    def _pull(self, name: str) -> Tensor:
        """Return c − c_i, in double precision."""
        return self._control_of(name) - self._own_of(name)

    def _control_of(self, name: str) -> Tensor:
        start, control = self._start[name], self._control.get(name)
        if control is None:
            return torch.zeros_like(start, dtype=torch.float64)
        return control.to(start.device, torch.float64)

    @classmethod
    def require_settings(cls, settings: TrainingSettings) -> None:
        """Raise a ValueError unless one optimizer takes the steps: SGD without momentum."""
        if not settings.is_sgd or settings.has_momentum:
            with_momentum = " with momentum" if settings.is_sgd else ""
            raise ValueError(
                "scaffold holds for SGD without momentum, got "
                f"client.optimizer={settings.optimizer}{with_momentum}"
            )
        if settings.trainer != "local":
            raise ValueError(f"scaffold: {_ONE_PROCESS}")

    def for_workers(self) -> LocalTerm:
        """Refuse: nobody counts the steps of a site's workers."""
        raise ValueError(f"scaffold: {_ONE_PROCESS}")

    def _require_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        held = self._steppable.held_by(optimizer)
        require_sgd(self.method, optimizer, held)
        if any(group["momentum"] for group in optimizer.param_groups):
            raise ValueError(
                "scaffold holds for SGD without momentum, got momentum="
                f"{optimizer.param_groups[0]['momentum']}; use 0"
            )

    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        felt: set[int] = set()
        for group, indices in self._steppable.stepped_by(optimizer):
            felt.update(indices)
            gradients = gradients_of([self._steppable.parameters[i] for i in indices])
            if self._pulls:
                pulls, scale = [self._pulls[i] for i in indices], scale_of(optimizer, group)
                if isinstance(scale, Tensor):
                    pulls = [pull * scale for pull in pulls]
                torch._foreach_add_(gradients, pulls)
        if missing := [n for i, n in enumerate(self.names) if i not in felt]:
            raise ValueError(
                "scaffold: expected steps of all trainable parameters, got one without "
                f"{missing[:3]}; freeze these before the round begins, or give them to the "
                "optimizer"
            )
        self._rates += float(optimizer.param_groups[0]["lr"])

    def _affine(self, lr: float) -> AffineGradient:
        pulls = zip(self.names, self._pulls, strict=True) if self._pulls else ()
        return AffineGradient(shift=dict(pulls))

    def note_steps(self, number: int, lr: float) -> None:
        """Count the learning rates."""
        self._rates += number * lr

    def _finish(self, trained: Mapping[str, Tensor]) -> tuple[float, str]:
        if not self._rates > 0.0:
            raise ValueError(
                f"scaffold: {self._client} took no steps of the model that the term is about, or "
                "with learning rates of 0; train the model that ClientTerm got, with lr > 0"
            )
        own = {}
        for name in self.names:
            fresh = self._own_of(name) - self._way_of(name, trained) / self._rates
            own[name] = (fresh - self._control_of(name)).float()
        self._remember(own)
        return self._rates, self._began_from
