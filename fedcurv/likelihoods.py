"""Negative log-likelihoods of samples, and what they say of outputs and targets that do not fit."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fedcurv.parameters import described

# maps outputs (N, ...) and targets (N, ...) to N values
NegativeLogLikelihood = Callable[[Tensor, Tensor], Tensor]
# cross-entropy's default for a label that says nothing
IGNORED = -100

FisherKind = Literal["empirical", "exact", "sampled", "signed"]
Likelihood = Literal["categorical", "bernoulli", "multilabel", "gaussian"] | NegativeLogLikelihood


@dataclass(frozen=True, eq=False)
class Categorical:
    """Each sample's cross-entropy, summed over its positions if it has several.

    Attributes:
        weight: by class, how many times a label of it counts, >= 0; None for once each. The losses
            are without it: where they are squared, its root goes with the gradient.
        ignored: the label that says nothing.
        smoothing: the share of a label, in [0, 1), that all classes have in common.
    """

    weight: Tensor | None = None
    ignored: int = IGNORED
    smoothing: float = 0.0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one value per sample."""
        if targets.is_floating_point():
            require_classes(outputs)
            require_probabilities(outputs, targets)
            targets = targets.to(outputs.dtype)
        else:
            outputs = with_classes_second(outputs, targets)
            targets = targets.long()
            require_in_range(targets, outputs.shape[1], self.ignored)
        losses = nn.functional.cross_entropy(
            outputs,
            targets,
            ignore_index=self.ignored,
            label_smoothing=self.smoothing,
            reduction="none",
        )
        return losses.flatten(1).sum(1) if losses.ndim > 1 else losses


categorical = Categorical()


