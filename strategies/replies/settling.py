"""A strategy's result set right: buffers whole, masks as they were, nothing beyond all bounds."""

import logging
import math
from collections.abc import Callable, Collection, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy import Bulyan, MultiKrum, QFedAvg, Strategy

from fedcurv.strategies.replies.buffers import BufferMeans, buffer_names, medians, whole_numbers
from fedcurv.strategies.replies.check import LARGEST, RoundFailed, Sent, range_of
from fedcurv.strategies.replies.in_place import read_in_place
from fedcurv.strategies.unfit import DP_WRAPPERS
from fedcurv.strategies.wire.arrays import read_array, unpack_tensors

logger = logging.getLogger(__name__)

Contents = Sequence[tuple[RecordDict, float]]


class Settling:
    """Sets a strategy's result right, and says once what that changed."""

    def __init__(self) -> None:
        self._told = False

    def prepare(
        self, strategy: Strategy, sent: Sent, constant: Collection[str], replies: Contents
    ) -> Callable[[int, ArrayRecord], ArrayRecord]:
        """Return what is to be done after aggregation: strategies consume replies.

        What some of Flower's own strategies cannot stand is taken out of what they see. Krum and
        Bulyan look at distances: a mask of -inf makes all of them NaN, and counters, which differ
        by thousands, hide the weights; of integers they get the median. q-FedAvg forms differences
        in place, which fails for integers, and the norm of all; of buffers it gets the mean.

        Args:
            strategy: that aggregates.
            sent: the model that was sent.
            constant: names of arrays that hold NaN or inf as they were sent.
            replies: that are averaged, with their weights.
        """
        buffers = buffer_names(sent.arrays)
        is_private = isinstance(strategy, DP_WRAPPERS)  # the mean without noise is not to be seen
        settled = frozenset() if is_private else buffers - set(constant)
        means = BufferMeans(sent.arrays, settled, replies)
        aside: dict[str, Array] = {}
        if isinstance(strategy, QFedAvg):
            aside = means.arrays()
        elif isinstance(strategy, MultiKrum | Bulyan):
            aside = medians(sent.arrays, whole_numbers(sent.arrays), replies)
        if isinstance(strategy, QFedAvg | MultiKrum | Bulyan):
            aside |= {name: sent.arrays[name] for name in constant}
            _take_out(strategy, aside.keys(), replies)
        read_in_place(strategy, (content for content, _ in replies))

        def finish(server_round: int, arrays: ArrayRecord) -> ArrayRecord:
            if aside:
                whole = {**arrays, **aside}
                arrays = ArrayRecord({name: whole[name] for name in sent.arrays})
            arrays, moved = means.settled(arrays, strategy)
            if moved and not self._told:
                self._told = True
                logger.warning(
                    "%s would move arrays that are no parameters (%s): they are the clients' "
                    "weighted mean instead, integers rounded to the nearest",
                    type(strategy).__name__,
                    ", ".join(sorted(moved)[:3]) + (" and others" if len(moved) > 3 else ""),
                )
            if constant:
                arrays = ArrayRecord(
                    {n: sent.arrays[n] if n in constant else a for n, a in arrays.items()}
                )
            arrays = _in_the_width_sent(arrays, sent)
            _require_finite(server_round, arrays, constant, strategy)
            return arrays

        return finish


def _in_the_width_sent(arrays: ArrayRecord, sent: Sent) -> ArrayRecord:
    """Return floating-point arrays as wide as they were sent.

    Flower's FedAdam makes float64 of float32, which doubles the download from then on, and which
    clients put into a float32 model all the same.
    """

    def settled(name: str, array: Array) -> Array:
        dtype = sent.arrays[name].dtype if name in sent.arrays else array.dtype
        if sent.kinds.get(name) != "f" or np.dtype(array.dtype).kind != "f" or array.dtype == dtype:
            return array
        return Array(read_array(name, array).astype(dtype))

    return ArrayRecord({name: settled(name, array) for name, array in arrays.items()})


def _take_out(strategy: Strategy, names: Collection[str], replies: Contents) -> None:
    def rest(record: ArrayRecord) -> ArrayRecord:
        return ArrayRecord({n: a for n, a in record.items() if n not in names})

    if isinstance(strategy, QFedAvg) and strategy.current_arrays is not None:
        strategy.current_arrays = rest(strategy.current_arrays)
    for content, _ in replies:
        ((name, record),) = content.array_records.items()
        content[name] = rest(record)


def _require_finite(
    server_round: int, arrays: ArrayRecord, constant: Collection[str], strategy: Strategy
) -> None:
    for name, array in arrays.items():
        if name in constant or np.dtype(array.dtype).kind not in "fc":
            continue
        low, high = range_of(unpack_tensors(ArrayRecord({name: array}))[name])
        largest = max(-low, high)
        if not largest <= LARGEST:
            what = f"numbers of {largest:.3g}" if math.isfinite(largest) else "NaN or inf"
            raise RoundFailed(
                f"round {server_round}: {type(strategy).__name__} made {what} in {name!r} of "
                "replies that are finite; lower its step, or its clients' learning rate"
            )
