"""A comparison's metric over rounds, as numbers and as a plot."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedcurv.simulations.parts.metrics import Metric, targets_of
from fedcurv.simulations.reports.history import History
from fedcurv.simulations.reports.pictures import Curve, draw, draw_targets, label_of, name_of_data
from fedcurv.simulations.reports.round_files import evaluation
from fedcurv.strategies.loop.rounds import RoundRecord

# from so many values on a plot shows once more where the curves end
_LONG = 9


def scores(history: History, metric: Metric) -> dict[int, float]:
    """Return a metric's value on the test set by round; 0 is before training."""
    return {
        record.server_round: float(str(evaluation(record)[metric.name]))
        for record in history.rounds
        if metric.name in evaluation(record)
    }


def metric_figure(
    histories: Sequence[History], metric: Metric, config: Mapping[str, Any]
) -> Figure:
    """Return a metric on the test set over rounds, over bytes, and once more where curves end.

    Args:
        histories: at least one.
        metric: to show.
        config: resolved: it names the data, and says how strategies are set.
    """
    curves = [_values(history, metric, config) for history in histories]
    has_end = any(len(curve.x) >= _LONG for curve in curves)
    figure = Figure(figsize=(14 if has_end else 10, 4), layout="constrained")
    over_rounds, over_bytes, *end = figure.subplots(1, 3 if has_end else 2)
    for number, (history, curve) in enumerate(zip(histories, curves, strict=True)):
        draw(over_rounds, curve, number)
        draw(over_bytes, replace(curve, x=megabytes_by(history, curve.x)), number)
        for axes in end:
            half = len(curve.x) // 2
            draw(axes, replace(curve, x=curve.x[half:], y=curve.y[half:]), number)
            axes.set_title("second half of the rounds", fontsize="medium")
    over_rounds.set_title(name_of_data(config), fontsize="medium")
    over_bytes.set_xlabel("sent and received by all clients (MB)")
    over_rounds.set_ylabel(metric.axis)
    over_rounds.legend()
    for axes in (over_rounds, *end):
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in figure.axes:
        draw_targets(axes, [metric.scale * t for t in targets_of(metric, config)])
        axes.grid(alpha=0.3)
    return figure


def _values(history: History, metric: Metric, config: Mapping[str, Any]) -> Curve:
    """Return a metric by round."""
    values = scores(history, metric)
    options = (config.get("strategy") or {}).get(history.strategy)
    shown = [metric.scale * value for value in values.values()]
    return Curve(label_of(history.strategy, options), list(values), shown)


def megabytes_by(history: History, rounds: Iterable[float]) -> list[float]:
    """Return what all clients had sent and received by the end of these rounds."""
    return _until(
        history,
        rounds,
        lambda record: sum(c.bytes_down + c.bytes_up for c in record.clients) / 1e6,
    )


def seconds_by(history: History, rounds: Iterable[float]) -> list[float]:
    """Return the wall-clock time that had passed by the end of these rounds."""
    return _until(history, rounds, lambda record: record.seconds)


def _until(
    history: History, rounds: Iterable[float], cost: Callable[[RoundRecord], float]
) -> list[float]:
    totals = accumulate(map(cost, history.rounds))
    by_round = dict(zip((r.server_round for r in history.rounds), totals, strict=True))
    return [by_round[int(number)] for number in rounds]
