"""The losses that a configuration can name."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fedcurv import losses
from fedcurv.losses import RobustLoss

# by name, with what may be set beside the name
LOSSES: dict[str, Callable[..., RobustLoss]] = {
    "cross_entropy": losses.CrossEntropy,
    **{
        name: partial(losses.RegularizedCrossEntropy, name)
        for name in ("label_smoothing", "entropy", "squared_output", "logit")
    },
    "mae": losses.MeanAbsoluteError,
    "gce": losses.GeneralizedCrossEntropy,
    "rce": losses.ReverseCrossEntropy,
    "sce": losses.SymmetricCrossEntropy,
    "nce": losses.NormalizedCrossEntropy,
    "nce+rce": losses.ActivePassiveLoss,
    "nce+mae": partial(losses.ActivePassiveLoss, passive=losses.MeanAbsoluteError()),
    "agce": losses.AsymmetricGeneralizedCrossEntropy,
    "aul": losses.AsymmetricUnhinged,
    "ael": losses.AsymmetricExponential,
    "taylor": losses.TaylorCrossEntropy,
    "js": losses.JensenShannon,
}


def make_loss(description: str | Mapping[str, Any]) -> RobustLoss:
    """Return a loss by name, or by a table with its name and settings.

    Raises:
        ValueError: for an unknown name, an unknown setting or one out of range.
    """
    options = dict(description) if isinstance(description, Mapping) else {"name": description}
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in LOSSES:
        raise ValueError(f"client.loss must be one of {', '.join(LOSSES)}, got {name!r}")
    try:
        return LOSSES[name](**options)
    except TypeError as error:
        raise ValueError(f"client.loss: {name!r} has no such setting: {error}") from error
