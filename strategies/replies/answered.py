"""Replies whose clients say how they trained, and numbers of arrays to reckon with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray

from fedcurv.strategies.wire.arrays import read_array
from fedcurv.strategies.wire.methods import Answer

Numbers = NDArray[Any]


@dataclass(frozen=True)
class Reply:
    """A reply that is averaged.

    Attributes:
        client: its stable id.
        content: as the wrapped strategy will see it, which may be changed.
        weight: > 0.
        answer: what the client said of its training.
    """

    client: str
    content: RecordDict
    weight: float
    answer: Answer

    def read(self, name: str) -> Numbers:
        """Return an array's numbers."""
        (record,) = self.content.array_records.values()
        return widened(read_array(name, record[name]))

    def replace(self, arrays: Mapping[str, Array]) -> None:
        """Put these in the place of the arrays of the same names."""
        ((key, record),) = self.content.array_records.items()
        self.content[key] = ArrayRecord({n: arrays.get(n, a) for n, a in record.items()})


def widened(numbers: Numbers) -> Numbers:
    """Return numbers in double precision."""
    return numbers.astype(np.promote_types(numbers.dtype, np.float64))


def narrowed(numbers: Numbers, like: Array) -> Array:
    """Return numbers as an array of another's type."""
    return Array(np.asarray(numbers).astype(like.dtype))
