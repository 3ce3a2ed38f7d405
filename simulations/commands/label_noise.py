"""``fedcurv-label-noise``: which loss tolerates which label noise, over several seeds."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich import box
from rich.table import Table

from fedcurv.simulations.commands.frame import Done, run_command, set_up_flower_log
from fedcurv.simulations.configuration import check_simulation, only_strategy, resolve
from fedcurv.simulations.console.interruption import Interrupted
from fedcurv.simulations.console.progress import Steps
from fedcurv.simulations.experiments.report import in_words
from fedcurv.simulations.experiments.runs import run_to_its_end
from fedcurv.simulations.parts.label_noise import check_noise
from fedcurv.simulations.parts.losses import make_loss
from fedcurv.simulations.parts.metrics import ACCURACY
from fedcurv.simulations.parts.strategies import make_strategy
from fedcurv.simulations.parts.tasks import CLASSIFICATION, metric_of
from fedcurv.simulations.reports.comparison import (
    mean_and_deviation,
    reason,
    scores,
    write_summary,
)
from fedcurv.simulations.reports.round_files import write_csv
from fedcurv.simulations.rules import is_integer, is_list_of, require_distinct

Description = str | Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """One training with one loss on one noise with one seed.

    Attributes:
        loss: its name and settings.
        noise: its kind and the rate that was asked for.
        seed: of data, noise and training.
        rate: the share of labels that were wrong, over all clients.
        last: test accuracy after the last round, in [0, 1].
        best: the highest after any round.
        failure: why it did not come to its end, as when the training diverges, and both count as
            0; else empty.
    """

    loss: str
    noise: str
    seed: int
    rate: float
    last: float
    best: float
    failure: str = ""


def main() -> None:
    """Run the command line."""
    run_command("fedcurv-label-noise", "label_noise", compare_losses)


def compare_losses(config: DictConfig, folder: Path, command: str) -> Done:
    """Train each loss on each noise with each seed and write the report into ``folder``.

    Everything is checked before the first training starts. The report, of config.yaml, results.csv,
    summary.md and accuracy.png, is written anew after each loss, results.csv after each training.

    Args:
        config: as conf/label_noise.yaml has it.
        folder: made if it is missing.
        command: for the report.

    Returns:
        the summary.

    Raises:
        ValueError: if the configuration cannot work.
        OSError: if the folder cannot be written.
    """
    resolved = resolve(config)
    check_simulation(resolved)
    set_up_flower_log(verbose=resolved["verbose"])
    if resolved["task"] != CLASSIFICATION.name or metric_of(resolved) is not ACCURACY:
        raise ValueError(
            "fedcurv-label-noise compares accuracies of task=classification, got "
            f"task={resolved['task']} and {metric_of(resolved).label}"
        )
    plan = resolved["label_noise"]
    for key in ("losses", "noises", "seeds"):
        values = plan.get(key)
        if not is_list_of(values, lambda value: True) or not values:
            raise ValueError(f"label_noise.{key}: expected at least one, got {values or 'none'}")
    if not is_list_of(plan["seeds"], lambda seed: is_integer(seed, 0)):
        raise ValueError(f"label_noise.seeds must be integers >= 0, got {plan['seeds']!r}")
    for key in ("losses", "noises", "seeds"):
        require_distinct(f"label_noise.{key}", plan[key])
    _, strategy = only_strategy(config)
    make_strategy(strategy, resolved)
    for loss in plan["losses"]:
        try:
            make_loss(loss)
        except ValueError as error:
            raise ValueError(f"label_noise.losses: {error}") from error
    for noise in plan["noises"]:
        if not isinstance(noise, Mapping) or not {"kind", "rate"} <= noise.keys():
            raise ValueError(
                f"label_noise.noises: expected tables with kind and rate, got {noise!r}"
            )
        check_noise({**resolved["data"]["noise"], **noise}, resolved["num_clients"])
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    number = len(plan["losses"]) * len(plan["noises"]) * len(plan["seeds"])
    with Steps("training", number, width=28) as steps, _keeping_results(folder):
        for loss in plan["losses"]:
            steps.begin(label_of(loss))
            for outcome in _outcomes(strategy, resolved, loss, steps.part):
                outcomes.append(outcome)
                write_csv(folder / "results.csv", [asdict(outcome) for outcome in outcomes])
                steps.add("diverged" if outcome.failure else "")
            rows = summary(outcomes)
            write_report(folder, outcomes, rows, resolved, command)
    failed = [outcome for outcome in outcomes if outcome.failure]
    return Done(
        _view(rows),
        folder,
        tuple(f"{o.loss} on {o.noise} with seed {o.seed} ended early: {o.failure}" for o in failed),
    )


@contextmanager
def _keeping_results(folder: Path) -> Iterator[None]:
    try:
        yield
    except Interrupted as interrupted:
        interrupted.how_to_go_on = f"finished trainings stand in {folder / 'results.csv'}"
        raise


def _outcomes(
    strategy: Any, resolved: dict[str, Any], loss: Description, show: Callable[[str], object]
) -> Iterator[Outcome]:
    for noise in resolved["label_noise"]["noises"]:
        for seed in resolved["label_noise"]["seeds"]:
            one = {
                **resolved,
                "seed": seed,
                "client": {**resolved["client"], "loss": loss},
                "data": {**resolved["data"], "noise": {**resolved["data"]["noise"], **noise}},
            }
            history = run_to_its_end(one, strategy, "", show)
            accuracy = [0.0] if history.failure else list(scores(history, ACCURACY).values())
            name = "none" if noise["kind"] == "none" else f"{noise['kind']} {noise['rate']:g}"
            rate = float(str(history.rounds[-1].train_metrics.get("label-noise", math.nan)))
            failure = reason(history.failure) if history.failure else ""
            yield Outcome(label_of(loss), name, seed, rate, accuracy[-1], max(accuracy), failure)


def label_of(loss: Description) -> str:
    """Return what a table calls a loss: its name and its settings."""
    if isinstance(loss, str):
        return loss
    settings = in_words({key: value for key, value in loss.items() if key != "name"})
    return f"{loss['name']} ({settings})" if settings else str(loss["name"])


def summary(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Return a header and a row for each loss: last and best accuracy in %, mean ± deviation."""
    noises = list(dict.fromkeys(o.noise for o in outcomes))
    rows = [["loss", *noises]]
    for loss in dict.fromkeys(o.loss for o in outcomes):
        row = [loss]
        for noise in noises:
            of_cell = [o for o in outcomes if (o.loss, o.noise) == (loss, noise)]
            last, best = [o.last for o in of_cell], [o.best for o in of_cell]
            row.append(f"{_percent(last)} ({_percent(best)})")
        rows.append(row)
    return rows


