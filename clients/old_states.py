"""Removes the states of federations that have ended, by age and by size."""

import logging
import math
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

DAYS_VARIABLE = "FEDCURV_STATE_MAX_DAYS"
GIGABYTES_VARIABLE = "FEDCURV_STATE_MAX_GB"

_DEFAULT_DAYS, _DEFAULT_GIGABYTES = 30.0, 10.0
_DAY_S, _GIGABYTE = 86_400.0, 1e9
# a federation that was used within it may go on
_IN_USE_S = _DAY_S

_FOLDER = re.compile(r"federation-[0-9a-f]{16}")

# where this process has looked already
_seen: set[Path] = set()


@dataclass(frozen=True)
class _State:
    folder: Path
    used: float
    size: int


def remove_old_states(directory: Path, current: Path) -> None:
    """Remove federations' folders that are too old, then the oldest while all are too large.

    Nothing is removed of the current federation, or of one that was used within a day. A process
    looks once for each federation that it takes part in.

    Args:
        directory: of all federations.
        current: the folder of the one that goes on.

    Raises:
        ValueError: if ``$FEDCURV_STATE_MAX_DAYS`` (30) or ``$FEDCURV_STATE_MAX_GB`` (10) is not
            >= 0; ``inf`` removes nothing.
    """
    days = _bound(DAYS_VARIABLE, _DEFAULT_DAYS)
    gigabytes = _bound(GIGABYTES_VARIABLE, _DEFAULT_GIGABYTES)
    if current in _seen:
        return
    _seen.add(current)
    states, now = _states(directory), time.time()
    total = sum(state.size for state in states)
    for state in sorted(states, key=lambda s: s.used):
        age = now - state.used
        too_large = total > gigabytes * _GIGABYTE
        if state.folder == current or age <= _IN_USE_S or not (age > days * _DAY_S or too_large):
            continue
        logger.info("removed %s, unused for %.0f days", state.folder, age / _DAY_S)
        shutil.rmtree(state.folder, ignore_errors=True)
        total -= state.size
    if total > gigabytes * _GIGABYTE:
        logger.warning(
            "states in %s take %.1f GB, above %s=%g, and all were used within a day",
            directory,
            total / _GIGABYTE,
            GIGABYTES_VARIABLE,
            gigabytes,
        )


def _bound(variable: str, default: float) -> float:
    text = os.environ.get(variable) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise ValueError(f"${variable} must be a number >= 0, got {text!r}")
    return value


def _states(directory: Path) -> list[_State]:
    states = []
    for folder in directory.iterdir():
        if _FOLDER.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
            used, size = 0.0, 0
            for path in (folder, *folder.rglob("*")):
                try:
                    status = path.lstat()
                except OSError:  # another client's, gone by now
                    continue
                used, size = max(used, status.st_mtime), size + status.st_size
            states.append(_State(folder, used, size))
    return states
