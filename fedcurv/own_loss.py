"""Whether the loss that a model itself computes of a batch's labels is that of its logits.

Libraries' models move labels by one place, or make inputs of them. Labels that are taken for what
they seem to be would give the information of another loss.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedcurv.likelihoods import (
    IGNORED,
    Categorical,
    NegativeLogLikelihood,
    require_in_range,
    with_classes_second,
)
from fedcurv.per_sample import Samples, undisturbed
from fedcurv.per_sample.samples import one_tensor

# looks at a batch on the device, its samples and its labels
CheckLabels = Callable[[Mapping[str, Any], Samples, Tensor], None]

# of what is the same, in the type of logits or loss; losses of untrained models lie close together
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
_TOLERANCE_OF_HALVES = 2e-2


def check_of_labels(model: nn.Module, likelihood: NegativeLogLikelihood) -> CheckLabels | None:
    """Return ``require_own_loss`` of a model, if the likelihood is what models of classes take."""
    plain = (
        isinstance(likelihood, Categorical)
        and likelihood.weight is None
        and not likelihood.smoothing
        and likelihood.ignored == IGNORED
    )
    return partial(require_own_loss, model) if plain else None


def require_own_loss(
    model: nn.Module, batch: Mapping[str, Any], samples: Samples, labels: Tensor
) -> None:
    """Refuse labels that the model takes otherwise than its logits' cross-entropy would.

    A model that computes no loss of labels, or that draws random numbers, says nothing.

    Args:
        model: in eval mode.
        batch: with its labels, on the model's device.
        samples: what the model is given without them.
        labels: of the batch.

    Raises:
        ValueError: with the arguments that say what the labels are.
    """
    with undisturbed(model, samples.device), torch.no_grad():
        logits = _logits(model, samples)
        as_they_stand = None if logits is None else _cross_entropy(logits, labels)
        if logits is None or as_they_stand is None:  # which is told where they are used
            return
        own = _own_loss(model, batch)
        if own is None:
            return
        loss, logits_of_labels = own
        if _same(loss, as_they_stand, logits.dtype) and _same_logits(logits, logits_of_labels):
            return
        again = _own_loss(model, batch)
        if again is None or not torch.equal(again[0], loss):
            return
    raise ValueError(
        f"{type(model).__name__} computes {float(loss):.6g} as its loss of these labels, while the "
        f"cross-entropy of its logits without them is {as_they_stand:.6g}: "
        + _reason(loss, logits, logits_of_labels, labels)
    )


def _logits(model: nn.Module, samples: Samples) -> Tensor | None:
    try:
        return samples.outputs(model)
    except Exception:
        return None


def _own_loss(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Return the loss, if it is one finite number, and the logits that it is of."""
    try:
        outputs = model(**batch)
        loss = getattr(outputs, "loss", None)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not bool(loss.isfinite()):
            return None
        return loss.reshape(()), one_tensor(outputs, model)
    except Exception:  # a model that takes no labels has no loss of them
        return None


def _cross_entropy(logits: Tensor, labels: Tensor) -> float | None:
    """Return the mean over all that is predicted; None where labels and logits do not fit."""
    if labels.is_floating_point():
        if labels.shape != logits.shape:
            return None
        return float(functional.cross_entropy(_wide(logits), labels.to(_wide(logits).dtype)))
    try:
        by_class = with_classes_second(_wide(logits), labels)
        require_in_range(labels, by_class.shape[1])
        return float(functional.cross_entropy(by_class, labels.long()))
    except ValueError:
        return None


def _reason(loss: Tensor, logits: Tensor, logits_of_labels: Tensor, labels: Tensor) -> str:
    def is_loss(value: float | None) -> bool:
        return value is not None and _same(loss, value, logits.dtype)

    if logits.ndim == 3 and labels.ndim == 2:
        moved = _cross_entropy(logits[:, :-1], labels[:, 1:])
        if is_loss(moved) and _same_logits(logits, logits_of_labels):
            return (
                "it moves the labels by one place; say so: forward=lambda model, batch: "
                "model(batch['input_ids']).logits[:, :-1] (with the mask, by name), "
                "targets=lambda batch: batch['labels'][:, 1:]"
            )
        if is_loss(_cross_entropy(logits_of_labels, labels)):  # the logits are others, then
            return (
                "it makes inputs of the labels; give it both: "
                "forward=lambda model, batch: model(**batch).logits, targets='labels'"
            )
    if labels.is_floating_point() and labels.shape == logits.shape:
        wide = _wide(logits)
        numbers = labels.to(wide.dtype)
        if is_loss(float(functional.binary_cross_entropy_with_logits(wide, numbers))):
            return "it takes them for several labels; give likelihood='multilabel'"
        if is_loss(float(functional.mse_loss(wide, numbers))):
            return "it takes them for numbers; give likelihood='gaussian'"
    return (
        "it computes another loss; give likelihood= what that is, forward= and targets= what it is "
        "of, or targets='labels' if they are right as they stand"
    )


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _same(loss: Tensor, other: float, of_logits: torch.dtype) -> bool:
    dtypes = loss.dtype, of_logits  # some models compute it in another
    tolerance = max(_TOLERANCE.get(dtype, _TOLERANCE_OF_HALVES) for dtype in dtypes)
    return math.isclose(float(loss), other, rel_tol=tolerance, abs_tol=tolerance)


def _same_logits(one: Tensor, other: Tensor) -> bool:
    tolerance = _TOLERANCE.get(one.dtype, _TOLERANCE_OF_HALVES)
    if one.shape != other.shape:
        return False
    difference, scale = (one - other).abs().max(), one.abs().max()
    return bool(difference <= 10 * tolerance * scale)
