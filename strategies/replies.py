"""Which replies of a round are fit to be aggregated, and what is wrong with the others."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from torch import Tensor

from fedcurv.curvature import extremes, require_same_shapes, shapes_of
from fedcurv.parameters import listed
from fedcurv.strategies.flower_private import MOD_FAILED_PRECONDITION
from fedcurv.strategies.records import unpack_tensors

Shapes = Mapping[str, tuple[int, ...]]


class RoundFailed(RuntimeError):
    """No client delivered anything that could be aggregated in a round."""


def require_some_success(
    server_round: int, replies: Sequence[Message], refused: Mapping[str, str]
) -> None:
    """Raise RoundFailed, with the first client's traceback, unless one reply is fit for use.

    Args:
        server_round: the round, for the error.
        replies: all that arrived.
        refused: reason by ``reply_to_message_id`` of those that were refused.
    """
    if not replies:
        raise RoundFailed(
            f"round {server_round}: no client replied in time; are the nodes alive, and is the "
            "timeout longer than their training takes?"
        )
    bad = [r for r in replies if r.has_error() or r.metadata.reply_to_message_id in refused]
    if len(bad) < len(replies):
        return
    first = bad[0]
    hint = ""
    if first.has_error():
        reason = first.error.reason or f"error code {first.error.code}"
        if first.error.code == MOD_FAILED_PRECONDITION:
            hint = (
                "\nA Flower mod on the client refused the message. Differential-privacy mods "
                "accept one ArrayRecord per message; FedCurv sends more, and its statistics must "
                "not be clipped as if they were weights: remove the mod, or use FedAvg."
            )
    else:
        reason = refused[first.metadata.reply_to_message_id]
    raise RoundFailed(
        f"round {server_round}: all {len(bad)} clients failed; the first said:\n{reason}{hint}"
    )


def require_some_messages(server_round: int, messages: Sequence[Message]) -> None:
    """Raise a ValueError if a strategy selected nobody for training."""
    if not messages:
        raise ValueError(
            f"round {server_round}: the strategy selected no client for training; raise "
            "fraction_train or min_train_nodes"
        )


@dataclass(frozen=True)
class Arrays:
    """The arrays of a reply, finite.

    Attributes:
        tensors: by name.
        largest: the greatest magnitude in each.
        weight: to average them by, > 0.
    """

    tensors: Mapping[str, Tensor]
    largest: Mapping[str, float]
    weight: float


def check_reply(content: RecordDict, sent: Shapes, weighted_by_key: str) -> Arrays:
    """Check what a training reply holds for the wrapped strategy and return its arrays.

    Raises:
        ValueError: unless it is one ArrayRecord with the names and shapes that were sent and finite
            numbers, and one MetricRecord with a positive finite weight.
    """
    if len(content.array_records) != 1:
        raise ValueError(f"expected one ArrayRecord, got {sorted(content.array_records)}")
    weight = checked_weight(content, weighted_by_key)
    (record,) = content.array_records.values()
    tensors = unpack_tensors(record)
    require_same_shapes(sent, shapes_of(tensors), "what was sent", "the reply")
    ranges = {name: extremes(tensor) for name, tensor in tensors.items()}
    poisoned = [name for name, ends in ranges.items() if not all(map(math.isfinite, ends))]
    if poisoned:
        raise ValueError(f"expected finite numbers, got NaN or inf in {listed(poisoned)}")
    largest = {name: max(-low, high) for name, (low, high) in ranges.items()}
    return Arrays(tensors, largest, weight)


def checked_weight(content: RecordDict, weighted_by_key: str) -> float:
    """Return the weight by which a reply is averaged.

    Raises:
        ValueError: unless it has one MetricRecord with a weight > 0.
    """
    if len(content.metric_records) != 1:
        raise ValueError(f"expected one MetricRecord, got {sorted(content.metric_records)}")
    (metrics,) = content.metric_records.values()
    weight = metrics.get(weighted_by_key)
    if not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError(f"expected {weighted_by_key!r} > 0 in the metrics, got {weight!r}")
    return float(weight)


def metric_names(content: RecordDict) -> frozenset[str]:
    """Return the names of all metrics of a reply."""
    return frozenset(name for record in content.metric_records.values() for name in record)


def wrong_names(got: frozenset[str], expected: frozenset[str], what: str) -> list[str]:
    """Return what to say of names that are not the other clients'; nothing if they are."""
    if got == expected:
        return []
    missing, extra = sorted(expected - got), sorted(got - expected)
    return [
        f"expected {what} of the same names as the other clients', missing: {missing[:3]}, extra: "
        f"{extra[:3]}"
    ]


def most_common(key_sets: Iterable[frozenset[str]]) -> frozenset[str]:
    """Return the set that occurs most often, the first among equals; empty for none."""
    counts = Counter(key_sets)
    return max(counts, key=lambda keys: counts[keys], default=frozenset())
