"""An experiment's files: the table, the plot, and every run as a line."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.table import Table

from fedcurv.simulations.experiments.runs import Run
from fedcurv.simulations.parts.metrics import Metric, targets_of
from fedcurv.simulations.parts.tasks import metric_of
from fedcurv.simulations.reports.comparison import mean_and_deviation, write_summary
from fedcurv.simulations.reports.pictures import Curve, draw, draw_targets, legend_below, save
from fedcurv.simulations.reports.round_files import write_csv
from fedcurv.simulations.reports.words import in_words


def _caption(metric: Metric, kind: Any) -> str:
    diverged = "counts as 0" if metric.is_share else "makes the mean unknown (-)"
    what = f"Test {metric.label}{metric.in_percent}"
    if kind == "last":
        return (
            f"{what} after the last round, and in brackets the best of all rounds, mean ± standard "
            f"deviation over seeds. A training that diverged {diverged}."
        )
    return (
        f"{what}, mean ± standard deviation over seeds; final is the mean of the last five rounds. "
        "Rounds to a target: if not all seeds reached it, how many did. MB: what all clients "
        "receive and send until the target that was tuned for. A training that diverged "
        f"{diverged}."
    )


# the plot leaves out what lies beside all values after one in so many rounds: the first climb
_STEEP = 4


def write_report(
    folder: Path,
    runs: Sequence[Run],
    trials: Sequence[Run],
    config: dict[str, Any],
    command: str,
) -> list[list[str]]:
    """Write summary.md, config.yaml, results.csv, trials.csv and the plot; return the table.

    There is no trials.csv where nothing was tuned.

    Args:
        folder: existing.
        runs: on the test set.
        trials: on the validation split.
        config: resolved.
        command: by which the experiment was started.
    """
    metric, target = metric_of(config), config["experiment"]["target"]
    targets, kind = targets_of(metric, config), config["experiment"].get("table")
    rows = last_scores(runs) if kind == "last" else summary(runs, targets, target)
    write_summary(folder, rows, _caption(metric, kind), config, command)
    write_csv(folder / "results.csv", [_line(run, targets) for run in runs])
    if trials:
        write_csv(folder / "trials.csv", [_line(run, targets) for run in trials])
    save(metric_figure(runs, metric, targets), folder, metric.name)
    return rows


def summary(runs: Sequence[Run], targets: Sequence[float], target: float) -> list[list[str]]:
    """Return a header and a row for each method in each cell."""
    metric = runs[0].metric
    rows = [
        [
            "cell",
            "method",
            "tuned",
            *(f"rounds to {metric.target(t)}" for t in targets),
            "best",
            "final",
            f"MB to {metric.target(target)}",
        ]
    ]
    for cell, method in dict.fromkeys((in_words(r.plan.cell), r.plan.method) for r in runs):
        own = [r for r in runs if (in_words(r.plan.cell), r.plan.method) == (cell, method)]
        rows.append(
            [
                cell,
                method,
                in_words(own[0].plan.settings),
                *(_rounds(own, t) for t in targets),
                _mean([r.best for r in own], metric),
                _mean([r.final for r in own], metric),
                _megabytes(own, target),
            ]
        )
    return rows


def last_scores(runs: Sequence[Run]) -> list[list[str]]:
    """Return a header and a row for each method: last and best score in each cell."""
    metric = runs[0].metric
    cells = list(dict.fromkeys(in_words(run.plan.cell) for run in runs))
    rows = [["method", *cells]]
    for method in dict.fromkeys(run.plan.method for run in runs):
        row = [method]
        for cell in cells:
            own = [r for r in runs if (in_words(r.plan.cell), r.plan.method) == (cell, method)]
            if not own:  # yet to be run
                row.append("")
                continue
            last, best = [r.last for r in own], [r.best for r in own]
            row.append(f"{_mean(last, metric)} ({_mean(best, metric)})")
        rows.append(row)
    return rows


def ended_early(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return a line for each run that did not come to its end."""
    return tuple(
        f"{run.plan.method} ({in_words(run.plan.cell)}) with seed {run.plan.seed} ended after "
        f"{max(0, len(run.scores) - 1)} rounds: {run.failure}"
        for run in runs
        if run.failure
    )


