"""Losses that were published from 2020 on: sums with other passive losses, and sharper ones."""

from typing import Any, Unpack

from torch import Tensor

from fedcurv.losses import formulas
from fedcurv.losses.base import RobustLoss, in_range, loss_of_logits
from fedcurv.losses.modules import (
    ActivePassiveLoss,
    AsymmetricExponential,
    AsymmetricGeneralizedCrossEntropy,
    AsymmetricUnhinged,
    CrossEntropy,
    MeanAbsoluteError,
)
from fedcurv.losses.reduction import LossOptions
from fedcurv.losses.registry import LOSSES, register_loss


@register_loss("nnce")
class NormalizedNegativeCrossEntropy(RobustLoss):
    """1 − (A + log p_y) / Σ_k (A + log p_k), with A = −log clip: symmetric and passive.

    Args:
        clip: in (0, 1), what no probability falls below. Published default 1e-7.
        **options: see ``LossOptions``.
    """

    def __init__(self, clip: float = 1e-7, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.clip = in_range("clip", clip, lambda v: 0 < v < 1, "in (0, 1)")

    def of_labels(self, logits: Tensor) -> Tensor:
        """Return the loss under every label."""
        return formulas.normalized_negative_cross_entropy(logits, self.clip)


@register_loss("amse")
class AsymmetricSquaredError(RobustLoss):
    """The mean over classes k of (p_k − a·e_yk)².

    Args:
        a: > 0. Published defaults: 30 CIFAR-10, 20 CIFAR-100.
        **options: see ``LossOptions``.
    """

    def __init__(self, a: float = 30.0, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.a = in_range("a", a, lambda v: v > 0, "> 0")

    def of_labels(self, logits: Tensor) -> Tensor:
        """Return the loss under every label."""
        return formulas.asymmetric_squared_error(logits, self.a)


@register_loss("ce_eps")
class SharpenedCrossEntropy(RobustLoss):
    """−log q_y, where q is p with m added to its largest entry, divided by 1 + m (CE_ε).

    Args:
        m: >= 0; 0 is cross-entropy. Published default 1e5, beside mean absolute error.
        clip: in (0, 1), what no entry of q falls below: samples that are far off have no gradient.
        **options: see ``LossOptions``.
    """

    def __init__(self, m: float = 1e5, clip: float = 1e-8, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.m = in_range("m", m, lambda v: v >= 0, ">= 0")
        self.clip = in_range("clip", clip, lambda v: 0 < v < 1, "in (0, 1)")

    def of_labels(self, logits: Tensor) -> Tensor:
        """Return the loss under every label."""
        return formulas.sharpened_cross_entropy(logits, self.m, self.clip)


@register_loss("phuber")
class PartiallyHuberisedCrossEntropy(RobustLoss):
    """−log p_y, and its tangent where p_y is below 1/τ (PHuber-CE).

    Args:
        tau: τ > 1: the largest slope in p_y.
        **options: see ``LossOptions``.
    """

    def __init__(self, tau: float = 10.0, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.tau = in_range("tau", tau, lambda v: v > 1, "> 1")

    def of_labels(self, logits: Tensor) -> Tensor:
        """Return the loss under every label."""
        return formulas.partially_huberised_cross_entropy(logits, self.tau)


class LogitClip(RobustLoss):
    """Any loss of logits whose norm is at most δ: z·min(1, δ/‖z‖₂).

    Args:
        loss: of this package, by default cross-entropy.
        delta: δ > 0. Published: 1 to 2.5 CIFAR-10, 0.5 CIFAR-100.
        **options: see ``LossOptions``; those of the loss are not used.
    """

    def __init__(
        self, loss: RobustLoss | None = None, delta: float = 1.0, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(**options)
        self.loss = loss_of_logits("loss", loss, CrossEntropy)
        self.delta = in_range("delta", delta, lambda v: v > 0, "> 0")

    def of_labels(self, logits: Tensor) -> Tensor:
        """Return the loss under every label."""
        return self.loss.of_labels(formulas.clipped_logits(logits, self.delta))


@register_loss("logit_clip")
def _clipped(loss: str = "cross_entropy", delta: float = 1.0, **options: Any) -> LogitClip:
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    return LogitClip(LOSSES[loss](), delta, **options)


@register_loss("anl-ce")
def active_negative(
    alpha: float = 5.0, beta: float = 5.0, clip: float = 1e-7, **options: Any
) -> ActivePassiveLoss:
    """Return α·NCE + β·NNCE (ANL-CE), without its δ‖w‖₁, which is of the weights."""
    passive = NormalizedNegativeCrossEntropy(clip)
    return ActivePassiveLoss(passive=passive, alpha=alpha, beta=beta, **options)


@register_loss("jal-ce")
def joint_asymmetric(
    alpha: float = 1.0, beta: float = 1.0, a: float = 30.0, **options: Any
) -> ActivePassiveLoss:
    """Return α·NCE + β·asymmetric squared error (JAL-CE)."""
    passive = AsymmetricSquaredError(a)
    return ActivePassiveLoss(passive=passive, alpha=alpha, beta=beta, **options)


@register_loss("ce_eps+mae")
def sharpened_with_mean_absolute_error(
    alpha: float = 0.01, beta: float = 5.0, m: float = 1e5, clip: float = 1e-8, **options: Any
) -> ActivePassiveLoss:
    """Return α·CE_ε + β·MAE."""
    active = SharpenedCrossEntropy(m, clip)
    return ActivePassiveLoss(active, MeanAbsoluteError(), alpha, beta, **options)


@register_loss("nce+agce")
def with_agce(
    alpha: float = 1.0, beta: float = 4.0, a: float = 6.0, q: float = 1.5, **options: Any
) -> ActivePassiveLoss:
    """Return α·NCE + β·AGCE."""
    passive = AsymmetricGeneralizedCrossEntropy(a, q)
    return ActivePassiveLoss(passive=passive, alpha=alpha, beta=beta, **options)


@register_loss("nce+aul")
def with_aul(
    alpha: float = 1.0, beta: float = 4.0, a: float = 6.3, q: float = 1.5, **options: Any
) -> ActivePassiveLoss:
    """Return α·NCE + β·AUL."""
    passive = AsymmetricUnhinged(a, q)
    return ActivePassiveLoss(passive=passive, alpha=alpha, beta=beta, **options)


@register_loss("nce+ael")
def with_ael(
    alpha: float = 1.0, beta: float = 4.0, a: float = 5.0, **options: Any
) -> ActivePassiveLoss:
    """Return α·NCE + β·AEL."""
    passive = AsymmetricExponential(a)
    return ActivePassiveLoss(passive=passive, alpha=alpha, beta=beta, **options)
