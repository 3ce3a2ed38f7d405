"""An experiment's files: the table, the plot, and every run as a line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from fedcurv.simulations.experiments import comparisons
from fedcurv.simulations.experiments.comparisons import pairs
from fedcurv.simulations.experiments.curves import metric_figure
from fedcurv.simulations.experiments.runs import Run
from fedcurv.simulations.experiments.tuning import at_edge
from fedcurv.simulations.parts.metrics import Metric, targets_of
from fedcurv.simulations.parts.tasks import metric_of
from fedcurv.simulations.reports.comparison import (
    markdown_table,
    mean_and_deviation,
    write_summary,
)
from fedcurv.simulations.reports.pictures import save
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


def write_report(
    folder: Path,
    runs: Sequence[Run],
    trials: Sequence[Run],
    config: dict[str, Any],
    command: str,
) -> list[list[str]]:
    """Write summary.md, config.yaml, the tables as CSV and the plot; return the first table.

    There is no trials.csv where nothing was tuned, and no comparisons.csv of a single method.

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
    told = [_caption(metric, kind), *at_edges(runs, trials)]
    if kind != "last" and (compared := pairs(runs, target)):
        against = config["experiment"].get("against") or runs[0].plan.method
        beside = markdown_table(comparisons.table(compared, against, metric))
        told += ["\n".join(beside), comparisons.CAPTION]
        write_csv(folder / "comparisons.csv", [comparisons.line(pair) for pair in compared])
    write_summary(folder, rows, "\n\n".join(told), config, command)
    write_csv(folder / "results.csv", [_line(run, targets) for run in runs])
    if trials:
        write_csv(folder / "trials.csv", [_line(run, targets) for run in trials])
    save(metric_figure(runs, metric, targets), folder, metric.name)
    return rows


def at_edges(runs: Sequence[Run], trials: Sequence[Run]) -> list[str]:
    """Return a line on the tuned numbers at the edge of what was tried; none if there are none.

    Args:
        runs: on the test set.
        trials: that the runs' settings were chosen from.
    """
    said = []
    tried = _by_method(trials)
    for place, (first, *_) in _by_method(runs).items():
        cell, method = place
        best = first.plan.settings
        points = [run.plan.settings for run in tried.get(place, ())]
        if points and (keys := at_edge(best, points)):
            said.append(f"{method} ({cell}): {in_words({key: best[key] for key in keys})}")
    if not said:
        return []
    return [
        "At the edge of what was tried, so that a wider grid, or more_trials, may do better: "
        + "; ".join(said)
        + "."
    ]


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
    for (cell, method), own in _by_method(runs).items():
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
    by_method = _by_method(runs)
    for method in dict.fromkeys(run.plan.method for run in runs):
        row = [method]
        for cell in cells:
            if not (own := by_method.get((cell, method))):  # yet to be run
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


def _by_method(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """Return the runs by cell, in words, and method."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        found.setdefault((in_words(run.plan.cell), run.plan.method), []).append(run)
    return found


def _rounds(runs: Sequence[Run], target: float) -> str:
    reached = [r for run in runs if (r := run.rounds_to(target)) is not None]
    if not reached:
        return "-"
    text = mean_and_deviation(reached)
    return text if len(reached) == len(runs) else f"{text} ({len(reached)} of {len(runs)})"


def _megabytes(runs: Sequence[Run], target: float) -> str:
    spent = [run.cost_to(target, run.megabytes) for run in runs]
    reached = [megabytes for megabytes in spent if megabytes is not None]
    return mean_and_deviation(reached) if len(reached) == len(runs) else "-"


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
        **{
            f"{name}_to_{target:g}": "" if (spent := run.cost_to(target, cost)) is None else spent
            for target in targets
            for name, cost in (("megabytes", run.megabytes), ("seconds", run.seconds))
        },
        "megabytes_a_round": round(run.megabytes_a_round, 4),
        "seconds": round(run.seconds[-1], 2) if run.seconds else 0.0,
        "failure": run.failure,
        "last": round(run.last, 6),
        "label_noise": "" if run.label_noise is None else round(run.label_noise, 6),
    }


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