def _percent(values: Sequence[float]) -> str:
    return mean_and_deviation([100 * value for value in values])


def write_report(
    folder: Path,
    outcomes: Sequence[Outcome],
    rows: Sequence[Sequence[str]],
    config: dict[str, Any],
    command: str,
) -> None:
    """Write all files into an existing folder."""
    write_summary(folder, rows, _CAPTION, config, command)
    write_csv(folder / "results.csv", [asdict(outcome) for outcome in outcomes])
    accuracy_figure(outcomes).savefig(folder / "accuracy.png", dpi=150)


_CAPTION = "Test accuracy in % after the last round, and in brackets the best of all rounds."


def accuracy_figure(outcomes: Sequence[Outcome]) -> Figure:
    """Return the last accuracy of each loss over the noises, with one deviation each way."""
    noises = list(dict.fromkeys(o.noise for o in outcomes))
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for index, loss in enumerate(dict.fromkeys(o.loss for o in outcomes)):
        cells = [[o.last for o in outcomes if (o.loss, o.noise) == (loss, n)] for n in noises]
        axes.errorbar(
            noises,
            [100 * statistics.mean(cell) for cell in cells],
            [100 * statistics.stdev(cell) if len(cell) > 1 else 0 for cell in cells],
            label=loss,
            capsize=3,
            marker="o",
            color=f"C{index % 10}",
            linestyle=("-", "--", ":")[index // 10 % 3],
        )
    axes.set(xlabel="label noise", ylabel="test accuracy after the last round (%)")
    axes.grid(alpha=0.3)
    axes.tick_params(axis="x", rotation=15)
    figure.legend(loc="outside right upper")
    return figure


def _view(rows: Sequence[Sequence[str]]) -> Table:
    caption = "Test accuracy in % after the last round; the best of all stands in summary.md."
    view = Table(caption=caption, box=box.SIMPLE, pad_edge=False, caption_justify="left")
    view.add_column(rows[0][0], no_wrap=True)
    for name in rows[0][1:]:
        view.add_column(name, justify="right")
    for name, *cells in rows[1:]:
        view.add_row(name, *(cell.partition(" (")[0] for cell in cells))
    return view


if __name__ == "__main__":
    main()
