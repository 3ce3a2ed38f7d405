"""Server side: the FedCurv strategy, the records that travel, and a round loop for any strategy."""

from fedcurv.strategies.fedcurv import FedCurv
from fedcurv.strategies.loop import start
from fedcurv.strategies.replies import RoundFailed
from fedcurv.strategies.stopping import EarlyStopping

__all__ = ["EarlyStopping", "FedCurv", "RoundFailed", "start"]
