"""The losses as functions of logits and targets; ``fedcurv.losses`` has them as modules.

Each takes logits of shape (C,), (N, C) or (N, C, d1, ...), labels or probabilities of labels, and
the options of :class:`~fedcurv.losses.reduction.LossOptions`, as
``torch.nn.functional.cross_entropy`` does. Formulas and ranges are in ``fedcurv.losses.formulas``.
"""

from functools import partial
from typing import Unpack

from torch import Tensor

from fedcurv.losses import formulas
from fedcurv.losses.formulas import LOG_OF_ZERO
from fedcurv.losses.reduction import LossOptions, loss
from fedcurv.losses.regularizers import Regularizer, regularizer_of


def regularized_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    regularizer: str | Regularizer,
    strength: float | Tensor,
    *,
    normalize: bool = True,
    **options: Unpack[LossOptions],
) -> Tensor:
    """Return (−log p_y + λ R(z)) / (1 + λ), with R by name or a function of one's own."""
    formula = partial(
        formulas.regularized_cross_entropy,
        regularizer=regularizer_of(regularizer),
        strength=strength,
        normalize=normalize,
    )
    return loss(formula, logits, targets, **options)


def mean_absolute_error(logits: Tensor, targets: Tensor, **options: Unpack[LossOptions]) -> Tensor:
    """Return 1 − p_y."""
    return loss(formulas.mean_absolute_error, logits, targets, **options)


def generalized_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    q: float = 0.7,
    truncation: float | None = None,
    **options: Unpack[LossOptions],
) -> Tensor:
    """Return (1 − p_y^q) / q, the same for every p_y below the truncation."""
    formula = partial(formulas.generalized_cross_entropy, q=q, truncation=truncation)
    return loss(formula, logits, targets, **options)


def reverse_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    log_of_zero: float = LOG_OF_ZERO,
    **options: Unpack[LossOptions],
) -> Tensor:
    """Return −A (1 − p_y)."""
    formula = partial(formulas.reverse_cross_entropy, log_of_zero=log_of_zero)
    return loss(formula, logits, targets, **options)


def symmetric_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    alpha: float = 0.1,
    beta: float = 1.0,
    log_of_zero: float = LOG_OF_ZERO,
    **options: Unpack[LossOptions],
) -> Tensor:
    """Return α·cross-entropy + β·reverse cross-entropy."""
    formula = partial(
        formulas.symmetric_cross_entropy, alpha=alpha, beta=beta, log_of_zero=log_of_zero
    )
    return loss(formula, logits, targets, **options)


def normalized_cross_entropy(
    logits: Tensor, targets: Tensor, **options: Unpack[LossOptions]
) -> Tensor:
    """Return log p_y / Σ_k log p_k."""
    return loss(formulas.normalized_cross_entropy, logits, targets, **options)


def asymmetric_generalized_cross_entropy(
    logits: Tensor, targets: Tensor, a: float, q: float, **options: Unpack[LossOptions]
) -> Tensor:
    """Return ((a + 1)^q − (a + p_y)^q) / q."""
    formula = partial(formulas.asymmetric_generalized_cross_entropy, a=a, q=q)
    return loss(formula, logits, targets, **options)


def asymmetric_unhinged(
    logits: Tensor, targets: Tensor, a: float, q: float, **options: Unpack[LossOptions]
) -> Tensor:
    """Return ((a − p_y)^q − (a − 1)^q) / q."""
    return loss(partial(formulas.asymmetric_unhinged, a=a, q=q), logits, targets, **options)


def asymmetric_exponential(
    logits: Tensor, targets: Tensor, a: float, **options: Unpack[LossOptions]
) -> Tensor:
    """Return exp(−p_y / a)."""
    return loss(partial(formulas.asymmetric_exponential, a=a), logits, targets, **options)


def taylor_cross_entropy(
    logits: Tensor, targets: Tensor, order: int = 2, **options: Unpack[LossOptions]
) -> Tensor:
    """Return Σ_{i=1..t} (1 − p_y)^i / i."""
    return loss(partial(formulas.taylor_cross_entropy, order=order), logits, targets, **options)


def jensen_shannon(
    logits: Tensor,
    targets: Tensor,
    weight_of_label: float = 0.5,
    **options: Unpack[LossOptions],
) -> Tensor:
    """Return the scaled Jensen-Shannon divergence of label and prediction."""
    formula = partial(formulas.jensen_shannon, weight_of_label=weight_of_label)
    return loss(formula, logits, targets, **options)


def normalized_negative_cross_entropy(
    logits: Tensor, targets: Tensor, clip: float = 1e-7, **options: Unpack[LossOptions]
) -> Tensor:
    """Return 1 − (A + log p_y) / Σ_k (A + log p_k), with A = −log clip."""
    formula = partial(formulas.normalized_negative_cross_entropy, clip=clip)
    return loss(formula, logits, targets, **options)


def asymmetric_squared_error(
    logits: Tensor, targets: Tensor, a: float, **options: Unpack[LossOptions]
) -> Tensor:
    """Return the mean over classes k of (p_k − a·e_yk)²."""
    return loss(partial(formulas.asymmetric_squared_error, a=a), logits, targets, **options)


def sharpened_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    m: float,
    clip: float = 1e-8,
    **options: Unpack[LossOptions],
) -> Tensor:
    """Return −log q_y, where q is p with m added to its largest entry, divided by 1 + m."""
    formula = partial(formulas.sharpened_cross_entropy, m=m, clip=clip)
    return loss(formula, logits, targets, **options)


def partially_huberised_cross_entropy(
    logits: Tensor, targets: Tensor, tau: float, **options: Unpack[LossOptions]
) -> Tensor:
    """Return −log p_y, and its tangent where p_y is below 1/τ."""
    formula = partial(formulas.partially_huberised_cross_entropy, tau=tau)
    return loss(formula, logits, targets, **options)
