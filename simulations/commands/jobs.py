"""A sweep's jobs, in one process or in several: what each leaves for the command that waits."""

import os
import platform
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import filter_overrides
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

# a training has diverged, or all of its clients failed; everything else was done and written
EXIT_ENDED_EARLY = 3

# in the folder of a job that came to no results, and in that of one with a training that ended so
_FAILED, _ENDED_EARLY = "failed.txt", "ended_early.txt"

_LOOK_S = 0.5

Launcher = tuple[str, int]


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep.

    Attributes:
        name: its number, as Hydra lists it.
        overrides: that it was given.
    """

    name: str
    overrides: str

    def __str__(self) -> str:
        """Return the job as messages name it."""
        return f"job {self.name} ({self.overrides})"


def job_of_sweep() -> SweepJob | None:
    """Return which job this is, or None if there is no sweep."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode != RunMode.MULTIRUN:
        return None
    overrides = " ".join(filter_overrides([*hydra_config.overrides.task]))
    return SweepJob(f"#{hydra_config.job.num}", overrides)


def note_failed(folder: Path, job: SweepJob, fault: str) -> None:
    """Leave in a job's folder why it came to no results."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _FAILED).write_text(f"{job}: {fault}\n", encoding="utf-8")


def note_ended_early(folder: Path, job: SweepJob, lines: Sequence[str]) -> None:
    """Leave in a job's folder which trainings did not come to their end, if there are any."""
    if lines:
        text = "".join(f"{job}: {line}\n" for line in lines)
        (folder / _ENDED_EARLY).write_text(text, encoding="utf-8")


class Outcomes(Callback):
    """Tells at a sweep's end which jobs failed, and ends the command with their exit code.

    It is named in conf/ as the first of the callbacks, which is the last to be called at the end.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Forget what an earlier sweep has left in this folder."""
        folder = Path(config.hydra.sweep.dir)
        for name in (_FAILED, _ENDED_EARLY):
            for path in folder.glob(f"*/{name}"):
                path.unlink()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Leave with 1 if a job failed, and with 3 if one had a training that ended early."""
        folder, program = Path(config.hydra.sweep.dir), config.hydra.help.app_name
        code = 0
        for name, what, its_code in (
            (_ENDED_EARLY, "in {} of the jobs a training ended early", EXIT_ENDED_EARLY),
            (_FAILED, "{} of the jobs failed", 1),
        ):
            if number := len([*folder.glob(f"*/{name}")]):
                where = f"{folder}/*/{name} says why"
                print(f"{program}: {what.format(number)}; {where}", file=sys.stderr)
                code = its_code
        if code:
            sys.exit(code)


def this_process() -> Launcher:
    """Return the machine's name and the process's number."""
    return platform.node(), os.getpid()


_is_watching = False


def end_with(launcher: Launcher) -> None:
    """End this process when the one that launched it is gone, if that is on this machine.

    Ctrl-C, which a terminal sends to both, is left to the launcher, if it ends its children itself.
    """
    global _is_watching
    machine, number = launcher
    if _is_watching or machine != platform.node():
        return
    _is_watching = True
    is_child = os.getppid() == number
    if is_child and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == number if is_child else _lives(number):
            threading.Event().wait(_LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _lives(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
