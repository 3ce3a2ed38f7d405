"""Base class of the losses."""

import math
from collections.abc import Callable
from numbers import Real

from torch import Tensor, nn

from fedcurv.losses.reduction import Reduction, loss


class RobustLoss(nn.Module):
    """A loss with the interface of ``torch.nn.CrossEntropyLoss``.

    Args:
        weight: see ``LossOptions``.
        ignore_index: see ``LossOptions``.
        reduction: see ``LossOptions``.
    """

    weight: Tensor | None

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction

    def of_labels(self, logits: Tensor) -> Tensor:
        """Return the loss under every label, in the shape of the logits (N, C, ...)."""
        raise NotImplementedError

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss.

        Args:
            logits: shape (C,), (N, C) or (N, C, d1, ...), of any precision.
            targets: labels, of that shape without C; or probabilities of labels, of that shape.
        """
        return loss(
            self.of_labels,
            logits,
            targets,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


def in_range(name: str, value: float, fits: Callable[[float], bool], wanted: str) -> float:
    """Return a setting, or raise a ValueError that says what was wanted."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not fits(value):
        raise ValueError(f"{name} must be finite and {wanted}, got {value!r}")
    return value


def loss_of_logits(name: str, loss: RobustLoss | None, default: type[RobustLoss]) -> RobustLoss:
    """Return a loss that another is made of, or raise a ValueError if it is none of these."""
    if loss is None:
        return default()
    if not isinstance(loss, RobustLoss):
        raise ValueError(
            f"{name} must be a loss of fedcurv.losses, such as {default.__name__}(), got {loss!r}"
        )
    return loss
