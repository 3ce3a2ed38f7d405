"""Check of a round's replies: which are fit to be aggregated, and what is wrong with the others."""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from torch import Tensor

from fedcurv.curvature import extremes, require_same_shapes, shapes_of
from fedcurv.parameters import listed
from fedcurv.strategies.flower_private import MOD_FAILED_PRECONDITION
from fedcurv.strategies.replies.buffers import is_variance
from fedcurv.strategies.wire.arrays import read_array, unpack_tensors
from fedcurv.strategies.wire.records import client_id_order, unpack_client_id

Shapes = Mapping[str, tuple[int, ...]]

# what no trained parameter reaches; squares of these, as adaptive servers form, fit into float32
LARGEST = 1e18
# of a sum of squares in float32
_FOR_ROUNDING = 1.01
# more than any counter, and every float has room for it
_LARGEST_INTEGER = 2**64
# of what a client calls its metrics, as far as it is told
_LONGEST_NAME = 100
# by the kind of what was sent, what may come back: apps that turn all into floats, say
_ANSWERS = {"f": "f", "c": "fc", "i": "if", "u": "if", "b": "bif"}


class RoundFailed(RuntimeError):
    """No client delivered anything that could be aggregated in a round."""


class NobodySelected(ValueError):
    """A strategy selected no client for training."""


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
                "not be clipped as if they were weights: take fedcurv.clients.fixed_clipping_mod "
                "or adaptive_clipping_mod with FedCurv(..., private_sums=...), or FedAvg."
            )
    else:
        reason = refused[first.metadata.reply_to_message_id]
    raise RoundFailed(
        f"round {server_round}: all {len(bad)} clients failed; the first said:\n{reason}{hint}"
    )


def require_some_messages(server_round: int, messages: Sequence[Message]) -> None:
    """Raise NobodySelected if a strategy selected nobody for training."""
    if not messages:
        raise NobodySelected(
            f"round {server_round}: the strategy selected no client for training; raise "
            "fraction_train or min_train_nodes"
        )


@dataclass(frozen=True)
class Sent:
    """The model as it was sent to the clients.

    Attributes:
        arrays: themselves.
        shapes: by name, in their order.
        kinds: NumPy's letter for each one's kind of numbers.
    """

    arrays: ArrayRecord
    shapes: Shapes
    kinds: Mapping[str, str]

    @cached_property
    def largest(self) -> Mapping[str, float]:
        """The greatest magnitude in each array of floating-point numbers."""
        floats = ArrayRecord({n: a for n, a in self.arrays.items() if self.kinds[n] in "fc"})
        ranges = {name: range_of(tensor) for name, tensor in unpack_tensors(floats).items()}
        return {name: max(-low, high) for name, (low, high) in ranges.items()}

    @classmethod
    def of(cls, arrays: ArrayRecord) -> "Sent":
        """Return what there is to say of these arrays."""
        kinds = {name: np.dtype(array.dtype).kind for name, array in arrays.items()}
        return cls(arrays, shapes_of(arrays), kinds)


@dataclass(frozen=True)
class Arrays:
    """The arrays of a reply, finite, but for those that are as they were sent.

    Attributes:
        tensors: by name.
        largest: what no magnitude exceeds, in each of floating-point numbers.
        weight: to average them by, > 0.
        constant: names of those that hold NaN or inf as they were sent, such as masks.
        distances: from what was sent, as far as they were asked for; NaN or inf in some.
    """

    tensors: Mapping[str, Tensor]
    largest: Mapping[str, float]
    weight: float
    constant: frozenset[str] = frozenset()
    distances: Mapping[str, float] = field(default_factory=dict)


def check_reply(
    content: RecordDict,
    sent: Sent,
    weighted_by_key: str | None,
    distances_of: Callable[[Mapping[str, Tensor]], Mapping[str, float]] | None = None,
) -> Arrays:
    """Check what a training reply holds for the wrapped strategy and return its arrays.

    Arrays in another order are put into the order in which they were sent: some strategies go by
    it.

    Args:
        content: of the reply.
        sent: what it should have the names, shapes and kinds of.
        weighted_by_key: where the metrics hold its weight; None for a strategy that has none.
        distances_of: returns how far arrays lie from those that were sent, by name, for some of
            them; what is so near that its numbers must be in order is not looked at again.

    Raises:
        ValueError: unless it is one ArrayRecord with the names and shapes that were sent and finite
            numbers, and one MetricRecord with a positive finite weight.
    """
    if len(content.array_records) != 1:
        raise ValueError(f"expected one ArrayRecord, got {sorted(content.array_records)}")
    weight = 1.0 if weighted_by_key is None else checked_weight(content, weighted_by_key)
    ((record_name, record),) = content.array_records.items()
    tensors = unpack_tensors(record)
    require_same_shapes(sent.shapes, shapes_of(tensors), "what was sent", "the reply")
    for name, tensor in tensors.items():
        if _kind(tensor) not in _ANSWERS.get(sent.kinds[name], ""):
            raise ValueError(
                f"array {name!r}: expected numbers like the {sent.arrays[name].dtype} that was "
                f"sent, got {tensor.dtype}"
            )
    distances = {} if distances_of is None else distances_of(tensors)
    # no number is farther from where it was than the whole array, but for rounding
    near = {n: sent.largest[n] + _FOR_ROUNDING * apart for n, apart in distances.items()}
    near = {name: bound for name, bound in near.items() if bound <= LARGEST}
    others = {n: t for n, t in tensors.items() if _kind(t) in "fc" and n not in near}
    ranges = {name: range_of(tensor) for name, tensor in others.items()}
    largest = near | {name: max(-low, high) for name, (low, high) in ranges.items()}
    odd = [name for name, most in largest.items() if not most <= LARGEST]
    constant = [name for name in odd if _as_sent(name, record, sent)]
    if poisoned := [n for n in odd if not math.isfinite(largest[n]) and n not in constant]:
        raise ValueError(
            f"expected finite numbers, got NaN or inf in {listed(poisoned)}; does the client's "
            "training diverge?"
        )
    if too_large := [n for n in odd if n not in constant]:
        name = too_large[0]
        raise ValueError(
            f"expected numbers of at most {LARGEST:g}, got {largest[name]:.3g} in "
            f"{listed(too_large)}; does the client's training diverge?"
        )
    if negative := [n for n, ends in ranges.items() if is_variance(n) and ends[0] < 0]:
        raise ValueError(f"expected running variances >= 0, got less in {listed(negative)}")
    if list(tensors) != list(sent.shapes):
        content[record_name] = ArrayRecord({name: record[name] for name in sent.shapes})
    return Arrays(tensors, largest, weight, frozenset(constant), distances)


