"""From the loss under every label to a number, as ``torch.nn.functional.cross_entropy`` does it."""

from typing import Literal, TypedDict, get_args

import torch
from torch import Tensor

from fedcurv.losses.formulas import Formula
from fedcurv.parameters import accumulation_dtype

Reduction = Literal["none", "mean", "sum"]


class LossOptions(TypedDict, total=False):
    """What every loss takes beside its own settings.

    weight: of the classes, shape (C,); None for ones. The loss under label k counts w_k times, and
        ``mean`` over labels divides by the sum of the labels' weights.
    ignore_index: the label of positions that do not count; labels only, not probabilities.
    reduction: ``none``, ``mean`` or ``sum``.
    """

    weight: Tensor | None
    ignore_index: int
    reduction: Reduction


def loss(
    formula: Formula,
    logits: Tensor,
    targets: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return a loss for labels, or its expectation for probabilities of labels.

    Computed in float32 at least, whatever the logits are in.

    Args:
        formula: gives the loss under every label.
        logits: shape (C,), (N, C) or (N, C, d1, ...).
        targets: labels, of this shape without C, integers; or probabilities, of the same shape. A
            label of probability 0 costs nothing, even if its loss is infinite.
        weight: see ``LossOptions``.
        ignore_index: see ``LossOptions``.
        reduction: see ``LossOptions``.

    Raises:
        ValueError: for shapes that do not fit, complex logits, labels out of range (on a CPU), or
            an unknown reduction.
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be none, mean or sum, got {reduction!r}")
    if logits.ndim == 0:
        raise ValueError(
            "expected logits of shape (C,), (N, C) or (N, C, ...), got a single number"
        )
    if logits.ndim == 1:
        one = loss(
            formula,
            logits.unsqueeze(0),
            targets.unsqueeze(0),
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
        )
        return one.squeeze(0) if reduction == "none" else one
    if logits.is_complex():
        raise ValueError(f"expected logits that are real numbers, got {logits.dtype}")
    classes = logits.shape[1]
    if weight is not None and weight.shape != (classes,):
        raise ValueError(
            f"expected a weight for each of {classes} classes, got shape {tuple(weight.shape)}"
        )
    of_labels = formula(logits.to(accumulation_dtype(logits)))
    weight = None if weight is None else weight.to(of_labels)
    if targets.is_floating_point() and targets.shape == logits.shape:
        return _expected(of_labels, targets.to(of_labels), weight, reduction)
    is_labels = not (targets.is_floating_point() or targets.dtype == torch.bool)
    if not is_labels or targets.shape != logits[:, 0].shape:
        raise ValueError(
            f"expected labels (integers) of shape {tuple(logits[:, 0].shape)} or probabilities of "
            f"shape {tuple(logits.shape)}, got {targets.dtype} of shape {tuple(targets.shape)}"
        )
    return _selected(of_labels, targets.long(), weight, ignore_index, reduction)


def _expected(
    of_labels: Tensor, targets: Tensor, weight: Tensor | None, reduction: Reduction
) -> Tensor:
    if weight is not None:
        targets = targets * weight.view(-1, *[1] * (of_labels.ndim - 2))
    of_labels = of_labels.masked_fill(of_labels.isinf() & (targets == 0), 0.0)
    losses = (of_labels * targets).sum(1)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()


def _selected(
    of_labels: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
) -> Tensor:
    counts = targets != ignore_index
    labels = torch.where(counts, targets, 0)
    try:
        losses = of_labels.gather(1, labels.unsqueeze(1)).squeeze(1)
    except RuntimeError as error:
        classes = of_labels.shape[1]
        if (wrong := labels[(labels < 0) | (labels >= classes)]).numel():
            raise ValueError(
                f"expected labels from 0 to {classes - 1} for {classes} classes (or "
                f"{ignore_index}, which is ignored), got {int(wrong[0])}; count classes from 0, or "
                "give the model as many outputs as there are classes"
            ) from error
        raise
    weights = counts.to(losses.dtype) if weight is None else weight[labels] * counts
    losses = torch.where(weights != 0, losses, 0) * weights
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / weights.sum()
