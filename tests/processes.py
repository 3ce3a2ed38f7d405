"""Processes that a test has started."""

from pathlib import Path


def is_alive(pid: int) -> bool:
    """Return whether there is a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
