"""Losses with the settings that their authors published for a data set."""

from collections.abc import Callable
from functools import partial

from fedcurv.losses import modules
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
}


def preset(loss: str, data_set: str) -> RobustLoss:
    """Return a loss with the published settings.

    Args:
        loss: ``gce``, ``sce``, ``nce+rce``, ``nce+mae``, ``agce``, ``aul`` or ``ael``.
        data_set: ``mnist``, ``cifar10`` or ``cifar100``, as far as there are settings.

    Raises:
        ValueError: if there are none.
    """
    if loss not in PRESETS:
        raise ValueError(f"loss must be one of {', '.join(PRESETS)}, got {loss!r}")
    if data_set not in PRESETS[loss]:
        raise ValueError(
            f"{loss!r} has settings for {', '.join(PRESETS[loss])}, got {data_set!r}; choose them "
            "yourself"
        )
    return PRESETS[loss][data_set]()
