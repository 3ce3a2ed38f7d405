"""``fedcurv-simulate``: compare strategies on the same data, split and seed."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedcurv.simulations.client import load_data, make_model, make_partition
from fedcurv.simulations.report import Summary, table, write_report
from fedcurv.simulations.runners import run
from fedcurv.simulations.server import History, make_server_app
from fedcurv.strategies.loop import RoundRecord

console = Console()


def main() -> None:
    """Run the command line; a mistake in the configuration or the data ends it with one line."""
    # Hydra prints its own stack traces unless it is told to let errors through
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        _hydra_main()
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"fedcurv-simulate: {_explain(error)}")
    except (ValueError, TypeError, OSError) as error:
        if os.environ["HYDRA_FULL_ERROR"] == "full":
            raise
        sys.exit(f"fedcurv-simulate: {error}")


@hydra.main(
    version_base="1.3", config_path=str(Path(__file__).parent / "conf"), config_name="config"
)
def _hydra_main(config: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    summaries = simulate(config, folder, command=" ".join(["fedcurv-simulate", *sys.argv[1:]]))
    console.print(table(summaries))
    console.print(f"written to {folder}")


def simulate(config: DictConfig, folder: Path, *, command: str) -> list[Summary]:
    """Run every strategy of a configuration and write the report into ``folder``.

    Everything is checked before the first strategy starts.

    Args:
        config: as conf/config.yaml has it.
        folder: made if it is missing.
        command: for the report.

    Raises:
        ValueError: if the configuration cannot work.
        RoundFailed: if all clients of a round fail.
        OSError: if the folder cannot be written.
    """
    resolved = _resolve(config)
    data = load_data(resolved)
    make_model(resolved, data)
    make_partition(resolved, data)
    _set_up_flower_log(verbose=resolved["verbose"])
    strategies = {name: instantiate(node) for name, node in config.strategy.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(resolved)))
    histories = []
    for name, strategy in strategies.items():
        history = History(str(name))
        with _progress() as progress:
            on_round = _bar(progress, history.strategy, resolved["num_rounds"])
            server_app = make_server_app(resolved, strategy, history, on_round)
            run(server_app, resolved["num_clients"], resolved["runner"])
        histories.append(history)
    return write_report(folder, histories, resolved["target_accuracies"], command)


def _resolve(config: DictConfig) -> dict[str, Any]:
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    settings = {str(key): value for key, value in resolved.items()}
    for key in ("num_clients", "num_rounds"):
        if settings[key] < 1:
            raise ValueError(f"{key} must be >= 1, got {settings[key]}")
    fraction, num_clients = settings["fraction_train"], settings["num_clients"]
    if not 0 < fraction <= 1 or int(fraction * num_clients) < 1:
        raise ValueError(
            f"fraction_train={fraction} of {num_clients} clients selects nobody or more than all; "
            f"expected {1 / num_clients:.3g}..1"
        )
    # workers of Ray have working directories of their own
    settings["data"]["root"] = str(Path(settings["data"]["root"]).expanduser().absolute())
    return settings


def _set_up_flower_log(*, verbose: bool) -> None:
    flower_log = logging.getLogger("flwr")
    flower_log.setLevel(logging.INFO if verbose else logging.ERROR)
    flower_log.propagate = False  # Hydra's root handler would print every line once more


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
        accuracy = 100 * float(str(record.server_metrics["accuracy"]))
        progress.update(task, completed=record.server_round, accuracy=f"{accuracy:.2f} %")

    return on_round


def _explain(error: Exception) -> str:
    """Say in one line what is wrong, with the names that exist where a name is unknown."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    parent = getattr(cause, "parent_node", None)
    key = getattr(cause, "key", None)
    if isinstance(parent, DictConfig) and key is not None and key not in parent:
        where = getattr(cause, "full_key", None) or key
        return f"unknown name {str(where)!r}; known here: {', '.join(map(str, parent))}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)


if __name__ == "__main__":
    main()
