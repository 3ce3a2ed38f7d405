"""The well-known losses that tolerate label noise, as modules."""

from numbers import Integral
from typing import Any, Unpack

from torch import Tensor

from fedcurv.losses import formulas
from fedcurv.losses.base import RobustLoss, in_range, loss_of_logits
from fedcurv.losses.formulas import LOG_OF_ZERO
from fedcurv.losses.reduction import LossOptions
from fedcurv.losses.registry import register_loss


@register_loss("cross_entropy")
class CrossEntropy(RobustLoss):
    """−log p_y, as ``torch.nn.CrossEntropyLoss``; here to be compared and combined."""

    def of_labels(self, logits: Tensor) -> Tensor:
        """Return the loss under every label."""
        return formulas.cross_entropy(logits)


@register_loss("mae")
class MeanAbsoluteError(RobustLoss):
    """1 − p_y: symmetric, and slow to learn from."""

    def of_labels(self, logits: Tensor) -> Tensor:
        """Return the loss under every label."""
        return formulas.mean_absolute_error(logits)


@register_loss("gce")
class GeneralizedCrossEntropy(RobustLoss):
    """(1 − p_y^q) / q, optionally truncated.

    Args:
        q: in (0, 1]; cross-entropy as q → 0, mean absolute error at 1. Published default 0.7.
        truncation: in (0, 1), the p_y below which a sample has no gradient; None for none.
        **options: see ``LossOptions``.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(
        self, q: float = 0.7, truncation: float | None = None, **options: Unpack[LossOptions]
    ) -> None:
        super().__init__(**options)
        self.q = in_range("q", q, lambda v: 0 < v <= 1, "in (0, 1]")
        self.truncation = (
            None
            if truncation is None
            else in_range("truncation", truncation, lambda v: 0 < v < 1, "in (0, 1)")
        )

    def of_labels(self, logits: Tensor) -> Tensor:
        """Return the loss under every label."""
        return formulas.generalized_cross_entropy(logits, self.q, self.truncation)


@register_loss("rce")
class ReverseCrossEntropy(RobustLoss):
    """−A (1 − p_y), with A for the logarithm of zero.

    Args:
        log_of_zero: A < 0; published default ln 1e-4.
        **options: see ``LossOptions``.
    """

    def __init__(self, log_of_zero: float = LOG_OF_ZERO, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.log_of_zero = in_range("log_of_zero", log_of_zero, lambda v: v < 0, "< 0")

    def of_labels(self, logits: Tensor) -> Tensor:
        """Return the loss under every label."""
        return formulas.reverse_cross_entropy(logits, self.log_of_zero)


@register_loss("sce")
class SymmetricCrossEntropy(RobustLoss):
    """α·cross-entropy + β·reverse cross-entropy.

    Args:
        alpha: α >= 0.
        beta: β >= 0. Published defaults for (α, β): (0.1, 1) CIFAR-10, (6, 0.1) CIFAR-100.
        log_of_zero: A < 0, for the logarithm of zero.
        **options: see ``LossOptions``.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        beta: float = 1.0,
        log_of_zero: float = LOG_OF_ZERO,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.alpha = in_range("alpha", alpha, lambda v: v >= 0, ">= 0")
        self.beta = in_range("beta", beta, lambda v: v >= 0, ">= 0")
        self.log_of_zero = in_range("log_of_zero", log_of_zero, lambda v: v < 0, "< 0")

    def of_labels(self, logits: Tensor) -> Tensor:
        """Return the loss under every label."""
        return formulas.symmetric_cross_entropy(logits, self.alpha, self.beta, self.log_of_zero)


@register_loss("nce")
class NormalizedCrossEntropy(RobustLoss):
    """log p_y / Σ_k log p_k: symmetric, and robust at the price of fitting less."""

    def of_labels(self, logits: Tensor) -> Tensor:
        """Return the loss under every label."""
        return formulas.normalized_cross_entropy(logits)


