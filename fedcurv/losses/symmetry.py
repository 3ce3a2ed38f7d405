"""Symmetry of a loss, which decides how much label noise it tolerates."""

import math

import torch
from torch import Tensor, nn

from fedcurv.losses.base import RobustLoss


@torch.no_grad()
def symmetry_gap(loss: nn.Module, logits: Tensor) -> float:
    """Return (max − min over samples of Σ_k ℓ(z, k)) / C: 0 for a symmetric loss.

    Infinite if any of the sums is, as cross-entropy's is beside an impossible class.

    A loss is symmetric if its sum over all labels does not depend on the prediction; under uniform
    label noise it then has the minimisers that it has without.

    Args:
        loss: of this package, or any module with ``reduction="none"`` that takes logits (N, C) and
            labels (N,).
        logits: shape (N, C) or (N, C, ...), of at least one sample.

    Raises:
        ValueError: for logits of another shape, or a loss without one value per sample.
    """
    if logits.ndim < 2 or logits.numel() == 0:
        raise ValueError(
            f"expected logits (N, C, ...) of at least one sample, got shape {tuple(logits.shape)}"
        )
    samples, classes = logits[:, 0], logits.shape[1]
    if isinstance(loss, RobustLoss):
        total = loss.of_labels(logits).sum(1)
    else:
        labels = [torch.full_like(samples, k, dtype=torch.long) for k in range(classes)]
        total = torch.stack([loss(logits, label) for label in labels]).sum(0)
        if total.shape != samples.shape:
            raise ValueError(
                f"expected a loss with one value per sample, shape {tuple(samples.shape)}, got "
                f"{tuple(total.shape)}; set reduction='none'"
            )
    if bool(total.isinf().any()):
        return math.inf
    return float(total.max() - total.min()) / classes
