"""Client side: FedCurv in any ClientApp, a ready-made ClientApp, and the local training loop."""

from fedcurv.clients.app import client_app
from fedcurv.clients.clipping_mods import adaptive_clipping_mod, fixed_clipping_mod
from fedcurv.clients.curvature import ClientCurvature
from fedcurv.clients.errors import ClientFailed, private_errors_mod
from fedcurv.clients.local_round import LocalTask
from fedcurv.clients.methods.named import ClientTerm
from fedcurv.clients.secure.mod import SecureSumsMod, secure_sums_mod
from fedcurv.clients.settings import TrainingSettings
from fedcurv.clients.terms import LocalTerm
from fedcurv.clients.training import evaluate, train

__all__ = [
    "ClientCurvature",
    "ClientFailed",
    "ClientTerm",
    "LocalTask",
    "LocalTerm",
    "SecureSumsMod",
    "TrainingSettings",
    "adaptive_clipping_mod",
    "client_app",
    "evaluate",
    "fixed_clipping_mod",
    "private_errors_mod",
    "secure_sums_mod",
    "train",
]
