"""Log-likelihoods, and what the Fisher information needs of them: cotangents of the outputs.

With outputs f(x) the squared gradient of log p(y | x) is that of ⟨f(x), v⟩, where v is the gradient
of −log p by the outputs, held constant. Expectations over y are sums over several v.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fedcurv.parameters import accumulation_dtype, described

# maps outputs (N, ...) and targets (N, ...) to N values
NegativeLogLikelihood = Callable[[Tensor, Tensor], Tensor]
# cross-entropy's default for a label that says nothing
_IGNORED = -100

FisherKind = Literal["empirical", "exact", "sampled"]
Likelihood = Literal["categorical", "bernoulli", "multilabel", "gaussian"] | NegativeLogLikelihood


def categorical(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each sample's cross-entropy, summed over its positions if it has several."""
    _require_classes(outputs)
    if targets.is_floating_point():
        _require_probabilities(outputs, targets)
        losses = nn.functional.cross_entropy(outputs, targets.to(outputs.dtype), reduction="none")
    else:
        outputs = with_classes_second(outputs, targets)
        labels = targets.long()
        _require_in_range(labels, outputs.shape[1])
        losses = nn.functional.cross_entropy(outputs, labels, reduction="none")
    return losses.flatten(1).sum(1) if losses.ndim > 1 else losses


