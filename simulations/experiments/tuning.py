"""Tuning of a method: which of its settings is best, and whether a wider grid might do better."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedcurv.simulations.experiments.runs import Run, Settings
from fedcurv.simulations.rules import is_integer, is_number


def worth(tried: Sequence[Run], target: float) -> tuple[float, float]:
    """Return what is smaller for a better setting: the target reached early, and kept.

    Args:
        tried: one setting with each of the tuning seeds.
        target: of the runs' metric.
    """
    metric = tried[0].metric
    rounds = [run.rounds_to(target) if metric.reaches(run.final, target) else None for run in tried]
    reached = [number for number in rounds if number is not None]
    mean = sum(reached) / len(reached) if len(reached) == len(tried) else math.inf
    return mean, -metric.sign * sum(run.final for run in tried) / len(tried)


def tune(
    grid: Sequence[Settings],
    more: int,
    target: float,
    tried: Callable[[Settings], list[Run]],
    fits: Callable[[Settings], bool],
) -> list[list[Run]]:
    """Return the runs of each setting of a grid, and of so many further ones.

    Args:
        grid: settings, the first to try.
        more: how many settings to try after them, see :func:`next_point`.
        target: of the runs' metric.
        tried: runs a setting with each of the tuning seeds.
        fits: whether a setting can be run.
    """
    tuning = [tried(point) for point in grid]
    for _ in range(more):
        points = [runs[0].plan.settings for runs in tuning]
        tuning.append(tried(next_point(best_of(tuning, target), points, fits)))
    return tuning


def best_of(tuning: Sequence[Sequence[Run]], target: float) -> Settings:
    """Return the best of a method's settings, the first among equals.

    Args:
        tuning: for each setting, a run with each of the tuning seeds.
        target: of the runs' metric.
    """
    return min(tuning, key=lambda tried: worth(tried, target))[0].plan.settings


def at_edge(best: Settings, tried: Sequence[Settings]) -> list[str]:
    """Return the keys whose best value is the smallest or the largest number that was tried.

    Nothing smaller than 0 would be tried, so that 0 is no edge.
    """
    edges = {
        key: {value for value in (values[0], values[-1]) if value != 0}
        for key, values in _numbers_tried(tried).items()
        if len(values) > 1
    }
    return [key for key, ends in edges.items() if best[key] in ends]


def next_point(
    best: Settings, tried: Sequence[Settings], fits: Callable[[Settings], bool]
) -> Settings:
    """Return one more setting to try, by the same rule for every method.

    That is the best one with one number changed: where the number is the smallest or the largest
    that was tried, as far beyond it as its neighbour is on the other side, by ratio; else halfway
    to a neighbour, by ratio, the farther one first.

    Args:
        best: of those that were tried.
        tried: at least one number is among what they set.
        fits: whether a setting can be run.

    Raises:
        ValueError: if all such settings were tried.
    """
    for propose in (_beyond, _between):
        for key, values in _numbers_tried(tried).items():
            for number in propose(float(best[key]), values):
                point = {**best, key: int(number) if number.is_integer() else number}
                if point not in tried and fits(point):
                    return point
    raise ValueError(
        f"experiment.more_trials: nothing is left to try beside {dict(best)}; give fewer"
    )


def check_more_trials(number: Any, methods: Mapping[str, Any]) -> None:
    """Raise a ValueError unless every method has a number that so many trials can be made with."""
    if not is_integer(number, 0):
        raise ValueError(f"experiment.more_trials must be an integer >= 0, got {number!r}")
    for name, method in methods.items():
        tuned = method.get("grid", {}).values()
        if number and not any(all(map(is_number, values)) for values in tuned):
            raise ValueError(
                f"experiment.more_trials: expected a number in the grid of every method, got none "
                f"in that of {name}"
            )


def _numbers_tried(tried: Sequence[Settings]) -> dict[str, list[float]]:
    """Return what was tried for each key that is a number in all settings, in ascending order."""
    return {
        key: sorted({point[key] for point in tried})
        for key in tried[0]
        if all(is_number(point[key]) for point in tried)
    }


def _beyond(best: float, values: Sequence[float]) -> list[float]:
    if len(values) < 2:
        return []
    beyond = []
    if best == values[-1] and values[-2] > 0:
        beyond.append(_rounded(best * best / values[-2]))
    if best == values[0] and best > 0:
        beyond.append(_rounded(best * best / values[1]))
    return beyond


def _between(best: float, values: Sequence[float]) -> list[float]:
    if best <= 0:
        return [_rounded(values[1] / 2)] if len(values) > 1 else []
    beside = [value for value in values if value > 0 and value != best]
    lower = max((value for value in beside if value < best), default=best / 4)
    higher = min((value for value in beside if value > best), default=best * 4)
    farther_first = sorted((lower, higher), key=lambda value: -abs(math.log(value / best)))
    return [_rounded(math.sqrt(best * value)) for value in farther_first]


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")
