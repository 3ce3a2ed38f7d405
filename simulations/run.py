"""``fedcurv-simulate``: compare strategies on the same data, split and seed."""

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedcurv.simulations.client import (
    described_data,
    make_model,
    make_partition,
    make_settings,
    on_devices,
)
from fedcurv.simulations.data import ImageData
from fedcurv.simulations.losses import make_loss
from fedcurv.simulations.noise import check_noise
from fedcurv.simulations.report import Summary, evaluation, table, write_report
from fedcurv.simulations.runners import RUNNERS, run
from fedcurv.simulations.server import History, make_server_app
from fedcurv.simulations.strategy import make_strategy
from fedcurv.strategies import RoundFailed
from fedcurv.strategies.rounds import RoundRecord

# where no terminal sets the width, as in a log, an experiment's table should not be folded
console = Console(width=None if sys.stdout.isatty() else 200)

CONF = Path(__file__).parent / "conf"


# from a configuration, an output folder and the command line to what the terminal shows
Work = Callable[[DictConfig, Path, str], Table]


def main() -> None:
    """Run ``fedcurv-simulate``."""
    run_command("fedcurv-simulate", "config", _simulate_and_tabulate)


def run_command(program: str, config_name: str, work: Work) -> None:
    """Run a command line; a mistake in the configuration or the data ends it with one line.

    Args:
        program: its name.
        config_name: of the primary configuration in ``conf/``.
        work: does what the configuration asks for.
    """

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    def under_hydra(config: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            view = work(config, folder, shlex.join([program, *sys.argv[1:]]))
        except (
            HydraException,
            OmegaConfBaseException,
            RoundFailed,
            ValueError,
            OSError,
            ImportError,
        ) as error:
            with contextlib.suppress(OSError):
                folder.rmdir()  # made by Hydra; stays if there is anything in it
            # an exit, since Hydra would add a line of its own to an error
            sys.exit(f"{program}: {explain(error)}")
        console.print(view)
        console.print(f"written to {folder}")

    # Hydra prints its own stack traces unless it is told to let errors through
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        under_hydra()
    except (HydraException, OmegaConfBaseException, OSError) as error:
        sys.exit(f"{program}: {explain(error)}")


def _simulate_and_tabulate(config: DictConfig, folder: Path, command: str) -> Table:
    return table(simulate(config, folder, command=command))


def simulate(config: DictConfig, folder: Path, *, command: str) -> list[Summary]:
    """Run every strategy of a configuration and write the report into ``folder``.

    Everything is checked before the first strategy starts. The report is written anew after each
    strategy, so that a failure in a later one loses nothing.

    Args:
        config: as conf/config.yaml has it.
        folder: made if it is missing.
        command: for the report.

    Raises:
        ValueError: if the configuration cannot work.
        RoundFailed: if all clients of a round fail.
        OSError: if the folder cannot be written.
    """
    resolved = resolve(config)
    require_simulated_data(resolved)
    set_up_flower_log(verbose=resolved["verbose"])
    strategies = {str(n): make_strategy(node, resolved) for n, node in config.strategy.items()}
    folder.mkdir(parents=True, exist_ok=True)
    histories: list[History] = []
    summaries: list[Summary] = []
    for name, strategy in strategies.items():
        history = History(name)
        with _progress() as progress:
            on_round = _bar(progress, name, resolved["num_rounds"])
            server_app = make_server_app(resolved, strategy, history, [on_round])
            run(server_app, resolved)
        histories.append(history)
        summaries = write_report(folder, histories, resolved, command)
    return summaries


def resolve(config: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain values, checked as far as that goes without training.

    Raises:
        ValueError: naming what cannot work.
        FileNotFoundError: if the data are missing.
    """
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    settings = {str(key): value for key, value in resolved.items()}
    for key, smallest in (("num_clients", 1), ("num_rounds", 1), ("seed", 0)):
        if not isinstance(settings[key], int) or settings[key] < smallest:
            raise ValueError(f"{key} must be an integer >= {smallest}, got {settings[key]!r}")
    fraction, num_clients = settings["fraction_train"], settings["num_clients"]
    if not isinstance(fraction, int | float) or not 1 <= fraction * num_clients <= num_clients:
        raise ValueError(
            f"fraction_train={fraction} of {num_clients} clients selects nobody or more than all; "
            f"expected a number from {1 / num_clients:.3g} to 1"
        )
    if settings["runner"]["name"] not in RUNNERS:
        raise ValueError(
            f"runner.name must be one of {', '.join(RUNNERS)}, got {settings['runner']['name']!r}"
        )
    if not settings.get("strategy"):
        raise ValueError("strategy: expected at least one, got none")
    make_settings(settings)
    make_loss(settings["client"]["loss"])
    check_noise(settings["data"]["noise"], settings["num_clients"])
    if settings["data"]["evaluate_on"] not in ("test", "validation"):
        raise ValueError(
            f"data.evaluate_on must be test or validation, got {settings['data']['evaluate_on']!r}"
        )
    _check_evaluation(settings)
    if not on_devices(settings):
        # workers of Ray have working directories of their own
        settings["data"]["root"] = str(Path(settings["data"]["root"]).expanduser().absolute())
    data = described_data(settings)
    parts: dict[str, Callable[[], object]] = {"model": lambda: make_model(settings, data)}
    if isinstance(data, ImageData):
        parts["partition"] = lambda: make_partition(settings, data)
    for part, make in parts.items():
        try:
            make()
        except TypeError as error:
            raise ValueError(f"{part}: an option is of a wrong type: {error}") from error
    return settings


def _check_evaluation(settings: Mapping[str, Any]) -> None:
    """Refuse evaluation on clients without test data, devices without any evaluation, and noise."""
    fraction = settings["fraction_evaluate"]
    if not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
        raise ValueError(f"fraction_evaluate must be in [0, 1], got {fraction!r}")
    if not on_devices(settings):
        if fraction > 0:
            raise ValueError(
                f"fraction_evaluate={fraction}: the clients of a simulation have no test data, the "
                "server evaluates; use 0"
            )
        return
    if settings["data"]["noise"]["kind"] != "none":
        raise ValueError("data.noise.kind: devices' own labels are left as they are; use none")
    if fraction == 0 and not any(settings["data"]["test"].values()):
        raise ValueError(
            "data=device: expected the server's test set in data.test, or fraction_evaluate > 0 "
            "for evaluation on the devices, got neither"
        )


def require_simulated_data(settings: Mapping[str, Any]) -> None:
    """Raise a ValueError if the data are on devices, which a simulation has not."""
    if on_devices(settings):
        raise ValueError(
            "data=device needs real nodes, which know where their data are: use `flwr run` on "
            "simulations/app, or fedcurv-site with --node-config"
        )


def only_strategy(config: DictConfig) -> tuple[str, Any]:
    """Return the name and the description of a configuration's one strategy.

    Raises:
        ValueError: if there are several.
    """
    if len(config.strategy) != 1:
        raise ValueError(f"strategy: expected one, got {', '.join(config.strategy)}")
    ((name, node),) = config.strategy.items()
    return str(name), node


def set_up_flower_log(*, verbose: bool) -> None:
    """Let Flower say what it does, or only what goes wrong."""
    flower_log = logging.getLogger("flwr")
    flower_log.setLevel(logging.INFO if verbose else logging.ERROR)
    flower_log.propagate = False  # Hydra's root handler would print every line once more


def counting_progress(width: int) -> Progress:
    """Return a bar for trainings that are counted, with a description of that width."""
    return Progress(
        TextColumn(f"{{task.description:<{width}}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[accuracy]}"),
        TimeRemainingColumn(),
        console=console,
    )


def _bar(progress: Progress, name: str, num_rounds: int) -> Callable[[RoundRecord], None]:
    task = progress.add_task(name, total=num_rounds, accuracy="")

    def on_round(record: RoundRecord) -> None:
        accuracy = 100 * float(str(evaluation(record)["accuracy"]))
        progress.update(task, completed=record.server_round, accuracy=f"{accuracy:.2f} %")

    return on_round


def explain(error: BaseException) -> str:
    """Say what is wrong, in one line, with the names that exist where a name is unknown."""
    if isinstance(error, RoundFailed):
        return str(error)  # with the client's traceback
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        place = str(error).rpartition("full_key: ")[2]
        return f"{place}: {explain(error.__cause__)}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} must be given"
    parent, key = getattr(cause, "parent_node", None), getattr(cause, "key", None)
    if isinstance(parent, DictConfig) and key is not None and key not in parent:
        return f"unknown name {cause.full_key!r}; known here: {', '.join(map(str, parent))}"  # type: ignore[attr-defined]
    text = str(error).partition("Config search path:")[0]
    return " ".join(text.split())


if __name__ == "__main__":
    main()