@register_loss("nce+rce")
class ActivePassiveLoss(RobustLoss):
    """α·active + β·passive: one loss that raises p_y and one that lowers the others'.

    Args:
        active: any loss of this package, by default normalised cross-entropy.
        passive: any loss of this package, by default reverse cross-entropy.
        alpha: α >= 0.
        beta: β >= 0. Published defaults for (α, β): (1, 1) CIFAR-10, (10, 0.1) CIFAR-100.
        **options: see ``LossOptions``; those of the two losses are not used.
    """

    def __init__(
        self,
        active: RobustLoss | None = None,
        passive: RobustLoss | None = None,
        alpha: float = 1.0,
        beta: float = 1.0,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(**options)
        self.active = loss_of_logits("active", active, NormalizedCrossEntropy)
        self.passive = loss_of_logits("passive", passive, ReverseCrossEntropy)
        self.alpha = in_range("alpha", alpha, lambda v: v >= 0, ">= 0")
        self.beta = in_range("beta", beta, lambda v: v >= 0, ">= 0")

    def of_labels(self, logits: Tensor) -> Tensor:
        """Return the loss under every label."""
        active, passive = self.active.of_labels(logits), self.passive.of_labels(logits)
        return formulas.weighted_sum(self.alpha, active, self.beta, passive)


@register_loss("agce")
class AsymmetricGeneralizedCrossEntropy(RobustLoss):
    """((a + 1)^q − (a + p_y)^q) / q (AGCE).

    Args:
        a: > 0.
        q: > 0. Published defaults for (a, q): (4, 0.2) MNIST, (0.6, 0.6) CIFAR.
        **options: see ``LossOptions``.
    """

    def __init__(self, a: float = 0.6, q: float = 0.6, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.a = in_range("a", a, lambda v: v > 0, "> 0")
        self.q = in_range("q", q, lambda v: v > 0, "> 0")

    def of_labels(self, logits: Tensor) -> Tensor:
        """Return the loss under every label."""
        return formulas.asymmetric_generalized_cross_entropy(logits, self.a, self.q)


@register_loss("aul")
class AsymmetricUnhinged(RobustLoss):
    """((a − p_y)^q − (a − 1)^q) / q (AUL).

    Args:
        a: > 1.
        q: > 0. Published defaults for (a, q): (3, 0.1) MNIST, (5.5, 3) CIFAR.
        **options: see ``LossOptions``.
    """

    def __init__(self, a: float = 5.5, q: float = 3.0, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.a = in_range("a", a, lambda v: v > 1, "> 1")
        self.q = in_range("q", q, lambda v: v > 0, "> 0")

    def of_labels(self, logits: Tensor) -> Tensor:
        """Return the loss under every label."""
        return formulas.asymmetric_unhinged(logits, self.a, self.q)


@register_loss("ael")
class AsymmetricExponential(RobustLoss):
    """exp(−p_y / a) (AEL).

    Args:
        a: > 0. Published defaults: 3.5 MNIST, 2.5 CIFAR.
        **options: see ``LossOptions``.
    """

    def __init__(self, a: float = 2.5, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.a = in_range("a", a, lambda v: v > 0, "> 0")

    def of_labels(self, logits: Tensor) -> Tensor:
        """Return the loss under every label."""
        return formulas.asymmetric_exponential(logits, self.a)


@register_loss("taylor")
class TaylorCrossEntropy(RobustLoss):
    """Σ_{i=1..t} (1 − p_y)^i / i: cross-entropy's series, cut off.

    Args:
        order: t >= 1.
        **options: see ``LossOptions``.
    """

    def __init__(self, order: int = 2, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        in_range("order", order, lambda v: isinstance(v, Integral) and v >= 1, "an integer >= 1")
        self.order = int(order)

    def of_labels(self, logits: Tensor) -> Tensor:
        """Return the loss under every label."""
        return formulas.taylor_cross_entropy(logits, self.order)


@register_loss("js")
class JensenShannon(RobustLoss):
    """Generalised Jensen-Shannon divergence of label and prediction, scaled.

    Args:
        weight_of_label: π in (0, 1): cross-entropy as π → 0, mean absolute error as π → 1.
        **options: see ``LossOptions``.
    """

    def __init__(self, weight_of_label: float = 0.5, **options: Unpack[LossOptions]) -> None:
        super().__init__(**options)
        self.weight_of_label = in_range(
            "weight_of_label", weight_of_label, lambda v: 0 < v < 1, "in (0, 1)"
        )

    def of_labels(self, logits: Tensor) -> Tensor:
        """Return the loss under every label."""
        return formulas.jensen_shannon(logits, self.weight_of_label)


@register_loss("nce+mae")
def _with_mean_absolute_error(**options: Any) -> ActivePassiveLoss:
    return ActivePassiveLoss(**{"passive": MeanAbsoluteError(), **options})
