"""Client side: FedCurv in any ClientApp, a ready-made ClientApp, and the local training loop."""

from fedcurv.clients.app import LocalTask, client_app
from fedcurv.clients.curvature import ClientCurvature
from fedcurv.clients.errors import ClientFailed, private_errors_mod
from fedcurv.clients.training import TrainingSettings, evaluate, train

__all__ = [
    "ClientCurvature",
    "ClientFailed",
    "LocalTask",
    "TrainingSettings",
    "client_app",
    "evaluate",
    "private_errors_mod",
    "train",
]
