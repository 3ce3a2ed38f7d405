"""Losses with the settings that their authors published for a data set."""

from collections.abc import Callable
from functools import partial

from fedcurv.losses import modules, recent
from fedcurv.losses.base import RobustLoss
from fedcurv.losses.modules import ActivePassiveLoss

_MAE = modules.MeanAbsoluteError

# by name of the loss and of the data set
PRESETS: dict[str, dict[str, Callable[[], RobustLoss]]] = {
    "gce": {
        data_set: partial(modules.GeneralizedCrossEntropy, q=0.7)
        for data_set in ("cifar10", "cifar100")
    },
    "sce": {
        "cifar10": partial(modules.SymmetricCrossEntropy, 0.1, 1.0),
        "cifar100": partial(modules.SymmetricCrossEntropy, 6.0, 0.1),
    },
    "nce+rce": {
        "mnist": partial(ActivePassiveLoss, alpha=1.0, beta=100.0),
        "cifar10": partial(ActivePassiveLoss, alpha=1.0, beta=1.0),
        "cifar100": partial(ActivePassiveLoss, alpha=10.0, beta=0.1),
    },
    "nce+mae": {
        "mnist": lambda: ActivePassiveLoss(passive=_MAE(), alpha=1.0, beta=100.0),
        "cifar10": lambda: ActivePassiveLoss(passive=_MAE(), alpha=1.0, beta=1.0),
        "cifar100": lambda: ActivePassiveLoss(passive=_MAE(), alpha=10.0, beta=0.1),
    },
    "agce": {
        "mnist": partial(modules.AsymmetricGeneralizedCrossEntropy, 4.0, 0.2),
        "cifar10": partial(modules.AsymmetricGeneralizedCrossEntropy, 0.6, 0.6),
        "cifar100": partial(modules.AsymmetricGeneralizedCrossEntropy, 0.6, 0.6),
    },
    "aul": {
        "mnist": partial(modules.AsymmetricUnhinged, 3.0, 0.1),
        "cifar10": partial(modules.AsymmetricUnhinged, 5.5, 3.0),
        "cifar100": partial(modules.AsymmetricUnhinged, 5.5, 3.0),
    },
    "ael": {
        "mnist": partial(modules.AsymmetricExponential, 3.5),
        "cifar10": partial(modules.AsymmetricExponential, 2.5),
        "cifar100": partial(modules.AsymmetricExponential, 2.5),
    },
    # without their δ‖w‖₁, which is of the weights and not of logits: 5e-5 and 5e-7
    "anl-ce": {
        "cifar10": partial(recent.active_negative, alpha=5.0, beta=5.0),
        "cifar100": partial(recent.active_negative, alpha=10.0, beta=1.0),
    },
    "jal-ce": {
        "cifar10": partial(recent.joint_asymmetric, alpha=1.0, beta=1.0, a=30.0),
        "cifar100": partial(recent.joint_asymmetric, alpha=5.0, beta=1.0, a=20.0),
    },
    # for symmetric noise
    "ce_eps+mae": {
        "cifar10": partial(recent.sharpened_with_mean_absolute_error, alpha=0.01, beta=5.0, m=1e5)
    },
    "nce+agce": {
        "cifar10": partial(recent.with_agce, alpha=1.0, beta=4.0, a=6.0, q=1.5),
        "cifar100": partial(recent.with_agce, alpha=10.0, beta=0.1, a=1.8, q=3.0),
    },
    "nce+aul": {
        "cifar10": partial(recent.with_aul, alpha=1.0, beta=4.0, a=6.3, q=1.5),
        "cifar100": partial(recent.with_aul, alpha=10.0, beta=0.015, a=6.0, q=3.0),
    },
    "nce+ael": {
        "cifar10": partial(recent.with_ael, alpha=1.0, beta=4.0, a=5.0),
        "cifar100": partial(recent.with_ael, alpha=10.0, beta=0.1, a=1.5),
    },
}


def preset(loss: str, data_set: str) -> RobustLoss:
    """Return a loss with the published settings.

    Args:
        loss: one of ``PRESETS``, such as ``gce``, ``nce+rce`` or ``jal-ce``; capitals or not.
        data_set: ``mnist``, ``cifar10`` or ``cifar100``, as far as there are settings; likewise.

    Raises:
        ValueError: if there are none.
    """
    loss, data_set = str(loss).lower(), str(data_set).lower()
    if loss not in PRESETS:
        raise ValueError(f"loss must be one of {', '.join(PRESETS)}, got {loss!r}")
    if data_set not in PRESETS[loss]:
        raise ValueError(
            f"{loss!r} has settings for {', '.join(PRESETS[loss])}, got {data_set!r}; choose them "
            "yourself"
        )
    return PRESETS[loss][data_set]()
