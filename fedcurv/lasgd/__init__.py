"""LASGD: workers that train one model asynchronously, with exact All-Reduce averaging.

Source: arXiv 2203.13085.
"""

from fedcurv.lasgd.control import WorkerLost
from fedcurv.lasgd.hosting import host_store
from fedcurv.lasgd.lasgd import LASGD
from fedcurv.lasgd.shared import Loss
from fedcurv.lasgd.stats import Stats

__all__ = ["LASGD", "Loss", "Stats", "WorkerLost", "host_store"]
