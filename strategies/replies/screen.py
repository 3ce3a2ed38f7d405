"""Screen before a strategy that does not check its replies: it gets to see those it can stand."""

import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedXgbBagging, FedXgbCyclic, Strategy

from fedcurv.strategies.replies.check import (
    LARGEST,
    Sent,
    check_reply,
    checked_weight,
    form_of,
    most_common,
    wrong_names,
)
from fedcurv.strategies.replies.metrics import MetricGaps
from fedcurv.strategies.replies.settling import Settling
from fedcurv.strategies.replies.trees import check_trees
from fedcurv.strategies.replies.weights import Weights, checked_bound
from fedcurv.strategies.wire.arrays import read_array, reason_of

logger = logging.getLogger(__name__)

_TREES = (FedXgbBagging, FedXgbCyclic)


class Screen:
    """Refuses replies that would spoil a strategy's model, or end its run.

    Args:
        strategy: whose replies they are.
        replies_are_models: whether a reply must hold what was sent: arrays of the same names and
            shapes, finite. None finds out: it must for Flower's own strategies that average, and
            for others where most replies of a round do.
        max_examples: the largest weight; None for a bound relative to the round.
        counts_alike: whether every client counts once, whatever weight it tells.

    Raises:
        ValueError: if ``max_examples`` is not above 0.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        replies_are_models: bool | None = None,
        max_examples: float | None = None,
        counts_alike: bool = False,
    ) -> None:
        self._strategy, self._counts_alike = strategy, counts_alike
        self._told_of_weights = False
        self._replies_are_models = replies_are_models
        self._max_examples = checked_bound(max_examples)
        self._settling = Settling()
        self._gaps = {phase: MetricGaps(phase) for phase in ("training", "evaluation")}

    @property
    def _key(self) -> str | None:
        return weighted_by_key(self._strategy)

    def train(
        self, server_round: int, sent: ArrayRecord, replies: Sequence[Message], name: "Name"
    ) -> tuple[list[Message], dict[str, str], "Finish"]:
        """Return the replies to training that may be aggregated, with those that are errors.

        Args:
            server_round: for the log.
            sent: the model that was sent.
            replies: all that came.
            name: of a reply's client, in words.

        Returns:
            them, the reason by message id for the others, and what is to be done with the arrays
            that the strategy makes of them.
        """
        model = Sent.of(sent) if self._are_models(sent, replies) else None
        weights: dict[str, float] = {}
        constant: set[str] = set()

        def check(content: RecordDict) -> tuple[float, frozenset[str]]:
            weight = self._weight(content)
            if model is None:
                if type(self._strategy).aggregate_train is FedXgbBagging.aggregate_train:
                    check_trees(content)
                return weight, form_of(content) | self._array_names(content)
            arrays = check_reply(content, model, self._key)
            constant.update(arrays.constant)
            return weight, form_of(content)

        fit, refused = self._fit(replies, check, weights)
        _say(server_round, "reply", replies, refused, name)
        if self._counts_alike and self._key is not None:
            weights = self._made_alike(server_round, fit, weights, self._key)
        self._gaps["training"].fill(server_round, fit, self._key, name)
        if model is None:
            return fit, refused, lambda arrays: arrays
        contents = [
            (m.content, weights[m.metadata.reply_to_message_id]) for m in fit if m.has_content()
        ]
        finish = self._settling.prepare(self._strategy, model, constant, contents)
        return fit, refused, lambda arrays: finish(server_round, arrays)

    def evaluate(
        self, server_round: int, replies: Sequence[Message], name: "Name"
    ) -> tuple[list[Message], dict[str, str]]:
        """Return the replies to evaluation that may be aggregated, and why the others may not."""

        def check(content: RecordDict) -> tuple[float, frozenset[str]]:
            return self._weight(content), form_of(content)

        fit, refused = self._fit(replies, check, {})
        _say(server_round, "evaluation", replies, refused, name)
        self._gaps["evaluation"].fill(server_round, fit, self._key, name)
        return fit, refused

    def _fit(
        self,
        replies: Sequence[Message],
        check: Callable[[RecordDict], tuple[float, frozenset[str]]],
        weights: dict[str, float],
    ) -> tuple[list[Message], dict[str, str]]:
        bound = Weights(self._max_examples)
        refused: dict[str, str] = {}
        forms: dict[str, frozenset[str]] = {}
        classes: dict[str, int] = {}
        for message in replies:
            if message.has_error():
                continue
            message_id = message.metadata.reply_to_message_id
            try:
                weight, form = check(message.content)
                classes[message_id] = bound.add(weight, str(self._key))
                weights[message_id], forms[message_id] = weight, form
            except Exception as error:  # whatever a reply holds, the round goes on without it
                refused[message_id] = reason_of(error)
        common = most_common(forms.values())
        too_heavy = bound.too_heavy(str(self._key))
        for message_id, form in forms.items():
            faults = wrong_names(form, common, "metrics and arrays")
            if reason := too_heavy.get(classes[message_id]):
                faults.append(reason)
            if faults:
                refused[message_id] = "; ".join(faults)
        return [m for m in replies if m.metadata.reply_to_message_id not in refused], refused

    def _made_alike(
        self, server_round: int, fit: Sequence[Message], weights: Mapping[str, float], key: str
    ) -> dict[str, float]:
        """Give every reply the weight 1, and say once where they had others; return the weights."""
        told = [weights[m.metadata.reply_to_message_id] for m in fit if m.has_content()]
        if len(set(told)) > 1 and not self._told_of_weights:
            self._told_of_weights = True
            logger.warning(
                "round %d: clients count alike, as the method is published, though their %r are "
                "%g to %g: it trains for another mean of their losses than FedAvg; said once",
                server_round,
                key,
                min(told),
                max(told),
            )
        for message in fit:
            if message.has_content():
                ((name, metrics),) = message.content.metric_records.items()
                message.content[name] = MetricRecord({**metrics, key: 1.0})
        return dict.fromkeys(weights, 1.0)

    def _weight(self, content: RecordDict) -> float:
        weight = 1.0 if self._key is None else checked_weight(content, self._key)
        # what q-FedAvg weighs by is a power of the loss
        key = getattr(self._strategy, "train_loss_key", None)
        if isinstance(key, str) and content.array_records:
            (metrics,) = content.metric_records.values()
            if key not in metrics:
                raise ValueError(
                    f"expected the metric {key!r} (the strategy's train_loss_key), got "
                    f"{', '.join(sorted(metrics))[:200]}; name there the one that is the loss"
                )
            _require_loss(metrics[key], key, float(getattr(self._strategy, "q", 0.0)))
        return weight

    def _array_names(self, content: RecordDict) -> frozenset[str]:
        """Return what can be said of arrays that are no model: names, and kinds of numbers."""
        if self._replies_are_models is False:
            return frozenset()
        return frozenset(
            f"{record_name}/{name} ({_kind_of(name, record)})"
            for record_name, record in content.array_records.items()
            for name in record
        )

    def _are_models(self, sent: ArrayRecord, replies: Sequence[Message]) -> bool:
        if self._replies_are_models is not None:
            return self._replies_are_models
        if averages(self._strategy):
            return True
        if not any(array.dtype.startswith(("float", "complex")) for array in sent.values()):
            return False
        contents = [m.content for m in replies if m.has_content()]
        alike = sum(_looks_like(content, sent) for content in contents)
        return 0 < 2 * alike >= len(contents)


def _require_loss(loss: object, key: str, power: float) -> None:
    if not isinstance(loss, int | float) or not 0 <= loss <= sys.float_info.max:
        raise ValueError(f"expected {key!r} >= 0 in the metrics, got {str(loss)[:60]}")
    if power * math.log(max(loss, 1.0)) > math.log(LARGEST):
        raise ValueError(
            f"expected {key!r} in the metrics whose power q = {power:g} is at most {LARGEST:g}, "
            f"got {loss:g}; does the client's training diverge?"
        )


Name = Callable[[Message], str]
Finish = Callable[[ArrayRecord], ArrayRecord]


def weighted_by_key(strategy: Strategy) -> str | None:
    """Return the metric by which a strategy, or the one that it wraps, weighs; None for none."""
    for _ in range(10):
        key = getattr(strategy, "weighted_by_key", None)
        if isinstance(key, str):
            return key
        wrapped = getattr(strategy, "strategy", None)
        if not isinstance(wrapped, Strategy):
            return None
        strategy = wrapped
    return None


def averages(strategy: Strategy) -> bool:
    """Return whether a strategy, or the one that it wraps, is one of Flower's that average."""
    own = type(strategy).aggregate_train.__module__.startswith("flwr.")
    wrapped = getattr(strategy, "strategy", None)
    if isinstance(wrapped, Strategy):
        return own and averages(wrapped)
    return own and not isinstance(strategy, _TREES)


def _looks_like(content: RecordDict, sent: ArrayRecord) -> bool:
    records = list(content.array_records.values())
    return len(records) == 1 and {n: tuple(a.shape) for n, a in records[0].items()} == {
        n: tuple(a.shape) for n, a in sent.items()
    }


def _kind_of(name: str, record: ArrayRecord) -> str:
    try:
        return read_array(name, record[name]).dtype.kind
    except ValueError:
        return "not numbers"


def _say(
    server_round: int,
    what: str,
    replies: Sequence[Message],
    refused: Mapping[str, str],
    name: Name,
) -> None:
    for message in replies:
        if reason := refused.get(message.metadata.reply_to_message_id):
            logger.warning(
                "round %d: refused the %s of %s: %s",
                server_round,
                what,
                name(message),
                reason,
            )
