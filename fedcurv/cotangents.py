"""Cotangents of the outputs: what the Fisher information needs of a likelihood.

With outputs f(x) the squared gradient of log p(y | x) is that of ⟨f(x), v⟩, where v is the gradient
of −log p by the outputs, held constant. Expectations over y are sums over several v.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedcurv.categories import drawn, expected, of_labels, signed, weighted
from fedcurv.likelihoods import (
    Categorical,
    FisherKind,
    NegativeLogLikelihood,
    bernoulli,
    binary,
    gaussian,
    of_binary,
    require_shape_of,
    shares_of_one,
    shares_of_several,
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
        targets: shape (N, ...). Whatever the kind, they must be what the likelihood takes; unless
            it is ``empirical`` they say no more than which labels are ignored, how many times each
            counts, and of what shape they are.
        generator: draws the labels of ``sampled`` and the signs of ``signed``.

    Raises:
        ValueError: for outputs or targets that are not what the likelihood takes, or a likelihood
            without one value per sample, or one that does not depend on the outputs.
    """
    outputs = outputs.to(accumulation_dtype(outputs))
    if likelihood is binary:
        likelihood = of_binary(outputs)
    if kind == "empirical":
        return [_gradient(likelihood, outputs, targets)]
    if isinstance(likelihood, Categorical):
        if kind == "sampled":
            return [drawn(likelihood, outputs, targets, generator)]
        if kind == "signed":
            return [signed(likelihood, outputs, targets, generator)]
        return expected(likelihood, outputs, targets)
    if likelihood is gaussian:  # E[(f - y)(f - y)ᵀ] is the identity
        require_shape_of(outputs, targets)
        nothing = 0 * outputs  # but NaN where an output is not finite
        if kind == "exact":
            return _one_by_one(nothing + 1)
        if kind == "signed":
            return [nothing + _signs(outputs, generator)]
        return [nothing + torch.empty_like(outputs).normal_(generator=generator)]
    if likelihood is bernoulli:
        shares_of_one(outputs, targets)
    else:
        shares_of_several(outputs, targets)
    if kind != "sampled":  # E[(p - y)²] = p (1 - p), in which neither factor may be a difference
        variance = nn.functional.logsigmoid(outputs) + nn.functional.logsigmoid(-outputs)
        deviations = (0.5 * variance).exp()
        if kind == "signed":
            return [deviations * _signs(outputs, generator)]
        return _one_by_one(deviations)
    labels = torch.bernoulli(outputs.sigmoid(), generator=generator)
    return [_gradient(likelihood, outputs, labels)]


def _gradient(likelihood: NegativeLogLikelihood, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient of the summed losses by the outputs, in their shape."""
    if isinstance(likelihood, Categorical):
        gradient = of_labels(likelihood, outputs, targets)
        if gradient is not None:
            return gradient
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
    if isinstance(likelihood, Categorical):
        return weighted(likelihood, gradient, targets)
    return gradient


def _signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return 1 or −1 at random in the place of each number."""
    return torch.empty_like(like).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


def _one_by_one(deviations: Tensor) -> list[Tensor]:
    """Return a cotangent for each of a sample's outputs, zero at all others."""
    rows = deviations.reshape(len(deviations), -1)
    cotangents = []
    for index in range(rows.shape[1]):
        one = torch.zeros_like(rows)
        one[:, index] = rows[:, index]
        cotangents.append(one.view_as(deviations))
    return cotangents
