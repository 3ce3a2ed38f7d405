"""Early stopping, and the metric by which it is decided."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from flwr.serverapp.strategy import Result

Mode = Literal["max", "min"]


def sign_of(mode: Mode) -> float:
    """Return the sign that makes the greater of two values the better.

    Raises:
        ValueError: for another mode.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be max or min, got {mode!r}")
    return 1.0 if mode == "max" else -1.0


def metric_by_round(result: Result, metric: str) -> dict[int, float]:
    """Return a metric of the server's evaluations, else of the clients', in order of rounds.

    Raises:
        ValueError: if no round has it, or it is a list.
    """
    for history in (result.evaluate_metrics_serverapp, result.evaluate_metrics_clientapp):
        values = {r: m[metric] for r, m in sorted(history.items()) if metric in m}
        if any(isinstance(value, list) for value in values.values()):
            raise ValueError(f"expected one number for the metric {metric!r}, got a list")
        if values:
            return {r: float(str(value)) for r, value in values.items()}
    raise ValueError(
        f"no evaluation has a metric {metric!r}; give evaluate_fn, or let clients evaluate"
    )


@dataclass(frozen=True)
class EarlyStopping:
    """Stops once a metric has reached a target, or has not improved for a number of rounds.

    Attributes:
        metric: a name in the server's evaluation, else in the clients'.
        mode: whether ``max`` or ``min`` is better.
        patience: rounds without improvement, >= 1; None never loses patience.
        target: value to reach; None has none.
        min_delta: how much better counts as better, >= 0.

    Raises:
        ValueError: if neither patience nor target is given, or one is out of range.
    """

    metric: str = "accuracy"
    mode: Mode = "max"
    patience: int | None = None
    target: float | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings."""
        sign_of(self.mode)
        if self.patience is None and self.target is None:
            raise ValueError("expected patience or target, got neither")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be >= 1, got {self.patience}")
        if not self.min_delta >= 0:
            raise ValueError(f"min_delta must be >= 0, got {self.min_delta}")

    def should_stop(self, result: Result) -> bool:
        """Return whether the results so far are reason to stop.

        Raises:
            ValueError: if no round has the metric.
        """
        values = metric_by_round(result, self.metric).values()
        sign = sign_of(self.mode)
        signed = [sign * value for value in values]
        if self.target is not None and signed[-1] >= sign * self.target:
            return True
        return self.patience is not None and _since_best(signed, self.min_delta) >= self.patience


def _since_best(values: Sequence[float], min_delta: float) -> int:
    """Return how many values have come since the last that was better than all before."""
    best, since = values[0], 0
    for value in values[1:]:
        since += 1
        if value > best + min_delta or (math.isnan(best) and not math.isnan(value)):
            best, since = value, 0
    return since