def _kind(tensor: Tensor) -> str:
    """Return NumPy's letter for a tensor's kind of numbers; i for unsigned integers too."""
    if tensor.dtype == torch.bool:
        return "b"
    return "f" if tensor.is_floating_point() else "c" if tensor.is_complex() else "i"


def range_of(tensor: Tensor) -> tuple[float, float]:
    """Return the least and the greatest number; of complex ones, of their parts."""
    return extremes(torch.view_as_real(tensor) if tensor.is_complex() else tensor)


def _as_sent(name: str, record: ArrayRecord, sent: Sent) -> bool:
    before, now = read_array(name, sent.arrays[name]), read_array(name, record[name])
    return bool(np.array_equal(before, now, equal_nan=True))


def checked_weight(content: RecordDict, weighted_by_key: str) -> float:
    """Return the weight by which a reply is averaged.

    Raises:
        ValueError: unless it has one MetricRecord with a weight > 0.
    """
    if len(content.metric_records) != 1:
        raise ValueError(f"expected one MetricRecord, got {sorted(content.metric_records)}")
    (metrics,) = content.metric_records.values()
    weight = metrics.get(weighted_by_key)
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not 0 < weight <= sys.float_info.max:  # type: ignore[operator]
        shown = _short(weight) if isinstance(weight, int) else repr(weight)[:60]
        raise ValueError(f"expected {weighted_by_key!r} > 0 in the metrics, got {shown}")
    return float(weight)  # type: ignore[arg-type]


def _short(number: int) -> str:
    return str(number) if abs(number) < 10**20 else f"an integer of {number.bit_length()} bits"


def form_of(content: RecordDict) -> frozenset[str]:
    """Return what must be the same in all replies: names of records and metrics, lists' lengths.

    Raises:
        ValueError: if one is no number, or too large for one.
    """
    found = {f"arrays in the record {name!r}" for name in content.array_records}
    for record_name, record in content.metric_records.items():
        found.add(f"metrics in the record {record_name!r}")
        for name, value in record.items():
            values = value if isinstance(value, list) else [value]
            for one in values:
                is_float = isinstance(one, float)
                if not is_float and not (isinstance(one, int) and abs(one) <= _LARGEST_INTEGER):
                    what = _short(one) if isinstance(one, int) else repr(one)[:40]
                    raise ValueError(f"expected numbers as metrics, got {what} in {name!r}")
            found.add(f"{name} (a list of {len(value)})" if isinstance(value, list) else name)
    return frozenset(found)


def wrong_names(got: frozenset[str], expected: frozenset[str], what: str) -> list[str]:
    """Return what to say of names that are not the other clients'; nothing if they are."""
    if got == expected:
        return []
    missing, extra = (
        [name[:_LONGEST_NAME] for name in sorted(names)[:3]]
        for names in (expected - got, got - expected)
    )
    return [
        f"expected {what} of the same names as the other clients', missing: {missing}, extra: "
        f"{extra}"
    ]


def most_common(key_sets: Iterable[frozenset[str]]) -> frozenset[str]:
    """Return the set that occurs most often, the first among equals; empty for none."""
    counts = Counter(key_sets)
    return max(counts, key=lambda keys: counts[keys], default=frozenset())


def in_order_of_clients(received: Sequence[Message]) -> Sequence[Message]:
    """Sort replies by client, since floating-point sums depend on the order of arrival.

    Where some clients tell no id, the order stays as it came.
    """
    with_content = [m for m in received if not m.has_error()]
    ids = [unpack_client_id(m.content) for m in with_content]
    if None in ids:
        return received
    failed = [m for m in received if m.has_error()]

    def order(pair: tuple[str | None, Message]) -> tuple[int, int, str]:
        return client_id_order(str(pair[0]))

    return [m for _, m in sorted(zip(ids, with_content, strict=True), key=order)] + failed


def require_one_node(
    client_id: str | None, node: int, nodes: dict[str, int], known: Mapping[int, str]
) -> None:
    """Note which node replies as a client in this round.

    Args:
        client_id: that the reply tells.
        node: that it comes from.
        nodes: by client, as far as they have replied.
        known: the clients that the nodes said they were when they were asked.

    Raises:
        ValueError: if another one did, or the node speaks in another client's name.
    """
    if client_id is None:
        return
    others = {one for other, one in known.items() if other != node}
    if known.get(node, client_id) != client_id and client_id in others:
        raise ValueError(
            f"expected a reply of client {known[node]}, as node {node} said when it was asked, got "
            f"one in the name of client {client_id}"
        )
    if nodes.setdefault(client_id, node) != node:
        raise ValueError(
            f"nodes {nodes[client_id]} and {node} both say that they are client {client_id}, and "
            "the first has replied; give each node its own client-id in its node configuration"
        )
