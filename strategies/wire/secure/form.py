"""What a reply holds, in words: names and shapes, which are not secret and must agree."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, MetricRecord

from fedcurv.parameters import listed
from fedcurv.strategies.wire.arrays import read_array
from fedcurv.strategies.wire.secure.fixed_point import NUM_PARTS
from fedcurv.strategies.wire.secure.plan import ARRAYS, STATISTICS_KINDS, Place, Plan

Shape = tuple[int, ...]

_MOST_NUMBERS = 2**36
_MOST_SIZES = 64
_LONGEST_LIST = 2**20


@dataclass(frozen=True)
class Form:
    """Names and shapes of a reply, beside those of the arrays that were sent.

    Attributes:
        metrics: by name, in order, how many numbers a list has; 0 for a single number.
        statistics: by the parameters' names, in order, their shapes; empty if it has none.
    """

    metrics: Mapping[str, int]
    statistics: Mapping[str, Shape]

    def to_text(self) -> str:
        """Return it as JSON; equal forms give equal texts."""
        return json.dumps({"metrics": self.metrics, "statistics": self.statistics}, sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> "Form":
        """Return the form that ``to_text`` wrote.

        Raises:
            ValueError: for anything else.
        """
        try:
            told = json.loads(text)
            metrics = {str(n): _whole(v, _LONGEST_LIST) for n, v in told["metrics"].items()}
            statistics = {str(name): _shape(shape) for name, shape in told["statistics"].items()}
        except Exception as error:  # whatever a stranger's JSON makes of it
            raise ValueError(f"expected the form of a reply, got what is none: {error}") from error
        form = cls(metrics, statistics)
        if form.to_text() != text:
            raise ValueError("expected the form of a reply as every client writes it")
        return form


@dataclass(frozen=True)
class Part:
    """An array's part of the vector.

    Attributes:
        place: of the array.
        shape: of it.
    """

    place: Place
    shape: Shape

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return int(np.prod(self.shape, dtype=object))


class Layout:
    """The order of a vector's words.

    In words of 64 bits: the weight, and each metric's numbers times it, in parts; of each array the
    largest magnitude in parts, and how many numbers were clipped; arrays in 64 bits. Then, in words
    of 32 bits, arrays in 32 bits.

    Args:
        plan: of the round.
        summed: shapes by name of the arrays that were sent and are summed up.
        form: of the replies.

    Attributes:
        parts: of all arrays, in order.
        num_metrics: how many numbers all metrics have.
        wide: how many words of 64 bits there are.
        narrow: how many of 32 bits.

    Raises:
        ValueError: for a vector of absurd length.
    """

    def __init__(self, plan: Plan, summed: Mapping[str, Shape], form: Form) -> None:
        self.parts: Sequence[Part] = [
            *(Part((ARRAYS, name), shape) for name, shape in summed.items()),
            *(
                Part((kind, name), form.statistics[name])
                for kind in STATISTICS_KINDS
                for name in sorted(form.statistics)
            ),
        ]
        self.num_metrics = sum(max(1, length) for length in form.metrics.values())
        self.wide = NUM_PARTS * (1 + self.num_metrics) + (NUM_PARTS + 1) * len(self.parts)
        self.narrow = 0
        for part in self.parts:
            if plan.scale(part.place).bits == 64:
                self.wide += part.size
            else:
                self.narrow += part.size
        if self.wide + self.narrow > _MOST_NUMBERS:
            raise ValueError("expected a sum of fewer numbers")


def _whole(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"expected a number of numbers, got {str(value)[:40]!r}")
    return value


def _shape(sizes: Any) -> Shape:
    """Return a shape; what is refused is found out before long numbers are multiplied."""
    if type(sizes) is not list or len(sizes) > _MOST_SIZES:
        raise ValueError(f"expected a shape of at most {_MOST_SIZES} sizes")
    number = 1
    for size in sizes:
        number = _whole(number * _whole(size, _MOST_NUMBERS), _MOST_NUMBERS)
    return tuple(sizes)


def metric_lengths(metrics: MetricRecord, weighted_by_key: str) -> dict[str, int]:
    """Return by name the lengths of metrics but for the weight; 0 for a single number.

    Raises:
        ValueError: for a list without numbers.
    """
    if empty := [name for name, value in metrics.items() if value == []]:
        raise ValueError(f"expected numbers in the metric {empty[0]!r}, got an empty list")
    return {
        name: len(value) if isinstance(value, list) else 0
        for name, value in sorted(metrics.items())
        if name != weighted_by_key
    }


def summed_shapes(sent: ArrayRecord) -> dict[str, Shape]:
    """Return the shapes by name of the arrays that are summed up: those that are finite.

    Others, such as masks of -inf, must come back as they were sent.

    Raises:
        ValueError: for complex arrays, and for what cannot be read.
    """
    shapes = {}
    for name, array in sent.items():
        values = read_array(name, array)
        if values.dtype.kind == "c":
            raise ValueError(
                f"array {name!r}: secure sums are of real numbers, got {values.dtype}; send its "
                "real and imaginary parts"
            )
        if values.dtype.kind != "f" or bool(np.isfinite(values).all()):
            shapes[name] = tuple(values.shape)
    return shapes


def require_names(sent: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    """Raise a ValueError unless a reply's arrays have the names and shapes of what was sent."""
    if got.keys() != sent.keys():
        raise ValueError(
            f"expected the arrays that were sent ({listed(list(sent))}), got {listed(list(got))}"
        )
    for name, array in sent.items():
        if tuple(got[name].shape) != tuple(array.shape):
            raise ValueError(
                f"array {name!r}: expected the shape {tuple(array.shape)} that was sent, got "
                f"{tuple(got[name].shape)}"
            )
