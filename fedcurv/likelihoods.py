"""Log-likelihoods, and what the Fisher information needs of them: cotangents of the outputs.

With outputs f(x) the squared gradient of log p(y | x) is that of ⟨f(x), v⟩, where v is the gradient
of −log p by the outputs, held constant. Expectations over y are sums over several v.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fedcurv.parameters import accumulation_dtype

# maps outputs (N, ...) and targets (N, ...) to N values
NegativeLogLikelihood = Callable[[Tensor, Tensor], Tensor]
# cross-entropy's default for a label that says nothing
_IGNORED = -100

FisherKind = Literal["empirical", "exact", "sampled"]
Likelihood = Literal["categorical", "gaussian"] | NegativeLogLikelihood


def categorical(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each sample's cross-entropy, summed over its positions if it has several."""
    losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
    return losses.flatten(1).sum(1) if losses.ndim > 1 else losses


def gaussian(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return ½‖y − f(x)‖² of each sample: regression with unit variance, less a constant."""
    if outputs.shape != targets.shape:
        raise ValueError(
            f"expected targets in the shape of the outputs, {tuple(outputs.shape)}, got "
            f"{tuple(targets.shape)}"
        )
    squares = 0.5 * (outputs - targets).square()
    return squares.flatten(1).sum(1) if squares.ndim > 1 else squares


LIKELIHOODS: dict[str, NegativeLogLikelihood] = {"categorical": categorical, "gaussian": gaussian}


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
        likelihood: ``categorical`` unless the kind is ``empirical``.
        outputs: shape (N, ...).
        targets: shape (N, ...), of no account unless the kind is ``empirical``.
        generator: draws the labels of ``sampled``.

    Raises:
        ValueError: for logits that are not (N, C) where they must be, or a likelihood without one
            value per sample, or one that does not depend on the outputs.
    """
    outputs = outputs.to(accumulation_dtype(outputs))
    if kind == "empirical":
        return [_gradient(likelihood, outputs, targets)]
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


def _softmax_less_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Return p − e_y, cross-entropy's gradient; zero where cross-entropy ignores the label."""
    known = (labels != _IGNORED).unsqueeze(1)
    gradient = logits.softmax(1)
    gradient.scatter_add_(1, labels.unsqueeze(1) * known, gradient.new_full((len(labels), 1), -1.0))
    return gradient.mul_(known)


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
