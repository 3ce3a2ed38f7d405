"""Programs that a command has started: found, and ended with it, whatever ends it."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_LISTING_S = 5


def end_all(processes: "Sequence[subprocess.Popen[Any]]", *, patience_s: float = 0.0) -> None:
    """End processes with sessions of their own, and all that they have started.

    Args:
        processes: in the order in which they were started.
        patience_s: how long all together may take to end by themselves; what is left is killed.
    """
    # some of what they start has a session of its own, and outlives them
    started = _descendants([process.pid for process in processes])
    deadline = time.monotonic() + patience_s
    try:
        for process in reversed(processes if patience_s else ()):
            process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        started |= _descendants(pid for pid, _ in started)
        for pid, _ in started & set(_table()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for process in processes:
            process.wait()


def _descendants(pids: Iterable[int]) -> set[tuple[int, str]]:
    """Return the processes that these have started, and those in turn: numbers and start times."""
    table, parents = _table(), set(pids)
    found: set[tuple[int, str]] = set()
    while True:
        new = {one for one, parent in table.items() if parent in parents} - found
        if not new:
            return found
        found |= new
        parents |= {pid for pid, _ in new}


def _table() -> dict[tuple[int, str], int]:
    """Return every process's parent, by its number and start time; none where there is no ps."""
    try:
        listed = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid=,lstart="],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=_LISTING_S,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    fields = [line.split(maxsplit=2) for line in listed.splitlines()]
    return {(int(pid), begin): int(parent) for pid, parent, begin in fields}


def with_programs(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which the programs beside this Python are found first."""
    programs = Path(sys.executable).parent
    return {**environment, "PATH": f"{programs}{os.pathsep}{environment.get('PATH', '')}"}


def found_program(name: str, environment: Mapping[str, str]) -> str:
    """Return a program's path, as the environment finds it."""
    return shutil.which(name, path=environment.get("PATH")) or name
