"""Which replies of a round are fit to be aggregated, and what is wrong with the others."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict

from fedcurv.curvature import Curvature, require_same_shapes
from fedcurv.strategies.flower_private import MOD_FAILED_PRECONDITION
from fedcurv.strategies.records import Report, read_array, unpack_tensors

# a hundred million of these still have a sum in float32
_LARGEST_TERM = 1e30

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


def shapes_of(arrays: ArrayRecord) -> Shapes:
    """Return every array's shape by name."""
    return {name: tuple(array.shape) for name, array in arrays.items()}


def check_reply(content: RecordDict, sent: Shapes, weighted_by_key: str) -> None:
    """Check what a training reply holds for the wrapped strategy.

    Raises:
        ValueError: unless it is one ArrayRecord with the names and shapes that were sent and finite
            numbers, and one MetricRecord with a positive finite weight.
    """
    if len(content.array_records) != 1:
        raise ValueError(f"expected one ArrayRecord, got {sorted(content.array_records)}")
    check_weight(content, weighted_by_key)
    (record,) = content.array_records.values()
    arrays = {name: read_array(name, array) for name, array in record.items()}
    require_same_shapes(sent, {n: a.shape for n, a in arrays.items()}, "what was sent", "the reply")
    poisoned = [name for name, a in arrays.items() if not np.isfinite(a).all()]
    if poisoned:
        raise ValueError(f"expected finite numbers, got NaN or inf in {', '.join(poisoned[:3])}")


def check_weight(content: RecordDict, weighted_by_key: str) -> None:
    """Check that a reply has one MetricRecord with a weight > 0 to average by.

    Raises:
        ValueError: unless it has.
    """
    if len(content.metric_records) != 1:
        raise ValueError(f"expected one MetricRecord, got {sorted(content.metric_records)}")
    (metrics,) = content.metric_records.values()
    weight = metrics.get(weighted_by_key)
    if not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError(f"expected {weighted_by_key!r} > 0 in the metrics, got {weight!r}")


def curvature_of(report: Report, arrays: ArrayRecord) -> Curvature:
    """Return a client's checked terms in float64: P = F, and Q as sent or else F·θ̂.

    Raises:
        ValueError: if they are not valid, or not of parameters that the reply's arrays hold.
    """
    precision = {name: p.double() for name, p in unpack_tensors(report.precision).items()}
    if report.information is not None:
        given = unpack_tensors(report.information)
        information = {name: q.double() for name, q in given.items()}
        return _within_float32(Curvature(precision, information).check())
    unknown = [name for name in precision if name not in arrays]
    if unknown:
        raise ValueError(
            f"statistics of {unknown[0]!r}, which is not among the arrays of the reply"
        )
    local = unpack_tensors(ArrayRecord({name: arrays[name] for name in precision}))
    require_same_shapes(
        {name: p.shape for name, p in precision.items()},
        {name: a.shape for name, a in local.items()},
        "the statistics",
        "the arrays",
    )
    information = {name: p * local[name] for name, p in precision.items()}
    return _within_float32(Curvature(precision, information).check())


def _within_float32(curvature: Curvature) -> Curvature:
    for tensors, what in (
        (curvature.precision, "precision"),
        (curvature.information, "information"),
    ):
        for name, tensor in tensors.items():
            if bool((tensor.abs() > _LARGEST_TERM).any()):
                raise ValueError(
                    f"{what} of {name!r} is {float(tensor.abs().max()):.3g}, expected at most "
                    f"{_LARGEST_TERM:g}, since sums travel in float32"
                )
    return curvature


def most_common(key_sets: Iterable[frozenset[str]]) -> frozenset[str]:
    """Return the set that occurs most often, the first among equals; empty for none."""
    counts = Counter(key_sets)
    return max(counts, key=lambda keys: counts[keys], default=frozenset())
