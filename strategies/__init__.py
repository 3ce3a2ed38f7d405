"""Server side: the FedCurv strategy, the records that travel, and a round loop for any strategy."""

from fedcurv.strategies.best_model import BestModel
from fedcurv.strategies.fedcurv import FedCurv
from fedcurv.strategies.loop import start
from fedcurv.strategies.replies import RoundFailed
from fedcurv.strategies.stopping import EarlyStopping
from fedcurv.strategies.strength import AutoStrength
from fedcurv.strategies.watchers import JsonLines, ScalarLog, TensorBoard

__all__ = [
    "AutoStrength",
    "BestModel",
    "EarlyStopping",
    "FedCurv",
    "JsonLines",
    "RoundFailed",
    "ScalarLog",
    "TensorBoard",
    "start",
]
