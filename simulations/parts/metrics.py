"""Metrics of tasks: their names, which way is better, and how tables and plots write them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from fedcurv.simulations.own_calls import SAME, call_own, own_function
from fedcurv.strategies.loop.stopping import Mode, sign_of


@dataclass(frozen=True)
class Metric:
    """What a global model is judged by on the test set, beside its loss.

    Attributes:
        name: of its column in metrics.csv, and of the plot's file.
        label: in tables, plots and sentences.
        higher_is_better: whether the greater of two values is the better.
        is_share: of right answers, in [0, 1], which tables and plots show in %.
    """

    name: str
    label: str
    higher_is_better: bool = True
    is_share: bool = False

    @property
    def in_percent(self) -> str:
        """What stands after the label where values are in %; else nothing."""
        return " in %" if self.is_share else ""

    @property
    def axis(self) -> str:
        """The label of a plot's axis."""
        return f"test {self.label} (%)" if self.is_share else f"test {self.label}"

    @property
    def scale(self) -> float:
        """What a value is multiplied by before it is shown."""
        return 100.0 if self.is_share else 1.0

    @property
    def worst(self) -> float:
        """What a training counts as that has diverged."""
        if self.is_share:
            return 0.0
        return -math.inf if self.higher_is_better else math.inf

    @property
    def mode(self) -> Mode:
        """Whether the highest value is the best, or the lowest."""
        return "max" if self.higher_is_better else "min"

    @property
    def sign(self) -> float:
        """What makes the greater of two values the better."""
        return sign_of(self.mode)

    def best(self, values: Iterable[float], default: float) -> float:
        """Return the best of some values, or a default if there are none."""
        known = [value for value in values if not math.isnan(value)]
        return (max if self.higher_is_better else min)(known, default=default)

    def reaches(self, value: float, target: float) -> bool:
        """Return whether a value is at least as good as a target."""
        return value >= target if self.higher_is_better else value <= target

    @property
    def form(self) -> str:
        """How a mean over several runs is written, scaled, in Python's format language."""
        return ".1f" if self.is_share else ".4g"

    def text(self, value: float) -> str:
        """Return a value for a table; - for one that is not known."""
        if not math.isfinite(value):
            return "-"
        return f"{100 * value:.2f}" if self.is_share else f"{value:.4g}"

    def note(self, value: float) -> str:
        """Return a value with what it is, for a line of its own."""
        return f"{self.text(value)} %" if self.is_share else f"{self.label} {self.text(value)}"

    def target(self, value: float) -> str:
        """Return a target for a table's header."""
        return f"{100 * value:g} %" if self.is_share else f"{value:g}"


ACCURACY = Metric("accuracy", "accuracy", is_share=True)
R2 = Metric("r2", "R²")

_FUNCTION = "metric.function"

# what has a column of its own in the files beside the metric's
_TAKEN = (
    *("strategy", "round", "loss", "train_loss", "clients_ok", "clients_failed", "bytes_down"),
    *("bytes_up", "seconds", "lr", "penalty", "strength", "epsilon", "seed", "accuracy", "r2"),
)


def own_metric(settings: Mapping[str, Any] | None) -> Metric | None:
    """Return the metric that a user's function computes, by the function's name; None for none.

    Args:
        settings: ``metric`` of a configuration: ``function`` and ``higher_is_better``.

    Raises:
        ValueError: if a column of that name says something else.
    """
    place = (settings or {}).get("function")
    if place is None:
        return None
    name = str(place).partition(":")[2]
    if name in _TAKEN:
        raise ValueError(
            f"metric.function={place}: {name!r} is the name of another column of metrics.csv; "
            "give the function another name"
        )
    return Metric(name, name, higher_is_better=bool((settings or {}).get("higher_is_better", True)))


def check_metric(settings: Mapping[str, Any] | None, metric: Metric) -> None:
    """Raise a ValueError for what is said of a metric and would do nothing."""
    settings = settings or {}
    if settings.get("targets") and metric.is_share:
        raise ValueError(
            f"metric.targets={settings['targets']}: those of an accuracy are target_accuracies"
        )
    if settings.get("function") is None and settings.get("higher_is_better") is False:
        raise ValueError(
            "metric.higher_is_better=false is for a metric.function of your own: higher "
            f"{metric.label} is better"
        )


def metric_function(
    settings: Mapping[str, Any] | None,
) -> Callable[[Tensor, Tensor], float] | None:
    """Return what computes the user's own metric, or None if there is none.

    It is called with the outputs and the targets of the whole test set.

    Raises:
        ValueError: if it cannot be found.
    """
    place = (settings or {}).get("function")
    if place is None:
        return None
    own_function(_FUNCTION, place)
    return partial(_called, str(place))


def _called(place: str, outputs: Tensor, targets: Tensor) -> float:
    value = call_own(_FUNCTION, place, SAME, outputs, targets)
    try:
        if isinstance(value, str | bytes):
            raise TypeError("text is no number, also where it reads like one")
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
        raise ValueError(
            f"{_FUNCTION}={place}: expected a number, got {type(value).__name__}{shape}"
        ) from error
    if not math.isfinite(number):
        raise ValueError(
            f"{_FUNCTION}={place}: expected a finite number, got {number}; what is not defined for "
            "a test set needs another metric, or another test set"
        )
    return number


def targets_of(metric: Metric, config: Mapping[str, Any]) -> Sequence[float]:
    """Return the values whose first rounds a table names.

    They are ``target_accuracies`` of an accuracy, and ``metric.targets`` of any other metric.
    """
    if metric.is_share:
        accuracies: Sequence[float] = config["target_accuracies"]
        return accuracies
    targets: Sequence[float] = (config.get("metric") or {}).get("targets") or ()
    return targets
