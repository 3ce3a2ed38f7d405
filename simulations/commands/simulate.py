"""``fedcurv-simulate``: compare strategies on the same data, split and seed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fedcurv.simulations.commands.frame import Done, remove_if_empty, run_command, set_up_flower_log
from fedcurv.simulations.configuration import check_simulation, resolve
from fedcurv.simulations.console.interruption import KEPT, Interrupted
from fedcurv.simulations.console.progress import Steps
from fedcurv.simulations.federation.counting import Counting
from fedcurv.simulations.federation.run import run
from fedcurv.simulations.federation.saved import SavedStrategy, folder_of_progress, forget
from fedcurv.simulations.federation.server_app import make_server_app
from fedcurv.simulations.parts.metrics import Metric
from fedcurv.simulations.parts.strategies import fedcurv_in, make_strategy
from fedcurv.simulations.parts.tasks import metric_of
from fedcurv.simulations.reports.comparison import (
    Summary,
    ended_early,
    table,
    write_config,
    write_report,
)
from fedcurv.simulations.reports.history import History, tell_unused_terms
from fedcurv.simulations.reports.live_page import LivePage
from fedcurv.simulations.reports.round_files import RoundFiles, evaluation
from fedcurv.strategies import RoundFailed
from fedcurv.strategies.loop.rounds import RoundRecord
from fedcurv.strategies.remembering import Remembering

# what may be said beside resume=FOLDER; all else is as the folder's config.yaml has it
_BESIDE_RESUME = ("resume", "data.root", "data.download", "verbose", "hydra.run.dir")


def main() -> None:
    """Run ``fedcurv-simulate``."""
    run_command(
        "fedcurv-simulate",
        "config",
        _simulate_and_tabulate,
        after_a_sweep=f"{KEPT}, and fedcurv-simulate resume=FOLDER goes on with a job's folder",
    )


def _simulate_and_tabulate(config: DictConfig, folder: Path, command: str) -> Done:
    hydra = HydraConfig.get()
    given = dict(part.split("=", 1) for part in hydra.overrides.task if "=" in part)
    if config.resume is not None:
        remove_if_empty(folder)
        return _go_on(config, Path(str(config.resume)), given, command)
    is_sweep = hydra.mode == RunMode.MULTIRUN
    overrides = {key.lstrip("+~"): value for key, value in given.items()} if is_sweep else {}
    return _done(simulate(config, folder, command=command, overrides=overrides), config, folder)


def _done(summaries: list[Summary], config: DictConfig, folder: Path) -> Done:
    return Done(table(summaries), folder, ended_early(summaries, config.num_rounds))


def _go_on(config: DictConfig, folder: Path, given: Mapping[str, str], command: str) -> Done:
    """Go on with what an interrupted simulation has left in its folder."""
    if others := [key for key in given if key not in _BESIDE_RESUME]:
        raise ValueError(
            f"resume={folder} takes the configuration in that folder; leave out {', '.join(others)}"
        )
    saved_config = folder / "config.yaml"
    if not saved_config.is_file():
        raise ValueError(f"resume={folder}: expected the folder of a simulation, with config.yaml")
    if not folder_of_progress(folder).is_dir():
        return Done(f"resume={folder}: that simulation has come to its end already", folder)
    try:
        saved = OmegaConf.load(saved_config)
    except Exception as error:  # YAML's own, or of what stands in its place
        raise ValueError(f"{saved_config}: {' '.join(str(error).split())}") from error
    if not isinstance(saved, DictConfig) or "strategy" not in saved or "data" not in saved:
        raise ValueError(f"{saved_config}: expected the configuration of a simulation")
    OmegaConf.update(saved, "data.root", config.data.root, force_add=True)
    for key in ("data.download", "verbose"):
        if key in given:
            OmegaConf.update(saved, key, OmegaConf.select(config, key))
    return _done(simulate(saved, folder, command=command, resume=True), saved, folder)


def simulate(
    config: DictConfig,
    folder: Path,
    *,
    command: str,
    resume: bool = False,
    overrides: Mapping[str, str] | None = None,
) -> list[Summary]:
    """Run every strategy of a configuration and write the report into ``folder``.

    Everything is checked before the first strategy starts. metrics.csv, clients.csv, traffic.csv
    and report.html grow with each round, and the rest is written anew after each strategy, so that
    a failure in a later one, or an interruption, loses nothing. A strategy whose training diverges,
    or of which all clients fail in a round, ends there, and the others go on.

    Args:
        config: as conf/config.yaml has it.
        folder: made if it is missing.
        command: for the report.
        resume: go on with what an interrupted run has left in the folder.
        overrides: of a sweep's job, by key, for the files.

    Raises:
        ValueError: if the configuration cannot work, or an unfinished run is in the folder and
            ``resume`` is not set.
        OSError: if the folder cannot be written.
        Interrupted: after Ctrl-C or SIGTERM, when what was finished has been written.
    """
    resolved = resolve(config)
    check_simulation(resolved)
    set_up_flower_log(verbose=resolved["verbose"])
    strategies = {str(n): make_strategy(node, resolved) for n, node in config.strategy.items()}
    if folder_of_progress(folder).exists() and not resume:
        raise ValueError(
            f"{folder} holds an unfinished simulation; go on with resume={folder}, or choose "
            "another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, resolved)
    files = RoundFiles(folder, resolved, overrides or {})
    every = resolved.get("checkpoint_every", 1)
    saved = {name: SavedStrategy(folder, name, every) for name in strategies}
    histories: list[History] = []
    summaries: list[Summary] = []
    with LivePage(folder, histories, resolved, command) as page:
        try:
            for name, strategy in strategies.items():
                histories.append(saved[name].history())
                if not saved[name].has_ended():
                    _run_strategy(resolved, strategy, saved[name], histories, files, page)
                summaries = write_report(folder, histories, resolved, command, overrides)
        except Interrupted as interrupted:
            last = histories[-1]
            if not saved[last.strategy].has_ended():
                last.failure = f"{interrupted} came; it can go on"
            if any(history.rounds for history in histories):
                write_report(folder, histories, resolved, command, overrides, picture=False)
            interrupted.how_to_go_on = f"go on with: fedcurv-simulate resume={folder}"
            raise
    tell_unused_terms(resolved, histories)
    forget(folder)
    return summaries


def _run_strategy(
    resolved: dict[str, Any],
    strategy: Any,
    saved: SavedStrategy,
    histories: list[History],
    files: RoundFiles,
    page: LivePage,
) -> None:
    """Run one strategy from where it stands; its history is the last of ``histories``."""
    history, num_rounds = histories[-1], resolved["num_rounds"]
    metric = metric_of(resolved)
    # what clients remember is out of reach on Ray
    remember = fedcurv_in(strategy) is not None or isinstance(strategy, Remembering)
    keeps_state = resolved["runner"]["name"] != "ray" or not remember
    options: dict[str, Any] = {}
    finished = 0
    if keeps_state:
        options = {"checkpoint": saved.folder, "resume": True}
        options["checkpoint_every"] = resolved.get("checkpoint_every", 1)
        finished = saved.saved_round() or 0
    if history.rounds:
        history.rounds = [r for r in history.rounds if r.server_round <= finished and finished]
        files.write(histories)
    with Steps("round", num_rounds, finished=finished) as steps:
        steps.begin(saved.name)
        clients = Counting(resolved, lambda d, of: steps.part(f"{d} of {of} clients", d / of))
        watchers: list[Callable[[RoundRecord], object]] = [
            saved.note,
            lambda record: files.add(history),
            lambda record: _show(steps, record, metric),
            lambda record: page.renew(),
            lambda record: clients.begin_round(),
        ]
        server_app = make_server_app(
            resolved,
            strategy,
            history,
            watchers,
            clients=saved if keeps_state else None,
            **options,
        )
        try:
            run(server_app, resolved, clients)
        except RoundFailed as error:
            history.failure = str(error)
    saved.end(history.failure)


def _show(steps: Steps, record: RoundRecord, metric: Metric) -> None:
    value = float(str(evaluation(record)[metric.name]))
    if record.server_round > 0:
        spent = record.train_metrics.get("epsilon")
        budget = f", epsilon {spent:.3g}" if isinstance(spent, float) else ""
        steps.done(record.server_round, metric.note(value) + budget)


if __name__ == "__main__":
    main()
