"""FedNova's part of a client: how far its optimizer goes (arXiv 2007.07481)."""

import weakref
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message
from torch import Tensor, nn

from fedcurv.clients.methods.term import MethodTerm, require_sgd
from fedcurv.clients.settings import TrainingSettings
from fedcurv.clients.terms import AffineGradient, LocalTerm, ProximalTerm
from fedcurv.parameters import listed

_ONE_PROCESS = "the steps of a site's workers are not one optimizer's; use client.trainer=local"
_ZEROS = "call zero_grad(set_to_none=False)"


class FedNovaTerm(MethodTerm):
    """Adds nothing to the objective, and counts the steps.

    What is told is τ = Σ_k lr_k a_k for x − y = Σ_k lr_k a_k g_k: how far the optimizer would have
    gone if every gradient had been 1. All of SGD's weights a_k are >= 0, so that this is their sum.

    With FedProx's μ a way back is part of every step, 1 − μ·(how far) in the place of 1: the sum is
    (1 − (1 − lr·μ)^K)/μ for K steps.

    A parameter without a gradient counts as one whose gradient is 0, which is what its step does as
    long as neither momentum nor FedProx's term would move it on; a step without any is none.
    """

    method = "fednova"

    def __init__(self, message: Message, context: Context, model: nn.Module, **more: Any) -> None:
        super().__init__(message, context, model, **more)
        self._mu = _mu_in(message)
        self._way = 0.0
        self._steps = 0
        self._moved: set[int] = set()
        # with the state that holds the momentum, which may be replaced
        self._speeds: weakref.WeakKeyDictionary[torch.optim.Optimizer, tuple[object, float]] = (
            weakref.WeakKeyDictionary()
        )

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
        self._require_no_overshoot(rate)
        if momentum and not self._knows_momentum_of(optimizer):
            indices = range(len(self._steppable.parameters))
            if any(self._has_momentum(optimizer, i) for i in indices):
                raise ValueError(
                    "fednova: expected an optimizer whose momentum begins within the round, got "
                    "one that stepped before it, or that was given a state; make a new one in "
                    "every round"
                )

    def _require_no_overshoot(self, lr: float) -> None:
        if lr * self._mu > 1.0:
            raise ValueError(
                f"fednova: expected lr·μ <= 1, got {lr * self._mu:g}, with which FedProx's term "
                "overshoots; lower either"
            )

    def _affine(self, lr: float) -> AffineGradient:
        self._require_no_overshoot(lr)
        return AffineGradient()

    def note_steps(self, number: int, lr: float) -> None:
        """Count the steps, each with the way back that FedProx's term takes."""
        for _ in range(number):
            self._way += lr * (1.0 - self._mu * self._way)
        self._steps += number

    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        moved = {i for i, p in enumerate(self._steppable.parameters) if p.grad is not None}
        if not moved:
            return
        group = optimizer.param_groups[0]
        momentum, rate = float(group["momentum"]), float(group["lr"])
        if momentum or self._mu:
            self._require_gradients(moved, "momentum" if momentum else "FedProx's term")
        gradient = 1.0 - self._mu * self._way
        step = gradient
        if momentum:
            speed = gradient  # as torch does, whose first step is not dampened
            if self._goes_on(optimizer, moved):
                fresh = 1.0 - float(group["dampening"])
                speed = momentum * self._speeds[optimizer][1] + fresh * gradient
            self._speeds[optimizer] = (optimizer.state, speed)
            step = gradient + momentum * speed if group["nesterov"] else speed
        self._way += rate * step
        self._steps += 1
        self._moved |= moved

    def _require_gradients(self, moved: Set[int], why: str) -> None:
        """Raise a ValueError if a parameter that has moved in this round does not move now."""
        if still := sorted(self._moved - moved):
            raise ValueError(
                f"fednova: with {why} expected gradients of the same parameters in all steps, got "
                f"none now for {listed([self.names[i] for i in still])}, which the step leaves "
                f"where they are; {_ZEROS}"
            )

    def _goes_on(self, optimizer: torch.optim.Optimizer, moved: Set[int]) -> bool:
        """Return whether the optimizer has momentum already; of all that move, or of none."""
        begin = {i for i in moved if not self._has_momentum(optimizer, i)}
        if begin == moved:
            return False
        # who had gradients of 0 until now has no momentum either, unless the first is not dampened
        if odd := sorted(begin if optimizer.param_groups[0]["dampening"] else begin & self._moved):
            raise ValueError(
                "fednova: expected momentum of all parameters that begins in the same step, got "
                f"none yet for {listed([self.names[i] for i in odd])}; {_ZEROS}, and clear the "
                "optimizer's state as a whole or not at all"
            )
        return True

    def _knows_momentum_of(self, optimizer: torch.optim.Optimizer) -> bool:
        known = self._speeds.get(optimizer)
        return known is not None and known[0] is optimizer.state

    def _has_momentum(self, optimizer: torch.optim.Optimizer, index: int) -> bool:
        state = optimizer.state.get(self._steppable.parameters[index], {})
        return state.get("momentum_buffer") is not None

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