def bernoulli(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each sample's binary cross-entropy, from one logit and a target in [0, 1]."""
    logits = _one_logit(outputs)
    if targets.shape not in (logits.shape, (len(logits), 1)):
        raise ValueError(
            f"expected one target per sample, shape {tuple(logits.shape)} or "
            f"{(len(logits), 1)}, got {described(targets)}"
        )
    targets = targets.reshape(logits.shape).to(outputs.dtype)
    if not bool(((targets >= 0) & (targets <= 1)).all()):
        raise ValueError(
            "expected targets in [0, 1] for likelihood='bernoulli', got values from "
            f"{float(targets.min()):g} to {float(targets.max()):g}; use likelihood='gaussian' for "
            "regression, 'categorical' for labels of several classes"
        )
    return nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def multilabel(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each sample's binary cross-entropies, summed over its labels, each with one logit."""
    _require_shape_of(outputs, targets)
    targets = targets.to(outputs.dtype)
    if not bool(((targets >= 0) & (targets <= 1)).all()):
        raise ValueError(
            "expected targets in [0, 1] for likelihood='multilabel', got values from "
            f"{float(targets.min()):g} to {float(targets.max()):g}"
        )
    losses = nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    return losses.flatten(1).sum(1) if losses.ndim > 1 else losses


def gaussian(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return ½‖y − f(x)‖² of each sample: regression with unit variance, less a constant."""
    _require_shape_of(outputs, targets)
    squares = 0.5 * (outputs - targets).square()
    return squares.flatten(1).sum(1) if squares.ndim > 1 else squares


LIKELIHOODS: dict[str, NegativeLogLikelihood] = {
    "categorical": categorical,
    "bernoulli": bernoulli,
    "multilabel": multilabel,
    "gaussian": gaussian,
}


# which take what comes before a sigmoid or softmax
LIKELIHOODS_OF_LOGITS = (categorical, bernoulli, multilabel)


def by_sample(likelihood: NegativeLogLikelihood) -> NegativeLogLikelihood:
    """Return a function of one's own that refuses values to which other samples contribute.

    The first batch of several samples shows it. One that draws random numbers is taken as it is.
    """
    if likelihood in LIKELIHOODS.values():
        return likelihood
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


def cotangents(
    kind: FisherKind,
    likelihood: NegativeLogLikelihood,
    outputs: Tensor,
    *,
    targets: Tensor,
    generator: torch.Generator | None = None,
) -> Sequence[Tensor]:
    """Return the v over whose squared gradients the Fisher information of ``kind`` sums.

    Args:
        kind: see ``fedcurv.fisher_diagonal``.
        likelihood: one of ``LIKELIHOODS`` unless the kind is ``empirical``.
        outputs: shape (N, ...).
        targets: shape (N, ...), of no account unless the kind is ``empirical`` but for the shape
            of those that have the outputs'.
        generator: draws the labels of ``sampled``.

    Raises:
        ValueError: for outputs or targets that are not what the likelihood takes, or a likelihood
            without one value per sample, or one that does not depend on the outputs.
    """
    outputs = outputs.to(accumulation_dtype(outputs))
    if kind == "empirical":
        return [_gradient(likelihood, outputs, targets)]
    if likelihood in (gaussian, multilabel):
        _require_shape_of(outputs, targets)
    if likelihood is gaussian:  # E[(f - y)(f - y)ᵀ] is the identity
        if kind == "exact":
            return _one_by_one(torch.ones_like(outputs))
        return [torch.empty_like(outputs).normal_(generator=generator)]
    if likelihood in (bernoulli, multilabel):
        if likelihood is bernoulli:
            _one_logit(outputs)
        if kind == "exact":  # E[(p - y)²] = p (1 - p), in which neither factor may be a difference
            variance = nn.functional.logsigmoid(outputs) + nn.functional.logsigmoid(-outputs)
            return _one_by_one((0.5 * variance).exp())
        drawn = torch.bernoulli(outputs.sigmoid(), generator=generator)
        return [_gradient(likelihood, outputs, drawn)]
    _require_classes(outputs)
    if outputs.ndim != 2:
        raise ValueError(
            f"kind={kind!r} needs logits of shape (N, C), got {tuple(outputs.shape)}; use "
            "'empirical'"
        )
    if kind == "exact":
        return _factors_of_exact(outputs.log_softmax(1))
    labels = torch.multinomial(outputs.softmax(1), 1, generator=generator).squeeze(1)
    return [_gradient(categorical, outputs, labels)]


def _gradient(likelihood: NegativeLogLikelihood, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient of the summed losses by the outputs, in their shape."""
    has_labels = targets.ndim == 1 and not targets.is_floating_point()
    if likelihood is categorical and outputs.ndim == 2 and has_labels:
        _require_classes(outputs)
        return _softmax_less_labels(outputs, targets)
    outputs = outputs.detach().requires_grad_()
    with torch.enable_grad():
        losses = likelihood(outputs, targets)
    if losses.shape != targets.shape[:1]:
        raise ValueError(
            f"expected a loss with one value per sample, shape {tuple(targets.shape[:1])}, got "
            f"shape {tuple(losses.shape)}; set reduction='none' and sum over the other axes"
        )
    if not losses.requires_grad:
        raise ValueError(
            "expected a loss that depends on the outputs, got one without a gradient; does it "
            "detach them?"
        )
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    return gradient


def _one_by_one(deviations: Tensor) -> list[Tensor]:
    """Return a cotangent for each of a sample's outputs, zero at all others."""
    rows = deviations.reshape(len(deviations), -1)
    cotangents = []
    for index in range(rows.shape[1]):
        one = torch.zeros_like(rows)
        one[:, index] = rows[:, index]
        cotangents.append(one.view_as(deviations))
    return cotangents


def _softmax_less_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Return p − e_y, cross-entropy's gradient; zero where cross-entropy ignores the label."""
    if labels.dtype != torch.long:
        _require_labels(labels)
        labels = labels.long()
    if labels.device.type != "cpu":  # where a wrong one would end the process
        _require_in_range(labels, logits.shape[1])
    else:
        try:
            return logits.softmax(1).scatter_(1, labels.unsqueeze(1), -1.0, reduce="add")
        except RuntimeError:  # some label is ignored, or wrong
            _require_in_range(labels, logits.shape[1])
    known = (labels != _IGNORED).unsqueeze(1)
    gradient = logits.softmax(1)
    places, ones = labels.unsqueeze(1) * known, gradient.new_full((len(labels), 1), -1.0)
    return gradient.scatter_add_(1, places, ones).mul_(known)


def _factors_of_exact(log_p: Tensor) -> list[Tensor]:
    """Return v_1 … v_{C−1} with Σ_j v_j v_jᵀ = diag(p) − p pᵀ, the Fisher matrix of the logits.

    C classes need C − 1 backward passes, not C. The factors are those of the choice of a class in
    steps, "this class or a later one": v_j = √(p_j t_{j+1} / t_j) (e_j − r_j), where t_j is the
    probability of class j or later and r_j are the classes' probabilities given one after j.

    Args:
        log_p: shape (N, C).
    """
    log_tail = log_p.flip(1).logcumsumexp(1).flip(1)
    factors = []
    for j in range(log_p.shape[1] - 1):
        size = (0.5 * (log_p[:, j] + log_tail[:, j + 1] - log_tail[:, j])).exp().unsqueeze(1)
        later = (log_p[:, j + 1 :] - log_tail[:, j + 1, None]).exp()
        factor = torch.zeros_like(log_p)
        factor[:, j] = 1
        factor[:, j + 1 :] = -later
        # a class of probability zero leaves no choice, and 0/0 after it
        factors.append(torch.where(size > 0, size * factor, 0))
    return factors


def _require_shape_of(outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape != targets.shape:
        raise ValueError(
            f"expected targets in the shape of the outputs, {tuple(outputs.shape)}, got "
            f"{tuple(targets.shape)}"
        )


def _require_classes(outputs: Tensor) -> None:
    """Refuse outputs that are no logits of several classes."""
    if outputs.ndim < 2 or outputs.shape[1] == 1:
        raise ValueError(
            "expected logits (N, C) of at least two classes, got outputs of shape "
            f"{tuple(outputs.shape)}, of which a softmax is always 1; use likelihood='bernoulli' "
            "for one logit per sample with targets in [0, 1], 'gaussian' for regression"
        )


def _require_labels(labels: Tensor) -> None:
    if labels.dtype == torch.bool or labels.is_complex():
        raise ValueError(
            f"expected integer labels, got {described(labels)}; convert them by .long()"
        )


def _require_in_range(labels: Tensor, classes: int) -> None:
    wrong = labels[(labels != _IGNORED) & ((labels < 0) | (labels >= classes))]
    if wrong.numel():
        raise ValueError(
            f"expected labels from 0 to {classes - 1} for {classes} classes (or {_IGNORED}, which "
            f"is ignored), got {int(wrong[0])} among {described(labels)}; count classes from 0, "
            "or give the model as many outputs as there are classes"
        )


def _require_probabilities(outputs: Tensor, targets: Tensor) -> None:
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
        ValueError: for labels (N, ...) that do not fit, or if both readings do.
    """
    _require_labels(labels)
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
    return outputs if second else outputs.movedim(-1, 1)


def _one_logit(outputs: Tensor) -> Tensor:
    """Return the logits as (N,)."""
    if outputs.ndim == 0 or outputs.ndim > 2 or (outputs.ndim == 2 and outputs.shape[1] != 1):
        raise ValueError(
            "expected one logit per sample for likelihood='bernoulli', outputs (N,) or (N, 1), got "
            f"{described(outputs)}; use 'categorical' for several classes"
        )
    return outputs.reshape(-1)
