"""Server side: the FedCurv strategy, the records that travel, and a round loop for any strategy."""

from fedcurv.strategies.fedcurv import FedCurv
from fedcurv.strategies.loop import start
from fedcurv.strategies.replies import RoundFailed
from fedcurv.strategies.stopping import EarlyStopping
from fedcurv.strategies.watchers import JsonLines

__all__ = ["EarlyStopping", "FedCurv", "JsonLines", "RoundFailed", "start"]
