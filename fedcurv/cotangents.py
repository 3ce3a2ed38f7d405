"""What the Fisher information needs of a likelihood: cotangents of the outputs.

With outputs f(x) the squared gradient of log p(y | x) is that of ⟨f(x), v⟩, where v is the gradient
of −log p by the outputs, held constant. Expectations over y are sums over several v.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedcurv.likelihoods import (
    IGNORED,
    FisherKind,
    NegativeLogLikelihood,
    bernoulli,
    categorical,
    gaussian,
    multilabel,
    one_logit,
    require_classes,
    require_in_range,
    require_labels,
    require_shape_of,
)
from fedcurv.parameters import accumulation_dtype


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
        require_shape_of(outputs, targets)
    if likelihood is gaussian:  # E[(f - y)(f - y)ᵀ] is the identity
        if kind == "exact":
            return _one_by_one(torch.ones_like(outputs))
        return [torch.empty_like(outputs).normal_(generator=generator)]
    if likelihood in (bernoulli, multilabel):
        if likelihood is bernoulli:
            one_logit(outputs)
        if kind == "exact":  # E[(p - y)²] = p (1 - p), in which neither factor may be a difference
            variance = nn.functional.logsigmoid(outputs) + nn.functional.logsigmoid(-outputs)
            return _one_by_one((0.5 * variance).exp())
        drawn = torch.bernoulli(outputs.sigmoid(), generator=generator)
        return [_gradient(likelihood, outputs, drawn)]
    require_classes(outputs)
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
        require_classes(outputs)
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
        require_labels(labels)
        labels = labels.long()
    if labels.device.type != "cpu":  # where a wrong one would end the process
        require_in_range(labels, logits.shape[1])
    else:
        try:
            return logits.softmax(1).scatter_(1, labels.unsqueeze(1), -1.0, reduce="add")
        except RuntimeError:  # some label is ignored, or wrong
            require_in_range(labels, logits.shape[1])
    known = (labels != IGNORED).unsqueeze(1)
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
