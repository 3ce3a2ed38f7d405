"""A command line's frame: one line for a mistake, an exit code, an end when it is told to end."""

import contextlib
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from rich.console import RenderableType
from rich.table import Table

from fedcurv.errors import in_one_line
from fedcurv.simulations.commands.jobs import (
    EXIT_ENDED_EARLY,
    Launcher,
    SweepJob,
    end_with,
    job_of_sweep,
    note_ended_early,
    note_failed,
    this_process,
)
from fedcurv.simulations.configuration import CONF
from fedcurv.simulations.console.help import register_help
from fedcurv.simulations.console.interruption import KEPT, Interrupted, interruptible
from fedcurv.simulations.console.progress import console, speak_as
from fedcurv.strategies import RoundFailed, StrategyFailed

# what a mistake in a configuration, in data or in code of the user's own raises
CONFIGURATION_ERRORS = (
    HydraException,
    OmegaConfBaseException,
    ValueError,
    OSError,
    ImportError,
    StrategyFailed,
)


@dataclass(frozen=True)
class Done:
    """What a command shows at its end.

    Attributes:
        view: for the terminal.
        folder: where the files are.
        ended_early: a line for each training that did not come to its end.
    """

    view: Table | str
    folder: Path
    ended_early: tuple[str, ...] = ()


# from a configuration, an output folder and the command line
Work = Callable[[DictConfig, Path, str], Done]


@dataclass(frozen=True)
class Task:
    """What Hydra calls: once, or for each job of a sweep, which may be in another process.

    Attributes:
        program: the command's name.
        work: does what the configuration asks for.
        command: line by which the program was started.
        launcher: the process that was started by it.
        ended_early: trainings of which this process was told that they did not come to their end.
    """

    program: str
    work: Work
    command: str
    launcher: Launcher = field(default_factory=this_process)
    ended_early: list[str] = field(default_factory=list)

    def __call__(self, config: DictConfig) -> None:
        """Do the work and show what came of it; a sweep's other jobs go on if this one fails."""
        folder, job = Path(HydraConfig.get().runtime.output_dir), job_of_sweep()
        if job is not None and self.launcher != this_process():
            end_with(self.launcher)
            find_own_functions()
            speak_as(job.name)
        try:
            done = self.work(config, folder, self.command)
        except (RoundFailed, *CONFIGURATION_ERRORS) as error:
            fault = explain(error)
        except SystemExit as error:  # a success for the shell, with code 0
            fault = f"code of your own ended the process, by sys.exit({error.code!r})"
        except Interrupted:
            remove_if_empty(folder)
            raise
        except Exception as error:
            if job is None:
                raise
            traceback.print_exc()
            fault = in_one_line(error)
        else:
            self._show(done, job)
            return
        remove_if_empty(folder)
        if job is None:
            # an exit, since Hydra would add a line of its own to an error
            sys.exit(f"{self.program}: {fault}")
        note_failed(folder, job, fault)
        self._tell(fault, job)

    def _show(self, done: Done, job: SweepJob | None) -> None:
        told: list[RenderableType] = [done.view, f"written to {done.folder}"]
        if job is not None:
            told.insert(0, f"\n{job}")
            note_ended_early(done.folder, job, done.ended_early)
        with console.capture() as capture:
            for part in told:
                console.print(part)
        # in one piece, since others may write too
        console.file.write(capture.get())
        console.file.flush()
        for line in done.ended_early:
            self._tell(line, job)
        self.ended_early.extend(done.ended_early)

    def _tell(self, line: str, job: SweepJob | None) -> None:
        where = "" if job is None else f"{job}: "
        print(f"{self.program}: {where}{line}", file=sys.stderr, flush=True)


def run_command(program: str, config_name: str, work: Work, *, after_a_sweep: str = KEPT) -> None:
    """Run a command line; a mistake in the configuration or the data ends it with one line.

    The exit code is 0, 1 for a mistake or an error, 3 if a training ended early, and 130 or 143
    after Ctrl-C or SIGTERM. In a sweep a job's mistake is told, the others go on, and the code is
    that of the worst.

    Args:
        program: its name.
        config_name: of the primary configuration in ``conf/``.
        work: does what the configuration asks for; a function of a module.
        after_a_sweep: what one may do after Ctrl-C or SIGTERM, if jobs were in other processes.
    """
    task = Task(program, work, shlex.join([program, *sys.argv[1:]]))
    under_hydra = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    register_help(CONF)
    find_own_functions()
    # Hydra prints its own stack traces unless it is told to let errors through
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    is_sweep = not {"--multirun", "-m"}.isdisjoint(sys.argv)
    try:
        with interruptible(program, after_a_sweep if is_sweep else KEPT):
            under_hydra(task)()
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        sys.exit(f"{program}: {explain(error)}")
    except BrokenProcessPool:
        sys.exit(
            f"{program}: a job's process was killed, perhaps for lack of memory; {after_a_sweep}; "
            "fewer jobs at a time take less: hydra.launcher.n_jobs"
        )
    if task.ended_early:
        sys.exit(EXIT_ENDED_EARLY)


def new_folder(wanted: str) -> str:
    """Make a folder that nobody has yet, and return it: the one that is wanted, or with a number.

    Commands that begin in the same second want the same. What keeps any from being made is left
    for whoever writes into it to say.
    """
    for name in (wanted, *(f"{wanted}-{number}" for number in range(2, 1000))):
        try:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).mkdir()
        except FileExistsError:
            continue
        except OSError:
            break
        return name
    return wanted


# once for a configuration, which asks for its folder several times
OmegaConf.register_new_resolver("new_folder", new_folder, use_cache=True, replace=True)


def find_own_functions() -> None:
    """Let a user's own functions be found where the command is started, as by ``python -m``."""
    sys.path.insert(0, str(Path.cwd()))


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that Hydra made, unless there is anything in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def set_up_flower_log(*, verbose: bool) -> None:
    """Let Flower say what it does, or only what goes wrong."""
    flower_log = logging.getLogger("flwr")
    flower_log.setLevel(logging.INFO if verbose else logging.ERROR)
    flower_log.propagate = False  # Hydra's root handler would print every line once more


def explain(error: BaseException) -> str:
    """Say what is wrong, in one line, with the names that exist where a name is unknown."""
    if isinstance(error, RoundFailed):
        return str(error)  # with the client's traceback
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        place = str(error).rpartition("full_key: ")[2]
        return f"{place}: {explain(error.__cause__)}"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}; choose a folder that can be written"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} must be given"
    parent, key = getattr(cause, "parent_node", None), getattr(cause, "key", None)
    if isinstance(parent, DictConfig) and key is not None and key not in parent:
        known = ", ".join(map(str, parent)) or "none yet, so put + before a new one"
        return f"unknown name {cause.full_key!r}; known here: {known}"  # type: ignore[attr-defined]
    text = str(error).partition("Config search path:")[0]
    return " ".join(text.split())
