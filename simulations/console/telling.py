"""Warnings of what may surprise a user, told once a process however often they are met."""

import logging

logger = logging.getLogger(__name__)

_told: set[str] = set()


def tell_once(text: str) -> None:
    """Log a line as a warning, unless this process has told it already."""
    if text not in _told:
        _told.add(text)
        logger.warning("%s", text)
