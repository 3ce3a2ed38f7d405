"""Server side: the FedCurv strategy, the records that travel, and a round loop for any strategy."""

from fedcurv.strategies.fedcurv import FedCurv
from fedcurv.strategies.feddyn import FedDyn
from fedcurv.strategies.fednova import FedNova
from fedcurv.strategies.loop.best_model import BestModel
from fedcurv.strategies.loop.start import start
from fedcurv.strategies.loop.stopping import EarlyStopping
from fedcurv.strategies.loop.strategy_calls import StrategyFailed
from fedcurv.strategies.loop.watchers import JsonLines, ScalarLog, TensorBoard
from fedcurv.strategies.private.private_sums import PrivateSums
from fedcurv.strategies.replies.check import RoundFailed
from fedcurv.strategies.scaffold import Scaffold
from fedcurv.strategies.secure.secure_sums import SecureSums
from fedcurv.strategies.strength import AutoStrength

__all__ = [
    "AutoStrength",
    "BestModel",
    "EarlyStopping",
    "FedCurv",
    "FedDyn",
    "FedNova",
    "JsonLines",
    "PrivateSums",
    "RoundFailed",
    "Scaffold",
    "ScalarLog",
    "SecureSums",
    "StrategyFailed",
    "TensorBoard",
    "start",
]
