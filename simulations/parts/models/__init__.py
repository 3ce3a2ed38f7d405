"""The experiments' models, by name; a file registers its own as it is imported."""

from fedcurv.discovery import import_all
from fedcurv.simulations.parts.models.pictures import cnn, mlp, resnet18, seems_channels_last
from fedcurv.simulations.parts.models.registry import MODELS, register_model
from fedcurv.simulations.parts.models.small import lenet, small_resnet
from fedcurv.simulations.parts.models.tokens import lstm, transformer

import_all(__name__, __path__)

__all__ = [
    "MODELS",
    "cnn",
    "lenet",
    "lstm",
    "mlp",
    "register_model",
    "resnet18",
    "seems_channels_last",
    "small_resnet",
    "transformer",
]
