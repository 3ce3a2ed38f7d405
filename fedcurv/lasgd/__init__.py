"""LASGD: workers that train one model asynchronously, with exact All-Reduce averaging.

Source: arXiv 2203.13085.
"""

try:
    from torch.distributed import TCPStore as _TCPStore  # type: ignore[attr-defined]  # noqa: F401
except ImportError as error:
    raise ImportError(
        "fedcurv.lasgd needs torch.distributed, which this build of torch lacks; install one that "
        "has it, or train with one process"
    ) from error

from fedcurv.lasgd.hosting import host_store
from fedcurv.lasgd.lasgd import LASGD
from fedcurv.lasgd.shared import LostWorker
from fedcurv.lasgd.stats import Stats
from fedcurv.lasgd.store import WorkerLost
from fedcurv.lasgd.watch import WorkersDiffer

__all__ = ["LASGD", "LostWorker", "Stats", "WorkerLost", "WorkersDiffer", "host_store"]
