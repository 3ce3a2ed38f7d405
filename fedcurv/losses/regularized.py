"""Cross-entropy with output regularisation."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor

from fedcurv.losses import formulas
from fedcurv.losses.base import RobustLoss, in_range
from fedcurv.losses.reduction import LossOptions
from fedcurv.losses.registry import register_loss
from fedcurv.losses.regularizers import Regularizer, regularizer_of

logger = logging.getLogger(__name__)

Schedule = Callable[[int], float]


class RegularizedCrossEntropy(RobustLoss):
    """(−log p_y + λ R(z)) / (1 + λ): the larger λ, the closer to symmetric.

    As λ grows, logits shrink as 1/λ and still tell the labels apart. Divided by 1 + λ the loss
    keeps its scale and the learning rate stays; with ``normalize=False`` it must go as 1/(1 + λ).

    Args:
        regularizer: ``label_smoothing``, ``entropy``, ``squared_output``, ``logit``, or a function
            R from logits (N, C, ...) to shape (N, ...).
        strength: λ, finite and >= 0; or a schedule, called with 0 and, by :meth:`advance`, 1, 2, ….
            ``state_dict`` holds λ and the position in the schedule. One without the position, of
            an earlier version, is loaded too: λ is its own, the position stays, and a warning says
            so.
        normalize: divide by 1 + λ.
        **options: see ``LossOptions``.

    Raises:
        ValueError: for an unknown name, or a strength that is negative or not finite.

    Source: arXiv 2104.12477 shows that label smoothing and entropy become symmetric as λ → ∞.
    """

    _strength: Tensor
    _steps: Tensor

    def __init__(
        self,
        regularizer: str | Regularizer = "label_smoothing",
        strength: float | Schedule = 1.0,
        *,
        normalize: bool = True,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.regularizer = regularizer_of(regularizer)
        self.normalize = normalize
        self._schedule = strength if callable(strength) else None
        self.register_buffer("_steps", torch.zeros((), dtype=torch.long))
        # a buffer, so that a compiled loss need not be compiled anew for each value
        self.register_buffer("_strength", torch.zeros(()))
        self.strength = strength(0) if callable(strength) else strength

    @property
    def strength(self) -> float:
        """λ; may be set."""
        return float(self._strength)

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength.fill_(in_range("strength", value, lambda v: v >= 0, ">= 0"))

    def advance(self) -> None:
        """Set λ to the schedule's next value, as a learning rate's scheduler does with ``step``.

        Raises:
            RuntimeError: if the strength is no schedule.
        """
        if self._schedule is None:
            raise RuntimeError("expected a schedule for strength, got a number; set it instead")
        self._steps += 1
        self.strength = self._schedule(int(self._steps))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        key = f"{prefix}_steps"
        if key not in state_dict and f"{prefix}_strength" in state_dict:
            state_dict[key] = self._steps
            if self._schedule is not None:
                logger.warning(
                    "the state has λ = %g, but not the position in its schedule, which stays at "
                    "%d; call advance() as often as it had been called",
                    float(state_dict[f"{prefix}_strength"]),
                    int(self._steps),
                )
        super()._load_from_state_dict(state_dict, prefix, *others)

    def of_labels(self, logits: Tensor) -> Tensor:
        """Return the loss under every label."""
        return formulas.regularized_cross_entropy(
            logits, self.regularizer, self._strength, normalize=self.normalize
        )


for _name in ("label_smoothing", "entropy", "squared_output", "logit"):
    register_loss(_name)(partial(RegularizedCrossEntropy, _name))
