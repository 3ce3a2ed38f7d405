"""Metrics that one client lacks, or that are NaN or inf there: means are then the others'."""

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict

from fedcurv.parameters import listed
from fedcurv.strategies.replies.check import form_of, most_common

logger = logging.getLogger(__name__)

Metric = int | float | list[int] | list[float]

# a metric's record and its name there
_Place = tuple[str, str]


class MetricGaps:
    """Gives a metric that is not finite the others' mean, and says once whose it was.

    A loss may overflow at one client, and an area under a curve is not defined where there is one
    class only; Flower's mean over all clients would be NaN. With the others' mean in its place, any
    mean is the others'. What is finite at no client stays. Where replies of other forms were not
    refused, they get the form of most: what they lack is such a gap, and what they have beside it
    is dropped.

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
            replies: that may be averaged.
            key: the metric that they are weighed by; None for none.
            name: of a reply's client, in words.
        """
        odd: dict[_Place, list[Message]] = {}
        answers = [reply for reply in replies if reply.has_content()]
        _give_one_form(answers)
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


def _give_one_form(answers: Sequence[Message]) -> None:
    """Give all replies the records' names, the metrics and their lengths that most have."""
    forms = [form_of(reply.content) for reply in answers]
    common = most_common(forms)
    for reply, form in zip(answers, forms, strict=True):
        if form != common:
            like = answers[forms.index(common)].content
            reply.content = _in_the_form_of(like, reply.content)


def _in_the_form_of(like: RecordDict, content: RecordDict) -> RecordDict:
    """Return the arrays and metrics, of one record each, under another reply's names."""
    ((arrays_name, _),) = like.array_records.items()
    ((metrics_name, wanted),) = like.metric_records.items()
    (arrays,), (own,) = content.array_records.values(), content.metric_records.values()
    metrics = {name: _or_gap(own.get(name), value) for name, value in wanted.items()}
    return RecordDict({arrays_name: arrays, metrics_name: MetricRecord(metrics)})


def _or_gap(own: Metric | None, like: Metric) -> Metric:
    """Return a metric if it has the length of another; else NaN of that length."""
    if isinstance(like, list):
        same = isinstance(own, list) and len(own) == len(like)
        return own if same and own is not None else [math.nan] * len(like)
    return math.nan if own is None or isinstance(own, list) else own


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
