"""What every test may rely on: one thread, and the log as at the start, whatever ran before."""

import logging
import os
from collections.abc import Iterator

# threads of several processes wait for each other by spinning; torch and its children read it
os.environ.setdefault("OMP_NUM_THREADS", "1")

import flwr  # noqa: F401  (its log has its own handler once it is imported)
import pytest

_LOGS = [logging.getLogger(), logging.getLogger("flwr")]
_AT_FIRST = [(log.level, log.propagate, log.handlers[:]) for log in _LOGS]


@pytest.fixture(autouse=True)
def log_as_at_first() -> Iterator[None]:
    """Undo what a command does to the log: Hydra adds handlers, and Flower's is made quiet.

    Before the test too: fixtures of a whole module have run commands by then.
    """
    _restore_log()
    yield
    _restore_log()


def _restore_log() -> None:
    for log, (level, propagate, handlers) in zip(_LOGS, _AT_FIRST, strict=True):
        log.setLevel(level)
        log.propagate = propagate
        capturing = [h for h in log.handlers if type(h).__module__.startswith("_pytest.")]
        log.handlers[:] = [*handlers, *(h for h in capturing if h not in handlers)]
    for log in logging.Logger.manager.loggerDict.values():
        if isinstance(log, logging.Logger):
            log.disabled = False
