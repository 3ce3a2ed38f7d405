"""FedNova's part of a client: how far its optimizer goes (arXiv 2007.07481)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message
from torch import Tensor, nn

from fedcurv.clients.methods.term import MethodTerm, require_sgd
from fedcurv.clients.settings import TrainingSettings
from fedcurv.clients.terms import LocalTerm, ProximalTerm

_ONE_PROCESS = "the steps of a site's workers are not one optimizer's; use client.trainer=local"


class FedNovaTerm(MethodTerm):
    """Adds nothing to the objective, and counts the steps.

    What is told is τ = Σ_k lr_k a_k for x − y = Σ_k lr_k a_k g_k: how far the optimizer would have
    gone if every gradient had been 1. All of SGD's weights a_k are >= 0, so that this is their sum.

    With FedProx's μ a way back is part of every step, 1 − μ·(how far) in the place of 1: the sum is
    (1 − (1 − lr·μ)^K)/μ for K steps.
    """

    method = "fednova"

    def __init__(self, message: Message, context: Context, model: nn.Module, **more: Any) -> None:
        super().__init__(message, context, model, **more)
        self._mu = _mu_in(message)
        self._way = self._speed = 0.0
        self._steps = 0

    @classmethod
    def require_settings(cls, settings: TrainingSettings) -> None:
        """Raise a ValueError unless one optimizer takes the steps, and it is SGD."""
        if not settings.is_sgd:
            raise ValueError(f"fednova holds for SGD, got client.optimizer={settings.optimizer}")
        if settings.trainer != "local":
            raise ValueError(f"fednova: {_ONE_PROCESS}")

    def require_alone(self, others: Sequence[LocalTerm]) -> None:
        """Allow FedProx's term, which the sum knows."""
        super().require_alone([term for term in others if not isinstance(term, ProximalTerm)])

    def for_workers(self) -> LocalTerm:
        """Refuse: nobody counts the steps of a site's workers."""
        raise ValueError(f"fednova: {_ONE_PROCESS}")

    def _require_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        held = self._steppable.held_by(optimizer)
        rate = require_sgd(self.method, optimizer, held)
        if missing := sorted(set(self.names) - set(held)):
            raise ValueError(
                f"fednova: expected one optimizer of all trainable parameters, got one without "
                f"{missing[:3]}; freeze these, or give it them"
            )
        kinds = {
            (g["momentum"], g["dampening"], bool(g["nesterov"])) for g in optimizer.param_groups
        }
        if len(kinds) > 1:
            raise ValueError("fednova holds for one momentum; give all parameter groups the same")
        ((momentum, _, _),) = kinds
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"fednova: expected a momentum in [0, 1), got {momentum!r}")
        if momentum and self._mu:
            raise ValueError(
                "fednova does not hold for FedProx's term and momentum together, under which a "
                "gradient acts in turn downhill and uphill; use one of the two"
            )
        if rate * self._mu > 1.0:
            raise ValueError(
                f"fednova: expected lr·μ <= 1, got {rate * self._mu:g}, with which FedProx's term "
                "overshoots; lower either"
            )
        if momentum and not self._steps:
            states = [optimizer.state.get(p, {}) for p in self._steppable.parameters]
            if any(state.get("momentum_buffer") is not None for state in states):
                raise ValueError(
                    "fednova: expected an optimizer without momentum from before the round, got "
                    "one that has stepped; make a new one in every round"
                )

    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        group = optimizer.param_groups[0]
        momentum, rate = float(group["momentum"]), float(group["lr"])
        gradient = 1.0 - self._mu * self._way
        step = gradient
        if momentum:
            # as torch does, whose first step is not dampened
            fresh = 1.0 - float(group["dampening"]) if self._steps else 1.0
            self._speed = momentum * self._speed + fresh * gradient
            step = gradient + momentum * self._speed if group["nesterov"] else self._speed
        self._way += rate * step
        self._steps += 1

    def _finish(self, trained: Mapping[str, Tensor]) -> tuple[float, str]:
        if not self._way > 0.0:
            raise ValueError(
                f"fednova: {self._client} took {self._steps} steps with learning rates that are 0 "
                "in sum; train the model that ClientTerm got, with lr > 0"
            )
        return self._way, ""


def _mu_in(message: Message) -> float:
    for record in message.content.config_records.values():
        if isinstance(record, ConfigRecord) and "proximal-mu" in record:
            mu = record["proximal-mu"]
            if not isinstance(mu, int | float) or not mu >= 0.0:
                raise ValueError(f"expected 'proximal-mu' >= 0 in the message, got {mu!r:.60}")
            return float(mu)
    return 0.0
