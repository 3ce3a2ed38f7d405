"""Means of a model's buffers: counters stay whole, running variances >= 0.

Flower averages all arrays alike, and its adaptive servers (FedAdam, FedYogi, FedAdagrad, FedAvgM)
move all alike: a counter of 127 at every client comes back as 126.999..., and a step of the server
can make BatchNorm's running variance negative.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, Strategy
from numpy.typing import NDArray

from fedcurv.strategies.wire.arrays import read_array

# strategies that add a step of their own to the mean
_ADAPTIVE = (FedAdam, FedYogi, FedAdagrad, FedAvgM)
_RUNNING = ("running_mean", "running_var")
# by how much a mean of floats may leave the range of its terms, for rounding
_SLACK = 1e-5


def buffer_names(arrays: ArrayRecord) -> frozenset[str]:
    """Return the arrays that are no parameters: integers, truth values, running statistics.

    Others cannot be told from parameters by name and numbers, and count as such.
    """
    running = {name for name in arrays if name.rpartition(".")[2] in _RUNNING}
    return whole_numbers(arrays) | running


def whole_numbers(arrays: ArrayRecord) -> frozenset[str]:
    """Return the arrays of integers and truth values."""
    return frozenset(n for n, array in arrays.items() if np.dtype(array.dtype).kind in "iub")


def is_variance(name: str) -> bool:
    """Return whether an array of this name holds a layer's running variance."""
    return name.rpartition(".")[2] == "running_var"


def medians(
    sent: ArrayRecord, names: Iterable[str], replies: Iterable[tuple[RecordDict, float]]
) -> dict[str, Array]:
    """Return by name each number's median over the replies, the lower of two, as it was sent."""
    records = [record for content, _ in replies for record in content.array_records.values()]
    medians = {}
    for name in names if records else ():
        in_order = np.sort([read_array(name, record[name]) for record in records], axis=0)
        middle = in_order[(len(records) - 1) // 2]
        medians[name] = Array(_of_type(middle, np.dtype(sent[name].dtype), middle, middle))
    return medians


class BufferMeans:
    """The weighted means of a round's buffers, and the ranges in which they lie.

    Args:
        sent: the model as it was sent.
        names: of its buffers.
        replies: contents of the replies that are averaged, each with its weight > 0.
    """

    def __init__(
        self, sent: ArrayRecord, names: Iterable[str], replies: Iterable[tuple[RecordDict, float]]
    ) -> None:
        self._sent = sent
        terms = list(replies)
        self._found = {name: _mean_and_range(name, terms) for name in names} if terms else {}

    def arrays(self) -> dict[str, Array]:
        """Return the means, by name, of the types that were sent."""
        return {name: self._array(name) for name in self._found}

    def _array(self, name: str, mean: NDArray[Any] | None = None) -> Array:
        own_mean, low, high = self._found[name]
        dtype = np.dtype(self._sent[name].dtype)
        return Array(_of_type(own_mean if mean is None else mean, dtype, low, high))

    def settled(self, arrays: ArrayRecord, strategy: Strategy) -> tuple[ArrayRecord, list[str]]:
        """Return a strategy's result with its buffers set right, and which it had moved.

        Integers come back as they were sent: what is equal everywhere stays, and a mean is rounded
        to the nearest. Of running statistics an adaptive server's step is undone. What a strategy
        chose among the clients' own (a median, say) stays.
        """
        changed: dict[str, Array] = {}
        moved = []
        averages = type(strategy).aggregate_train is FedAvg.aggregate_train
        for name, (_, low, high) in self._found.items():
            if name not in arrays or tuple(arrays[name].shape) != low.shape:
                continue
            given = read_array(name, arrays[name])
            if isinstance(strategy, _ADAPTIVE) or not _within(given, low, high):
                moved.append(name)
                changed[name] = self._array(name)
            elif np.dtype(self._sent[name].dtype).kind in "iub":
                changed[name] = self._array(name, None if averages else given.astype(np.longdouble))
        if not changed:
            return arrays, []
        return ArrayRecord({n: changed.get(n, a) for n, a in arrays.items()}), moved


def _mean_and_range(
    name: str, replies: list[tuple[RecordDict, float]]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    first: NDArray[Any] | None = None
    total = 0.0
    for content, weight in replies:
        (record,) = content.array_records.values()
        values = read_array(name, record[name])
        if values.dtype.kind == "b":
            values = values.astype(np.int8)
        if first is None:
            first, low, high = values, values, values
            above = np.zeros(values.shape, np.longdouble)
        low, high = np.minimum(low, values), np.maximum(high, values)
        # of differences to the first: what is equal everywhere stays to the bit
        above += weight * (values.astype(np.longdouble) - first)
        total += weight
    assert first is not None  # callers have at least one reply
    return first + above / total, low, high


def _within(values: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> bool:
    slack = _SLACK * np.maximum(np.abs(low.astype(float)), np.abs(high.astype(float)))
    return bool(np.all((values >= low - slack) & (values <= high + slack)))


def _of_type(
    mean: NDArray[Any], dtype: np.dtype[Any], low: NDArray[Any], high: NDArray[Any]
) -> NDArray[Any]:
    whole = np.rint(mean) if dtype.kind in "iub" else mean
    return np.asarray(np.clip(whole, low, high)).astype(dtype)
