"""A sweep's curves over its seeds, and their picture."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedcurv.simulations.parts.metrics import Metric
from fedcurv.simulations.reports.pictures import Curve, draw, legend_below
from fedcurv.simulations.reports.sweep_jobs import Job, by_setting, keys_of, rows_of
from fedcurv.simulations.reports.words import in_words

# more on one plot cannot be told apart
_MOST_CURVES = 10
_ROUND, _MEGABYTES, _SECONDS = COSTS = ("round", "megabytes", "seconds")

# by what it is drawn over: one of ``COSTS``
CurveOver = Mapping[str, Curve]
# in the same order: what had been spent by the end of a round, and the metric then
_Point = tuple[float, float, float, float]


def sweep_figure(jobs: Sequence[Job], folder: Path) -> Figure | None:
    """Return the metric over rounds of each strategy and setting: mean and range over the seeds.

    Args:
        jobs: that are judged by one metric; for others, or where no job has a curve, there is None.
        folder: of the jobs' folders.
    """
    curves, number = best_curves(jobs, folder)
    if not curves:
        return None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for place, curve in enumerate(curves):
        draw(axes, curve[_ROUND], place)
    if told := left_out(curves, number):
        axes.set_title(told, fontsize="medium")
    axes.set(xlabel="round", ylabel=jobs[0].metric.axis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    legend_below(figure, 2)
    return figure


def best_curves(jobs: Sequence[Job], folder: Path) -> tuple[list[CurveOver], int]:
    """Return the curves that end best, mean and range over the seeds, and how many there are.

    A point over megabytes or seconds is a round, at what the seeds had spent by then on average.

    Args:
        jobs: that are judged by one metric; for others there are none.
        folder: of the jobs' folders.
    """
    metrics = dict.fromkeys(job.metric for job in jobs)
    if len(metrics) != 1:
        return [], 0
    (metric,) = metrics
    rows = rows_of(jobs)
    keys = keys_of(rows)
    settings = {setting: list(by_seed.values()) for setting, by_seed in by_setting(rows).items()}
    found = [
        _curves(dict(zip(keys, setting, strict=True)), own, metric, folder)
        for setting, own in settings.items()
    ]
    curves = [curve for curve in found if curve is not None]
    best = sorted(range(len(curves)), key=lambda i: -metric.sign * curves[i][_ROUND].y[-1])
    return [curves[index] for index in sorted(best[:_MOST_CURVES])], len(curves)


def left_out(shown: Sequence[CurveOver], number: int) -> str:
    """Return which of so many curves are shown; nothing if all are."""
    return f"the {len(shown)} of {number} that end best" if len(shown) < number else ""


def _curves(
    setting: Mapping[str, str], rows: Sequence[Mapping[str, object]], metric: Metric, folder: Path
) -> CurveOver | None:
    """Return the mean and the range over some runs; None if one has no curve or diverged."""
    runs = [_by_round(folder / str(row["job"]), str(row["strategy"]), metric) for row in rows]
    rounds = sorted(set.intersection(*(set(run) for run in runs)))
    if not rounds or any(row.get("failure") for row in rows):
        return None
    said = {key: value for key, value in setting.items() if value and key != "strategy"}
    label = ", ".join(filter(None, (setting["strategy"], in_words(said))))
    values = [[metric.scale * run[number][-1] for run in runs] for number in rounds]
    means = [statistics.mean(of_round) for of_round in values]
    low, high = [min(v) for v in values], [max(v) for v in values]
    spent = [[statistics.mean(run[n][c] for run in runs) for n in rounds] for c in range(3)]
    band = () if len(runs) == 1 else (low, high)
    return {cost: Curve(label, x, means, *band) for cost, x in zip(COSTS, spent, strict=True)}


def _by_round(folder: Path, strategy: str, metric: Metric) -> dict[int, _Point]:
    """Return a run's costs and values by round, as its metrics.csv has them."""
    file = folder / "metrics.csv"
    if not file.exists():
        return {}
    with file.open(newline="", encoding="utf-8") as lines:
        rows = [line for line in csv.DictReader(lines) if line["strategy"] == strategy]
    megabytes = accumulate(_sum(row, "bytes_down", "bytes_up") / 1e6 for row in rows)
    seconds = accumulate(_sum(row, "seconds") for row in rows)
    return {
        int(row["round"]): (int(row["round"]), mb, s, float(row[metric.name]))
        for row, mb, s in zip(rows, megabytes, seconds, strict=True)
        if row.get(metric.name)
    }


def _sum(row: Mapping[str, str], *columns: str) -> float:
    return sum(float(row.get(column) or 0) for column in columns)
