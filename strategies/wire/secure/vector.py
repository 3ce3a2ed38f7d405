"""A reply as a vector of whole numbers, and the sum of such vectors as what it is the sum of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedcurv.strategies.wire.arrays import read_array
from fedcurv.strategies.wire.secure.fixed_point import (
    LARGEST,
    NUM_PARTS,
    Numbers,
    from_parts,
    in_parts,
)
from fedcurv.strategies.wire.secure.form import (
    Form,
    Layout,
    Part,
    metric_lengths,
    require_names,
    summed_shapes,
)
from fedcurv.strategies.wire.secure.plan import ARRAYS, PRECISION_SUMS, WEIGHTED_SUMS, Place, Plan
from fedcurv.strategies.wire.secure.words import Words
from fedcurv.strategies.wire.sums import PRECISION, STATISTICS, WEIGHTED

_RECORDS = {PRECISION_SUMS: PRECISION, WEIGHTED_SUMS: WEIGHTED}

_SMALLEST_WEIGHT, _LARGEST_WEIGHT = 2.0**-40, 2.0**40


@dataclass(frozen=True)
class Sums:
    """What the server learns of a round.

    Attributes:
        weight: Σ n, > 0.
        metrics: Σ n·m / Σ n.
        arrays: Σ n·θ̂ / Σ n, of the types that were sent; means of whole numbers are in float64.
        statistics: by kind, Σ P and Σ Q by name, exact in float64.
        largest: by place, the sum of the clients' largest magnitudes.
        clipped: by place, how many numbers were clipped, where some were.
        vanished: by place, the unit of its scale, where the clients' largest are below it in the
            mean.
    """

    weight: float
    metrics: MetricRecord
    arrays: ArrayRecord
    statistics: Mapping[str, ArrayRecord]
    largest: Mapping[Place, float]
    clipped: Mapping[Place, int]
    vanished: Mapping[Place, float]


def vector_of(plan: Plan, sent: ArrayRecord, content: RecordDict) -> tuple[Form, Words]:
    """Return a reply's form and its numbers as words, without a mask.

    Args:
        plan: of the round.
        sent: the model that the reply is to.
        content: of the reply: one ArrayRecord beside FedCurv's, and one MetricRecord.

    Raises:
        ValueError: for anything else, and for what is not finite or larger than any scale.
    """
    arrays = [record for key, record in content.array_records.items() if key not in STATISTICS]
    if len(arrays) != 1 or len(content.metric_records) != 1:
        raise ValueError(
            "expected one ArrayRecord and one MetricRecord in a reply to be summed up, got "
            f"{sorted(content.array_records)} and {sorted(content.metric_records)}"
        )
    require_names(sent, arrays[0])
    ((_, metrics),) = content.metric_records.items()
    weight = _weight(metrics, plan.weighted_by_key)
    statistics = {k: content.array_records.get(record) for k, record in _RECORDS.items()}
    precision, weighted = statistics.values()
    if precision is not None and (weighted is None or weighted.keys() != precision.keys()):
        raise ValueError(
            "expected F and F·θ̂ of the same parameters in a report to be summed up, got F alone; "
            "does the server ask for secure sums?"
        )
    form = Form(
        metric_lengths(metrics, plan.weighted_by_key),
        {n: tuple(a.shape) for n, a in precision.items()} if precision is not None else {},
    )
    layout = Layout(plan, summed_shapes(sent), form)
    _require_constants(sent, arrays[0], layout)
    wide = in_parts(np.array([weight, *_weighted_metrics(metrics, form, weight)])).ravel()
    summaries: list[NDArray[np.int64]] = []
    tensors: list[NDArray[np.int64]] = []
    narrow: list[NDArray[np.int64]] = []
    for part in layout.parts:
        kind, name = part.place
        scale = plan.scale(part.place)
        if kind == ARRAYS:
            numbers = _weighted_difference(name, arrays[0][name], sent[name], weight)
        else:
            numbers = _statistic(name, statistics[kind], part)
        whole, clipped = scale.whole(numbers)
        if kind != ARRAYS:  # the client has rounded and clipped them already
            clipped = int(np.count_nonzero(np.abs(whole) >= scale.limit))
        largest = np.abs(numbers).max(keepdims=True) if numbers.size else np.zeros(1)
        summaries += [in_parts(largest)[0], np.array([clipped])]
        (tensors if scale.bits == 64 else narrow).append(whole)
    all_wide = np.concatenate([wide, *summaries, *tensors])
    all_narrow = np.concatenate(narrow) if narrow else np.zeros(0, np.int64)
    return form, Words(all_wide.view(np.uint64), all_narrow.view(np.uint64).astype(np.uint32))


def sums_of(plan: Plan, sent: ArrayRecord, form: Form, total: Words, clients: int) -> Sums:
    """Return what the sum of so many clients' vectors is the sum of.

    Raises:
        ValueError: for what cannot be a sum of such vectors.
    """
    layout = Layout(plan, summed_shapes(sent), form)
    wide = total.wide.view(np.int64)
    begin = NUM_PARTS * (1 + layout.num_metrics)
    weight, *metric_sums = from_parts(wide[:begin].reshape(-1, NUM_PARTS)).tolist()
    if not weight > 0:
        raise ValueError(f"expected a sum of weights > 0, got {weight:g}: a mask was left on it")
    metrics = _metric_means(metric_sums, form, weight)
    end = begin + (NUM_PARTS + 1) * len(layout.parts)
    summaries = wide[begin:end].reshape(-1, NUM_PARTS + 1)
    largest, clipped, vanished = {}, {}, {}
    at = {64: end, 32: 0}
    arrays, statistics = dict(sent), {kind: dict[str, Array]() for kind in _RECORDS}
    for part, summary in zip(layout.parts, summaries, strict=True):
        kind, name = part.place
        scale = plan.scale(part.place)
        words = (total.wide if scale.bits == 64 else total.narrow)[at[scale.bits] :][: part.size]
        at[scale.bits] += part.size
        numbers = scale.numbers(scale.signed(words)).reshape(part.shape)
        largest[part.place] = float(from_parts(summary[:NUM_PARTS]))
        if summary[NUM_PARTS]:
            clipped[part.place] = int(summary[NUM_PARTS])
        if 0 < largest[part.place] <= clients * scale.unit:
            vanished[part.place] = scale.unit
        if kind == ARRAYS:
            arrays[name] = _moved(name, sent[name], numbers / weight)
        else:
            statistics[kind][name] = Array(numbers)
    found = {
        _RECORDS[kind]: ArrayRecord(by_name) for kind, by_name in statistics.items() if by_name
    }
    return Sums(weight, metrics, ArrayRecord(arrays), found, largest, clipped, vanished)


def _weight(metrics: MetricRecord, key: str) -> float:
    weight = metrics.get(key)
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not _SMALLEST_WEIGHT <= weight <= _LARGEST_WEIGHT:  # type: ignore[operator]
        raise ValueError(
            f"expected a number > 0 as {key!r} in the metrics, from {_SMALLEST_WEIGHT:.0e} to "
            f"{_LARGEST_WEIGHT:.0e}, got another, or none"
        )
    return float(weight)  # type: ignore[arg-type]


def _require_constants(sent: ArrayRecord, got: ArrayRecord, layout: Layout) -> None:
    summed = {part.place[1] for part in layout.parts if part.place[0] == ARRAYS}
    for name in sent:
        before, now = (read_array(name, record[name]) for record in (sent, got))
        if name not in summed and not np.array_equal(before, now, equal_nan=True):
            raise ValueError(
                f"array {name!r} was sent with NaN or inf, and must come back as it is"
            )


def _weighted_difference(name: str, got: Array, sent: Array, weight: float) -> Numbers:
    difference = read_array(name, got).astype(np.float64)
    difference -= read_array(name, sent)
    difference *= weight
    return _finite(name, difference).ravel()


def _statistic(name: str, record: ArrayRecord | None, part: Part) -> Numbers:
    assert record is not None  # as the form says
    values = read_array(name, record[name])
    if tuple(values.shape) != part.shape:
        raise ValueError(f"expected F·θ̂ of {name!r} in the shape {part.shape}, got {values.shape}")
    return _finite(name, values.astype(np.float64)).ravel()


def _finite(name: str, numbers: Numbers) -> Numbers:
    if not bool(np.isfinite(numbers).all()):
        raise ValueError(
            f"expected finite numbers, got NaN or inf in {name!r}; does this client's training "
            "diverge?"
        )
    if bool((np.abs(numbers) > LARGEST).any()):
        raise ValueError(
            f"expected numbers up to {LARGEST:.0e}, times the weight in arrays, got larger ones in "
            f"{name!r}; does this client's training diverge?"
        )
    return numbers


def _weighted_metrics(metrics: MetricRecord, form: Form, weight: float) -> list[float]:
    found: list[float] = []
    for name in form.metrics:
        value = metrics[name]
        numbers = [v * weight for v in (value if isinstance(value, list) else [value])]
        if not all(abs(number) <= LARGEST for number in numbers):
            raise ValueError(
                f"expected the metric {name!r} finite, and times the weight at most {LARGEST:.0e}: "
                "a sum without this client would be of fewer than all others; give a number in "
                "its place, or leave the metric out everywhere"
            )
        found += numbers
    return found


def _metric_means(totals: Sequence[float], form: Form, weight: float) -> MetricRecord:
    means = [total / weight for total in totals]
    found, begin = MetricRecord(), 0
    for name, length in form.metrics.items():
        found[name] = means[begin] if length == 0 else means[begin : begin + length]
        begin += max(1, length)
    return found


def _moved(name: str, sent: Array, difference: Numbers) -> Array:
    before = read_array(name, sent)
    moved = np.asarray(before.astype(np.float64) + difference)  # of one number, a scalar
    return Array(moved.astype(before.dtype) if before.dtype.kind == "f" else moved)
