"""``fedcurv-label-noise``: which loss stands which label noise, over several seeds."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich import box
from rich.table import Table

from fedcurv.simulations.losses import make_loss
from fedcurv.simulations.noise import check_noise
from fedcurv.simulations.report import accuracies, mean_and_deviation, write_csv, write_summary
from fedcurv.simulations.run import (
    counting_progress,
    only_strategy,
    require_simulated_data,
    resolve,
    run_command,
    set_up_flower_log,
)
from fedcurv.simulations.runners import run
from fedcurv.simulations.server import History, make_server_app
from fedcurv.simulations.strategy import make_strategy

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
    """

    loss: str
    noise: str
    seed: int
    rate: float
    last: float
    best: float


def main() -> None:
    """Run the command line."""
    run_command("fedcurv-label-noise", "label_noise", compare_losses)


def compare_losses(config: DictConfig, folder: Path, command: str) -> Table:
    """Train each loss on each noise with each seed and write the report into ``folder``.

    Everything is checked before the first training starts. The report, of config.yaml, results.csv,
    summary.md and accuracy.png, is written anew after each loss.

    Args:
        config: as conf/label_noise.yaml has it.
        folder: made if it is missing.
        command: for the report.

    Returns:
        the summary.

    Raises:
        ValueError: if the configuration cannot work.
        RoundFailed: if a training fails.
        OSError: if the folder cannot be written.
    """
    resolved = resolve(config)
    require_simulated_data(resolved)
    set_up_flower_log(verbose=resolved["verbose"])
    plan = resolved["label_noise"]
    for key in ("losses", "noises", "seeds"):
        if not plan[key]:
            raise ValueError(f"label_noise.{key}: expected at least one, got none")
    _, strategy = only_strategy(config)
    for loss in plan["losses"]:
        make_loss(loss)
    for noise in plan["noises"]:
        check_noise({**resolved["data"]["noise"], **noise}, resolved["num_clients"])
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    with counting_progress(28) as progress:
        number = len(plan["losses"]) * len(plan["noises"]) * len(plan["seeds"])
        task = progress.add_task("", total=number)
        for loss in plan["losses"]:
            progress.update(task, description=label_of(loss))
            for outcome in _outcomes(strategy, resolved, loss):
                outcomes.append(outcome)
                progress.advance(task)
            rows = summary(outcomes)
            write_report(folder, outcomes, rows, resolved, command)
    return _view(rows)


def _outcomes(strategy: Any, resolved: dict[str, Any], loss: Description) -> Iterator[Outcome]:
    for noise in resolved["label_noise"]["noises"]:
        for seed in resolved["label_noise"]["seeds"]:
            one = {
                **resolved,
                "seed": seed,
                "client": {**resolved["client"], "loss": loss},
                "data": {**resolved["data"], "noise": {**resolved["data"]["noise"], **noise}},
            }
            history = History("")
            server_app = make_server_app(one, make_strategy(strategy, one), history, [])
            run(server_app, one)
            accuracy = list(accuracies(history).values())
            name = "none" if noise["kind"] == "none" else f"{noise['kind']} {noise['rate']:g}"
            rate = float(str(history.rounds[-1].train_metrics["label-noise"]))
            yield Outcome(label_of(loss), name, seed, rate, accuracy[-1], max(accuracy))


def label_of(loss: Description) -> str:
    """Return what a table calls a loss: its name and its settings."""
    if isinstance(loss, str):
        return loss
    settings = ", ".join(f"{key} {value:g}" for key, value in loss.items() if key != "name")
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
