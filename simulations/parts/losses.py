"""The losses that a configuration can name."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from fedcurv import losses
from fedcurv.losses import RobustLoss
from fedcurv.simulations.own import call_own

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


def make_loss(description: str | Mapping[str, Any]) -> nn.Module:
    """Return a loss by name, or by a table with its name and settings.

    ``{name: function, function: module:function}`` calls that function with the other settings; it
    returns a module that is called with logits and targets.

    Raises:
        ValueError: for an unknown name, an unknown setting or one out of range.
    """
    options = dict(description) if isinstance(description, Mapping) else {"name": description}
    name = options.pop("name", None)
    if name == "function":
        place = options.pop("function", None)
        own = call_own("client.loss.function", str(place), **options)
        if not isinstance(own, nn.Module):
            raise ValueError(
                f"client.loss.function={place}: expected a torch.nn.Module that takes logits and "
                f"targets, got {type(own).__name__}"
            )
        return own
    if not isinstance(name, str) or name not in LOSSES:
        names = ", ".join((*LOSSES, "function"))
        raise ValueError(f"client.loss must be one of {names}, got {name!r}")
    try:
        return LOSSES[name](**options)
    except TypeError as error:
        raise ValueError(f"client.loss: {name!r} has no such setting: {error}") from error
