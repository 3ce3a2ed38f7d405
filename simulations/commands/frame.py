"""A command line's frame: one line for a mistake, an exit code, an end when it is told to end."""

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from rich.table import Table

from fedcurv.simulations.configuration import CONF
from fedcurv.simulations.console.help import register_help
from fedcurv.simulations.console.interruption import Interrupted, interruptible
from fedcurv.simulations.console.progress import console
from fedcurv.strategies import RoundFailed, StrategyFailed

# a training has diverged, or all of its clients failed; everything else was done and written
EXIT_ENDED_EARLY = 3

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


def run_command(program: str, config_name: str, work: Work) -> None:
    """Run a command line; a mistake in the configuration or the data ends it with one line.

    The exit code is 0, 1 for a mistake or an error, 3 if a training ended early, and 130 or 143
    after Ctrl-C or SIGTERM.

    Args:
        program: its name.
        config_name: of the primary configuration in ``conf/``.
        work: does what the configuration asks for.
    """
    ended_early: list[str] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    def under_hydra(config: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            done = work(config, folder, shlex.join([program, *sys.argv[1:]]))
        except (RoundFailed, *CONFIGURATION_ERRORS) as error:
            remove_if_empty(folder)
            # an exit, since Hydra would add a line of its own to an error
            sys.exit(f"{program}: {explain(error)}")
        except SystemExit as error:  # a success for the shell, with code 0
            remove_if_empty(folder)
            sys.exit(f"{program}: code of your own ended the process, by sys.exit({error.code!r})")
        except Interrupted:
            remove_if_empty(folder)
            raise
        console.print(done.view)
        for line in done.ended_early:
            print(f"{program}: {line}", file=sys.stderr)
        ended_early.extend(done.ended_early)
        console.print(f"written to {done.folder}")

    register_help(CONF)
    find_own_functions()
    # Hydra prints its own stack traces unless it is told to let errors through
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        with interruptible(program):
            under_hydra()
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        sys.exit(f"{program}: {explain(error)}")
    if ended_early:
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
        return f"unknown name {cause.full_key!r}; known here: {', '.join(map(str, parent))}"  # type: ignore[attr-defined]
    text = str(error).partition("Config search path:")[0]
    return " ".join(text.split())
