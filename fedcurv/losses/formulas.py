"""Noise-robust losses, each as a function from logits to the loss under every label.

Logits z have the classes along axis 1, shape (N, C, ...); so has what is returned, ℓ(z, k) in the
place of class k. That makes a loss for given labels a selection, one for given probabilities of
labels an expectation, and the sum over labels, which is constant for a symmetric loss, a sum.
Everything is computed from log p = log softmax(z), since powers and logarithms of a probability
that underflows have no gradient. p_y is the probability of the label.

A logit of -inf is an impossible class: values and gradients are the limits as that logit falls (as
these logits fall together), by the double use of a mask: what has no gradient there is computed
from a finite stand-in. Without a possible class everything is NaN, as torch's cross-entropy is.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

# from logits (N, C, ...) to the loss under every label, in the same shape
Formula = Callable[[Tensor], Tensor]

LOG_OF_ZERO = math.log(1e-4)


def weighted_sum(alpha: float, first: Tensor, beta: float, second: Tensor) -> Tensor:
    """Return α·first + β·second; what has the weight 0 adds nothing, even if it is infinite."""
    if alpha == 0:
        return beta * second
    return alpha * first if beta == 0 else alpha * first + beta * second


def cross_entropy(logits: Tensor) -> Tensor:
    """Return −log p_y."""
    return -logits.log_softmax(1)


def mean_absolute_error(logits: Tensor) -> Tensor:
    """Return 1 − p_y: symmetric and bounded, half of ‖p − e_y‖₁."""
    return -torch.expm1(logits.log_softmax(1))


def generalized_cross_entropy(
    logits: Tensor, q: float = 0.7, truncation: float | None = None
) -> Tensor:
    """Return (1 − p_y^q) / q: cross-entropy as q → 0, mean absolute error at q = 1.

    Args:
        logits: shape (N, C, ...).
        q: in (0, 1].
        truncation: in (0, 1): samples whose p_y is below are given the loss at this probability,
            which has no gradient; None for none.
    """
    log_p = logits.log_softmax(1)
    if truncation is not None:
        log_p = log_p.clamp(min=math.log(truncation))
    return -torch.expm1(q * log_p) / q


def reverse_cross_entropy(logits: Tensor, log_of_zero: float = LOG_OF_ZERO) -> Tensor:
    """Return −Σ_k p_k log e_yk = −A (1 − p_y), with A for the logarithm of zero.

    Args:
        logits: shape (N, C, ...).
        log_of_zero: A < 0.
    """
    return -log_of_zero * mean_absolute_error(logits)


def symmetric_cross_entropy(
    logits: Tensor, alpha: float = 0.1, beta: float = 1.0, log_of_zero: float = LOG_OF_ZERO
) -> Tensor:
    """Return α·cross-entropy + β·reverse cross-entropy."""
    active, passive = cross_entropy(logits), reverse_cross_entropy(logits, log_of_zero)
    return weighted_sum(alpha, active, beta, passive)


def normalized_cross_entropy(logits: Tensor) -> Tensor:
    """Return log p_y / Σ_k log p_k: symmetric, since it sums to 1 over the labels.

    Beside m impossible classes it is 0 for a possible label and 1/m for an impossible one, without
    a gradient.
    """
    log_p = logits.log_softmax(1)
    impossible = log_p.isneginf()
    number = impossible.sum(1, keepdim=True, dtype=log_p.dtype)
    finite = log_p.masked_fill(impossible, 0.0)
    total = finite.sum(1, keepdim=True)
    # with one class both are 0
    ratio = finite / total.clamp(max=-torch.finfo(total.dtype).tiny)
    return torch.where(number > 0, impossible / number, ratio)


def normalized_negative_cross_entropy(logits: Tensor, clip: float = 1e-7) -> Tensor:
    """Return 1 − (A + log p_y) / Σ_k (A + log p_k), with A = −log clip: symmetric and passive.

    Args:
        logits: shape (N, C, ...).
        clip: in (0, 1): what no probability falls below; there is no gradient there.
    """
    above = logits.log_softmax(1).clamp(min=math.log(clip)) - math.log(clip)
    return 1 - above / above.sum(1, keepdim=True)


def asymmetric_squared_error(logits: Tensor, a: float) -> Tensor:
    """Return the mean over classes k of (p_k − a·e_yk)²: the larger a, the closer to symmetric.

    Args:
        logits: shape (N, C, ...).
        a: > 0.
    """
    p = logits.softmax(1)
    return (p.square().sum(1, keepdim=True) - 2 * a * p + a * a) / logits.shape[1]


def sharpened_cross_entropy(logits: Tensor, m: float, clip: float = 1e-8) -> Tensor:
    """Return −log q_y, where q is p with m added to its largest entry, divided by 1 + m.

    Args:
        logits: shape (N, C, ...).
        m: >= 0.
        clip: in (0, 1): what no entry of q falls below; there is no gradient there.
    """
    log_p = logits.log_softmax(1)
    largest = torch.zeros_like(log_p, dtype=torch.bool)
    largest = largest.scatter(1, log_p.argmax(1, keepdim=True), True)
    raised = torch.log1p(torch.expm1(log_p) / (1 + m))
    return -torch.where(largest, raised, log_p - math.log1p(m)).clamp(min=math.log(clip))


def partially_huberised_cross_entropy(logits: Tensor, tau: float) -> Tensor:
    """Return −log p_y, and its tangent −τ p_y + log τ + 1 where p_y is below 1/τ.

    Args:
        logits: shape (N, C, ...).
        tau: τ > 1.
    """
    log_p = logits.log_softmax(1)
    tangent = -tau * log_p.exp() + math.log(tau) + 1
    return torch.where(log_p < -math.log(tau), tangent, -log_p)


def clipped_logits(logits: Tensor, delta: float) -> Tensor:
    """Return z·min(1, δ/‖z‖₂), with the norm over the classes.

    Beside m impossible classes that is −δ/√m for these and 0 for the others, without a gradient.

    Args:
        logits: shape (N, C, ...).
        delta: δ > 0.
    """
    impossible = logits.isneginf()
    number = impossible.sum(1, keepdim=True)
    finite = logits.masked_fill(impossible, 0.0)
    # in units of the largest, as squares of large logits are beyond all bounds in float32
    largest = finite.detach().abs().amax(1, keepdim=True)
    scaled = finite / torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp(min=0.5)  # 1 at least, or 0
    clipped = torch.where(largest * norm > delta, scaled * (delta / norm), finite)
    limit = -delta * impossible / number.clamp(min=1).sqrt()
    clipped = torch.where(number > 0, limit.to(clipped.dtype), clipped)
    return torch.where(number == logits.shape[1], logits, clipped)


def asymmetric_generalized_cross_entropy(logits: Tensor, a: float, q: float) -> Tensor:
    """Return ((a + 1)^q − (a + p_y)^q) / q (AGCE).

    Args:
        logits: shape (N, C, ...).
        a: > 0.
        q: > 0.
    """
    log_ratio = torch.log1p(torch.expm1(logits.log_softmax(1)) / (a + 1))
    return torch.expm1(q * log_ratio) * (-math.pow(a + 1, q) / q)


def asymmetric_unhinged(logits: Tensor, a: float, q: float) -> Tensor:
    """Return ((a − p_y)^q − (a − 1)^q) / q (AUL).

    Args:
        logits: shape (N, C, ...).
        a: > 1.
        q: > 0.
    """
    log_ratio = torch.log1p(-torch.expm1(logits.log_softmax(1)) / (a - 1))
    return torch.expm1(q * log_ratio) * (math.pow(a - 1, q) / q)


def asymmetric_exponential(logits: Tensor, a: float) -> Tensor:
    """Return exp(−p_y / a) (AEL), a > 0."""
    return torch.exp(-logits.log_softmax(1).exp() / a)


def taylor_cross_entropy(logits: Tensor, order: int = 2) -> Tensor:
    """Return Σ_{i=1..t} (1 − p_y)^i / i: mean absolute error for t = 1, cross-entropy as t → ∞.

    Args:
        logits: shape (N, C, ...).
        order: t >= 1.
    """
    rest = mean_absolute_error(logits)
    # by Horner's rule, which has no power of zero
    total = torch.zeros_like(rest)
    for i in range(order, 0, -1):
        total = rest * (1 / i + total)
    return total


def jensen_shannon(logits: Tensor, weight_of_label: float = 0.5) -> Tensor:
    """Return (H(πe_y + (1−π)p) − (1−π) H(p)) / Z, with Z = −(1−π) log(1−π).

    The generalised Jensen-Shannon divergence of label and prediction with weights π and 1 − π,
    scaled: cross-entropy as π → 0, and as π → 1 half of ‖p − e_y‖₁.

    Args:
        logits: shape (N, C, ...).
        weight_of_label: π in (0, 1).
    """
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    rest = 1 - weight_of_label
    log_rest = math.log1p(-weight_of_label)
    mixed = weight_of_label + rest * p
    # H(m) − (1−π) H(p), in which all classes but y leave −(1−π) p_k log(1−π)
    log_p = log_p.masked_fill(log_p.isneginf(), 0.0)  # p log p is 0 there
    divergence = rest * p * log_p - mixed * mixed.log() - rest * (1 - p) * log_rest
    return divergence / (-rest * log_rest)


def regularized_cross_entropy(
    logits: Tensor,
    regularizer: Callable[[Tensor], Tensor],
    strength: float | Tensor,
    *,
    normalize: bool = True,
) -> Tensor:
    """Return (−log p_y + λ R(z)) / (1 + λ), or the numerator alone.

    Args:
        logits: shape (N, C, ...).
        regularizer: R, from logits to shape (N, ...).
        strength: λ >= 0.
        normalize: divide by 1 + λ.
    """
    penalty = regularizer(logits).unsqueeze(1)
    factor = strength / (1 + strength) if normalize else strength
    # without strength even an infinite penalty is none
    penalty = torch.where(penalty.isinf() & (factor == 0), 0.0, penalty * factor)
    loss = cross_entropy(logits)
    return loss / (1 + strength) + penalty if normalize else loss + penalty
