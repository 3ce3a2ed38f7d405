"""Warnings of what may surprise a user, told once a process however often they are met."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

_told: set[str] = set()


def tell_once(text: str) -> None:
    """Log a line as a warning, unless this process has told it already."""
    if text not in _told:
        _told.add(text)
        logger.warning("%s", text)


@contextmanager
def each_line_once() -> Iterator[None]:
    """Let the log have each line of this package once, however many clients of a run cause it."""
    filters = [(handler, _Repeated()) for handler in logging.getLogger().handlers]
    for handler, repeated in filters:
        handler.addFilter(repeated)
    try:
        yield
    finally:
        for handler, repeated in filters:
            handler.removeFilter(repeated)


class _Repeated(logging.Filter):
    """Keeps from a handler what it has written already."""

    def __init__(self) -> None:
        super().__init__("fedcurv")
        self._written: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is another package's, or new."""
        line = record.name, record.getMessage()
        if not super().filter(record):
            return True
        is_new = line not in self._written
        self._written.add(line)
        return is_new
