"""An experiment's plot: every method's score over rounds, megabytes and seconds."""

import statistics
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedcurv.simulations.experiments.runs import Run
from fedcurv.simulations.parts.metrics import Metric
from fedcurv.simulations.reports.pictures import Curve, draw, draw_targets, legend_below
from fedcurv.simulations.reports.words import in_words

# what a run's score is drawn over, by the axis' label
_COSTS: Mapping[str, Callable[[Run], Sequence[float]]] = {
    "round": lambda run: range(len(run.scores)),
    "sent and received by all clients (MB)": lambda run: run.megabytes,
    "seconds": lambda run: run.seconds,
}

# the plot leaves out what lies beside all values after one in so many rounds: the first climb
_STEEP = 4


def metric_figure(runs: Sequence[Run], metric: Metric, targets: Sequence[float]) -> Figure:
    """Return every cell's metric over rounds, megabytes and seconds: the seeds' mean and range.

    A point over megabytes or seconds is a round, at what the seeds had spent by then on average.
    """
    cells = list(dict.fromkeys(in_words(run.plan.cell) for run in runs))
    methods = list(dict.fromkeys(run.plan.method for run in runs))
    figure = Figure(figsize=(14, 3.6 * len(cells)), layout="constrained")
    axes = figure.subplots(len(cells), len(_COSTS), squeeze=False)
    for cell, line in zip(cells, axes, strict=True):
        own = [run for run in runs if in_words(run.plan.cell) == cell]
        for (label, cost), place in zip(_COSTS.items(), line, strict=True):
            _draw(place, own, methods, metric, cost)
            place.set_xlabel(label)
            draw_targets(place, [metric.scale * target for target in targets])
        line[0].set(title=cell, ylabel=metric.axis)
        line[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, 6)
    return figure


def _draw(
    place: Axes,
    runs: Sequence[Run],
    methods: Sequence[str],
    metric: Metric,
    cost: Callable[[Run], Sequence[float]],
) -> None:
    later: list[float] = []
    for index, method in enumerate(methods):
        own = [run for run in runs if run.plan.method == method and not run.failure]
        if not own:
            continue
        spent = [statistics.mean(a) for a in zip(*map(cost, own), strict=True)]
        by_round = [
            [metric.scale * s for s in a] for a in zip(*(r.scores for r in own), strict=True)
        ]
        means = [statistics.mean(a) for a in by_round]
        low, high = [min(a) for a in by_round], [max(a) for a in by_round]
        draw(place, Curve(method, spent, means, low, high), index)
        later += means[len(means) // _STEEP :]
    if later:
        place.set_ylim(*_limits(min(later), max(later), metric))
    place.grid(alpha=0.3)


def _limits(low: float, high: float, metric: Metric) -> tuple[float, float]:
    if metric.is_share:
        return max(0.0, low - 5), min(100.5, high + 2)
    beside = 0.1 * (high - low) or 1.0
    return low - beside, high + beside