def bernoulli(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each sample's binary cross-entropy, from one logit and a target in [0, 1]."""
    logits, targets = shares_of_one(outputs, targets)
    return nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def multilabel(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each sample's binary cross-entropies, summed over its labels, each with one logit."""
    targets = shares_of_several(outputs, targets)
    losses = nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    return losses.flatten(1).sum(1) if losses.ndim > 1 else losses


def gaussian(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return ½‖y − f(x)‖² of each sample: regression with unit variance, less a constant."""
    require_shape_of(outputs, targets)
    squares = 0.5 * (outputs - targets).square()
    return squares.flatten(1).sum(1) if squares.ndim > 1 else squares


def binary(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return what ``bernoulli`` does for one output per sample, what ``multilabel`` for several."""
    return of_binary(outputs)(outputs, targets)


def of_binary(outputs: Tensor) -> NegativeLogLikelihood:
    """Return which of the two ``binary`` is for these outputs."""
    return bernoulli if outputs.shape[1:].numel() == 1 else multilabel


LIKELIHOODS: dict[str, NegativeLogLikelihood] = {
    "categorical": categorical,
    "bernoulli": bernoulli,
    "multilabel": multilabel,
    "gaussian": gaussian,
}


# which take what comes before a sigmoid or softmax
LIKELIHOODS_OF_LOGITS = (bernoulli, multilabel, binary)


def by_sample(likelihood: NegativeLogLikelihood) -> NegativeLogLikelihood:
    """Return a function of one's own that refuses values to which other samples contribute.

    The first batch of several samples shows it. One that draws random numbers is taken as it is.
    """
    seen = False

    def losses_of(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal seen
        losses = likelihood(outputs, targets)
        if not seen and len(outputs) > 1 and losses.shape == targets.shape[:1]:
            seen = True
            _require_value_of_one(likelihood, outputs.detach(), targets, losses.detach())
        return losses

    return losses_of


def _require_value_of_one(
    likelihood: NegativeLogLikelihood, outputs: Tensor, targets: Tensor, losses: Tensor
) -> None:
    scale = float(losses.abs().max())

    def same(got: Tensor, expected: Tensor) -> bool:
        return torch.allclose(got, expected, rtol=1e-3, atol=1e-5 * scale)

    try:
        alone = likelihood(outputs[1:2], targets[1:2]).detach()
    except Exception:  # it is made for several samples
        return
    if alone.shape != (1,) or not math.isfinite(scale) or same(alone, losses[1:2]):
        return
    if same(likelihood(outputs, targets).detach(), losses):
        raise ValueError(
            "expected a likelihood whose value for a sample is that sample's own, got "
            f"{float(losses[1]):g} for one among {len(losses)} and {float(alone[0]):g} for the "
            "same alone; does it divide by their number, or broadcast targets (N,) over outputs "
            "(N, 1)?"
        )


def shares_of_one(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return one logit and one target in [0, 1] for each sample, both (N,) and of one type.

    Raises:
        ValueError: for outputs or targets that are not so many, or not such.
    """
    logits = _one_logit(outputs)
    if targets.shape not in (logits.shape, (len(logits), 1)):
        raise ValueError(
            f"expected one target per sample, shape {tuple(logits.shape)} or "
            f"{(len(logits), 1)}, got {described(targets)}"
        )
    targets = targets.reshape(logits.shape).to(outputs.dtype)
    _require_shares(
        targets,
        "bernoulli",
        "; use likelihood='gaussian' for regression, 'categorical' for labels of several classes",
    )
    return logits, targets


def shares_of_several(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a target in [0, 1] for each of the outputs, in their shape and type.

    Raises:
        ValueError: for targets that are not so many, or not such.
    """
    require_shape_of(outputs, targets)
    targets = targets.to(outputs.dtype)
    _require_shares(targets, "multilabel")
    return targets


def _require_shares(targets: Tensor, likelihood: str, remedy: str = "") -> None:
    """Refuse targets that are not in [0, 1]."""
    if not bool(((targets >= 0) & (targets <= 1)).all()):
        raise ValueError(
            f"expected targets in [0, 1] for likelihood={likelihood!r}, got values from "
            f"{float(targets.min()):g} to {float(targets.max()):g}{remedy}"
        )


def require_shape_of(outputs: Tensor, targets: Tensor) -> None:
    """Refuse targets in another shape than the outputs'."""
    if outputs.shape != targets.shape:
        raise ValueError(
            f"expected targets in the shape of the outputs, {tuple(outputs.shape)}, got "
            f"{tuple(targets.shape)}"
        )


def require_classes(outputs: Tensor) -> None:
    """Refuse outputs that are no logits of several classes."""
    if outputs.ndim < 2 or outputs.shape[1] == 1:
        raise ValueError(
            "expected logits (N, C) of at least two classes, got outputs of shape "
            f"{tuple(outputs.shape)}, of which a softmax is always 1; use likelihood='bernoulli' "
            "for one logit per sample with targets in [0, 1], 'gaussian' for regression"
        )


def require_labels(labels: Tensor) -> None:
    """Refuse labels that are no integers."""
    if labels.dtype == torch.bool or labels.is_complex():
        raise ValueError(
            f"expected integer labels, got {described(labels)}; convert them by .long()"
        )


def require_in_range(labels: Tensor, classes: int, ignored: int = IGNORED) -> None:
    """Refuse labels of classes that there are not."""
    wrong = labels[(labels != ignored) & ((labels < 0) | (labels >= classes))]
    if wrong.numel():
        raise ValueError(
            f"expected labels from 0 to {classes - 1} for {classes} classes (or {ignored}, which "
            f"is ignored), got {int(wrong[0])} among {described(labels)}; count classes from 0, "
            "give the model as many outputs as there are classes, or, if it says nothing, "
            f"likelihood=nn.CrossEntropyLoss(ignore_index={int(wrong[0])})"
        )


def require_probabilities(outputs: Tensor, targets: Tensor) -> None:
    """Refuse targets that are no distribution over the classes."""
    if targets.shape != outputs.shape:
        raise ValueError(
            f"expected float targets to be class probabilities in the outputs' shape "
            f"{tuple(outputs.shape)}, got {described(targets)}; convert labels by .long(), or use "
            "likelihood='gaussian' for regression"
        )
    tolerance = 1e-3 if targets.dtype in (torch.float32, torch.float64) else 2e-2
    sums = targets.sum(1, dtype=torch.float64)
    low = float(targets.min())
    if not (low >= 0 and bool(((sums - 1).abs() <= tolerance).all())):
        raise ValueError(
            "expected float targets to be class probabilities, >= 0 with sum 1 over axis 1, got "
            f"values from {low:g} and sums from {float(sums.min()):g} to {float(sums.max()):g}; "
            "use likelihood='gaussian' for regression, or give class labels as integers"
        )


def with_classes_second(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the logits as (N, C, ...), also if they came as (N, ..., C); never by a guess.

    Raises:
        ValueError: for labels (N, ...) that do not fit, if both readings do, or for logits of fewer
            than two classes.
    """
    if outputs.ndim < 3:
        require_classes(outputs)
    require_labels(labels)
    of_positions = labels.shape[1:]
    second = outputs.shape[2:] == of_positions and len(labels) == len(outputs)
    last = outputs.ndim > 2 and outputs.shape[1:-1] == of_positions and len(labels) == len(outputs)
    if second and last:
        raise ValueError(
            f"cannot tell which axis of outputs {tuple(outputs.shape)} has the classes for labels "
            f"{tuple(labels.shape)}, the second (N, C, ...) or the last (N, ..., C); use another "
            "length in this batch, or a likelihood of your own: lambda z, y: "
            "cross_entropy(z.movedim(-1, 1), y, reduction='none').flatten(1).sum(1)"
        )
    if not second and not last:
        remedy = "convert one-hot labels by .argmax(1)"
        if labels.ndim > 1 and labels.shape[1] == 1 and labels.squeeze(1).ndim == outputs.ndim - 1:
            remedy = "take their second axis away by .squeeze(1)"
        raise ValueError(
            "expected labels (N,) for logits (N, C), or (N, d1, ...) for (N, C, d1, ...) or "
            f"(N, d1, ..., C), got labels {described(labels)} for outputs {tuple(outputs.shape)}; "
            f"{remedy}"
        )
    logits = outputs if second else outputs.movedim(-1, 1)
    require_classes(logits)
    return logits


def _one_logit(outputs: Tensor) -> Tensor:
    """Return the logits as (N,)."""
    if outputs.ndim == 0 or outputs.ndim > 2 or (outputs.ndim == 2 and outputs.shape[1] != 1):
        raise ValueError(
            "expected one logit per sample for likelihood='bernoulli', outputs (N,) or (N, 1), got "
            f"{described(outputs)}; use 'categorical' for several classes"
        )
    return outputs.reshape(-1)
