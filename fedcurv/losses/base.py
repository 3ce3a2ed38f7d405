"""What all losses of this package share."""

import math
from typing import Unpack

from torch import Tensor, nn

from fedcurv.losses.reduction import LossOptions, Reduction, loss


class RobustLoss(nn.Module):
    """A loss with the interface of ``torch.nn.CrossEntropyLoss``.

    Args:
        **options: ``weight``, ``ignore_index`` and ``reduction``; see ``LossOptions``.
    """

    weight: Tensor | None

    def __init__(self, **options: Unpack[LossOptions]) -> None:
        super().__init__()
        self.register_buffer("weight", options.get("weight"))
        self.ignore_index = options.get("ignore_index", -100)
        self.reduction: Reduction = options.get("reduction", "mean")

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


def in_range(name: str, value: float, fits: bool, wanted: str) -> float:
    """Return a setting, or raise a ValueError that says what was wanted."""
    if not fits or not math.isfinite(value):
        raise ValueError(f"{name} must be finite and {wanted}, got {value!r}")
    return value
