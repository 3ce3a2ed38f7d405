"""What every test may rely on: the log is as at the start, whatever ran in the process before."""

import logging
from collections.abc import Iterator

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
