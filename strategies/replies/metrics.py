"""Metrics that are NaN or inf at one client: the round's means are then over the others."""

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
from flwr.app import Message, MetricRecord

from fedcurv.parameters import listed

logger = logging.getLogger(__name__)

Metric = int | float | list[int] | list[float]

# a metric's record and its name there
_Place = tuple[str, str]


class MetricGaps:
    """Gives a metric that is not finite the others' mean, and says once whose it was.

    A loss may overflow at one client, and an area under a curve is not defined where there is one
    class only; Flower's mean over all clients would be NaN. With the others' mean in its place, any
    mean is the others'. What is finite at no client stays.

    Args:
        phase: what the metrics are of, in words.
    """

    def __init__(self, phase: str) -> None:
        self._phase = phase
        self._told: set[tuple[str, str]] = set()

    def fill(
        self,
        server_round: int,
        replies: Sequence[Message],
        key: str | None,
        name: Callable[[Message], str],
    ) -> None:
        """Change such metrics in the replies.

        Args:
            server_round: for the log.
            replies: that may be averaged, with metrics of the same names.
            key: the metric that they are weighed by; None for none.
            name: of a reply's client, in words.
        """
        odd: dict[_Place, list[Message]] = {}
        answers = [reply for reply in replies if reply.has_content()]
        for reply in answers:
            for record_name, record in reply.content.metric_records.items():
                for metric, value in record.items():
                    if not is_finite(value):
                        odd.setdefault((record_name, metric), []).append(reply)
        for (record_name, metric), without in odd.items():
            fit = [
                reply.content.metric_records[record_name]
                for reply in answers
                if is_finite(reply.content.metric_records[record_name][metric])
            ]
            if not fit:
                continue
            mean = _mean([m[metric] for m in fit], [_weight(m, key) for m in fit])
            for reply in without:
                record = reply.content.metric_records[record_name]
                reply.content[record_name] = MetricRecord({**record, metric: mean})
            self._tell(server_round, metric, [name(reply) for reply in without])

    def _tell(self, server_round: int, metric: str, clients: Sequence[str]) -> None:
        new = [client for client in clients if (metric, client) not in self._told]
        self._told.update((metric, client) for client in new)
        if new:
            logger.warning(
                "round %d: the %s's %r is NaN or inf at %s, and counts there as the others' mean; "
                "said once for each client",
                server_round,
                self._phase,
                metric,
                listed(new),
            )


def is_finite(value: object) -> bool:
    """Return whether a number, or all numbers of a list, are neither NaN nor inf."""
    if isinstance(value, list | tuple):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _weight(metrics: MetricRecord, key: str | None) -> float:
    weight = 1.0 if key is None else metrics.get(key)
    return float(weight) if isinstance(weight, int | float) else 1.0


def _mean(values: Sequence[Metric], weights: Sequence[float]) -> float | list[float]:
    mean: float | list[float] = np.average(np.array(values, float), 0, weights).tolist()
    return mean
