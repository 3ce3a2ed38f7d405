"""What every test may rely on: one thread, and the log as at the start, whatever ran before."""

import logging
import os
from collections.abc import Iterator

# threads of several processes wait for each other by spinning; torch and its children read it
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Undo what a command does to the log: Hydra adds handlers, and Flower's is made quiet."""
    loggers = [logging.getLogger(), logging.getLogger("flwr")]
    before = [(log.level, log.propagate, log.handlers[:]) for log in loggers]
    yield
    for log, (level, propagate, handlers) in zip(loggers, before, strict=True):
        log.setLevel(level)
        log.propagate, log.handlers[:] = propagate, handlers
    for log in logging.Logger.manager.loggerDict.values():
        if isinstance(log, logging.Logger):
            log.disabled = False
