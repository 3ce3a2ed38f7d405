"""Losses that tolerate label noise, with the interface of ``torch.nn.CrossEntropyLoss``.

A loss is symmetric if its sum over all labels does not depend on the prediction; under uniform
noise it then keeps its minimisers. Output regularisation makes cross-entropy symmetric in the limit
(arXiv 2104.12477); the well-known bounded losses stand beside it.
"""

from fedcurv.discovery import import_all
from fedcurv.losses.base import RobustLoss
from fedcurv.losses.modules import (
    ActivePassiveLoss,
    AsymmetricExponential,
    AsymmetricGeneralizedCrossEntropy,
    AsymmetricUnhinged,
    CrossEntropy,
    GeneralizedCrossEntropy,
    JensenShannon,
    MeanAbsoluteError,
    NormalizedCrossEntropy,
    ReverseCrossEntropy,
    SymmetricCrossEntropy,
    TaylorCrossEntropy,
)
from fedcurv.losses.presets import PRESETS, preset
from fedcurv.losses.recent import (
    AsymmetricSquaredError,
    LogitClip,
    NormalizedNegativeCrossEntropy,
    PartiallyHuberisedCrossEntropy,
    SharpenedCrossEntropy,
)
from fedcurv.losses.registry import LOSSES, register_loss
from fedcurv.losses.regularized import RegularizedCrossEntropy
from fedcurv.losses.symmetry import symmetry_gap

import_all(__name__, __path__)

__all__ = [
    "LOSSES",
    "PRESETS",
    "ActivePassiveLoss",
    "AsymmetricExponential",
    "AsymmetricGeneralizedCrossEntropy",
    "AsymmetricSquaredError",
    "AsymmetricUnhinged",
    "CrossEntropy",
    "GeneralizedCrossEntropy",
    "JensenShannon",
    "LogitClip",
    "MeanAbsoluteError",
    "NormalizedCrossEntropy",
    "NormalizedNegativeCrossEntropy",
    "PartiallyHuberisedCrossEntropy",
    "RegularizedCrossEntropy",
    "ReverseCrossEntropy",
    "RobustLoss",
    "SharpenedCrossEntropy",
    "SymmetricCrossEntropy",
    "TaylorCrossEntropy",
    "preset",
    "register_loss",
    "symmetry_gap",
]