def _rounds(runs: Sequence[Run], target: float) -> str:
    reached = [r for run in runs if (r := run.rounds_to(target)) is not None]
    if not reached:
        return "-"
    text = mean_and_deviation(reached)
    return text if len(reached) == len(runs) else f"{text} ({len(reached)} of {len(runs)})"


def _megabytes(runs: Sequence[Run], target: float) -> str:
    reached = [run for run in runs if run.rounds_to(target) is not None]
    if len(reached) < len(runs):
        return "-"
    return mean_and_deviation([run.megabytes * (run.rounds_to(target) or 0) for run in runs])


def _mean(values: Sequence[float], metric: Metric) -> str:
    return mean_and_deviation([metric.scale * value for value in values], metric.form)


def _line(run: Run, targets: Sequence[float]) -> dict[str, object]:
    return {
        "cell": in_words(run.plan.cell),
        "method": run.plan.method,
        "settings": in_words(run.plan.settings),
        "seed": run.plan.seed,
        **{
            f"rounds_to_{target:g}": "" if (r := run.rounds_to(target)) is None else r
            for target in targets
        },
        "best": round(run.best, 6),
        "final": round(run.final, 6),
        "megabytes_a_round": round(run.megabytes, 4),
        "seconds": round(run.seconds, 2),
        "failure": run.failure,
        "last": round(run.last, 6),
        "label_noise": "" if run.label_noise is None else round(run.label_noise, 6),
    }


def metric_figure(runs: Sequence[Run], metric: Metric, targets: Sequence[float]) -> Figure:
    """Return every cell's metric over rounds: the seeds' mean, and their range as a band."""
    cells = list(dict.fromkeys(in_words(run.plan.cell) for run in runs))
    methods = list(dict.fromkeys(run.plan.method for run in runs))
    columns = min(2, len(cells))
    lines = -(-len(cells) // columns)
    figure = Figure(figsize=(6 * columns, 3.6 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for place in axes.flat[len(cells) :]:
        place.set_visible(False)
    for cell, place in zip(cells, axes.flat, strict=False):
        _draw(place, [run for run in runs if in_words(run.plan.cell) == cell], methods, metric)
        place.set_title(cell)
        draw_targets(place, [metric.scale * target for target in targets])
    legend_below(figure, 2 * columns)
    return figure


def _draw(place: Axes, runs: Sequence[Run], methods: Sequence[str], metric: Metric) -> None:
    later: list[float] = []
    for index, method in enumerate(methods):
        own = [run.scores for run in runs if run.plan.method == method and not run.failure]
        by_round = [[metric.scale * s for s in of_round] for of_round in zip(*own, strict=True)]
        if not by_round:
            continue
        means = [statistics.mean(a) for a in by_round]
        low, high = [min(a) for a in by_round], [max(a) for a in by_round]
        draw(place, Curve(method, range(len(means)), means, low, high), index)
        later += means[len(means) // _STEEP :]
    if later:
        place.set_ylim(*_limits(min(later), max(later), metric))
    place.set(xlabel="round", ylabel=metric.axis)
    place.xaxis.set_major_locator(MaxNLocator(integer=True))
    place.grid(alpha=0.3)


def _limits(low: float, high: float, metric: Metric) -> tuple[float, float]:
    if metric.is_share:
        return max(0.0, low - 5), min(100.5, high + 2)
    beside = 0.1 * (high - low) or 1.0
    return low - beside, high + beside


def view(rows: Sequence[Sequence[str]], metric: Metric, kind: Any = None) -> Table:
    """Return the table for the terminal; see ``plans.TABLES``."""
    words, caption = 1 if kind == "last" else 3, _caption(metric, kind)
    table = Table(caption=caption, box=box.SIMPLE, pad_edge=False, caption_justify="left")
    for name in rows[0][:words]:
        table.add_column(name)
    for name in rows[0][words:]:
        table.add_column(name, justify="right")
    for row in rows[1:]:
        table.add_row(*row)
    return table
