"""Which numbers of a reply are summed, on which scales; public, and the same for all nodes.

Every array of numbers has a place: the kind of its record and its name. Where the numbers are going
to lie is known from the sums of the round before; where it is not, they have 64 bits and a wide
range. The weight, the metrics and the largest magnitudes need no scale: they travel in parts.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedcurv.strategies.wire.secure.fixed_point import EXACT_BITS, Scale

ARRAYS, PRECISION_SUMS, WEIGHTED_SUMS = "arrays", "precision", "weighted-parameters"
STATISTICS_KINDS = (PRECISION_SUMS, WEIGHTED_SUMS)

Place = tuple[str, str]

# what a client's numbers may reach while nothing is known of them: differences of parameters times
# numbers of examples; precision, and parameters times that
_UNKNOWN = {ARRAYS: 2.0**30, PRECISION_SUMS: 2.0**12, WEIGHTED_SUMS: 2.0**12}
# of fewer numbers the bits do not count
_SMALL = 256
# by how much a client's largest number may outgrow, of the round before, the sum of the clients'
# largest, the mean of these if they are many, and the sum where numbers were clipped
_GROWTH, _OF_MANY = 2.0, 32.0
GROWTH_OF_CLIPPED = 512.0

_MOST_CLIENTS = 2**20
_LARGEST_EXPONENT = 1000


@dataclass(frozen=True)
class Plan:
    """How the numbers of a round's replies become whole ones.

    Attributes:
        clients: as many as are summed up at most.
        weighted_by_key: the metric that arrays and metrics are weighted by.
        scales: by place, where more is known than nothing.
    """

    clients: int
    weighted_by_key: str
    scales: Mapping[Place, Scale] = field(default_factory=dict)

    def scale(self, place: Place) -> Scale:
        """Return the scale of an array."""
        kind = place[0]
        return self.scales.get(place) or Scale.up_to(
            _UNKNOWN[kind], self.clients, 64, sum_bits_of(kind)
        )

    @classmethod
    def from_bounds(
        cls,
        clients: int,
        weighted_by_key: str,
        bounds: Mapping[Place, float],
        sizes: Mapping[Place, int],
        wide: Collection[Place] = (),
    ) -> "Plan":
        """Return a plan for places whose clients' largest numbers are known.

        Args:
            clients: see above.
            weighted_by_key: likewise.
            bounds: by place, what a client's number may reach, > 0.
            sizes: by place, how many numbers there are.
            wide: places that have 64 bits whatever their size.
        """
        scales = {}
        for place, bound in bounds.items():
            bits = 32 if sizes.get(place, 0) >= _SMALL and place not in wide else 64
            sum_bits = None if bits == 32 else sum_bits_of(place[0])
            scales[place] = Scale.up_to(bound, clients, bits, sum_bits)
        return cls(clients, weighted_by_key, scales)

    def to_text(self) -> str:
        """Return it as JSON."""
        scales: dict[str, dict[str, Sequence[int]]] = {}
        for (kind, name), scale in self.scales.items():
            scales.setdefault(kind, {})[name] = [scale.bits, scale.exponent, scale.limit]
        return json.dumps(
            {"clients": self.clients, "weighted-by": self.weighted_by_key, "scales": scales}
        )

    @classmethod
    def from_text(cls, text: str) -> "Plan":
        """Return the plan that ``to_text`` wrote.

        Raises:
            ValueError: for anything else, and for scales on which a sum would not fit.
        """
        try:
            told = json.loads(text)
            clients, key = told["clients"], told["weighted-by"]
            scales = {
                (kind, name): _scale(numbers, clients)
                for kind, by_name in told["scales"].items()
                for name, numbers in by_name.items()
            }
        except Exception as error:  # whatever a stranger's JSON makes of it
            raise ValueError(
                f"expected the plan of a secure sum, got what is none: {error}"
            ) from error
        if not (_is_whole(clients, 1, _MOST_CLIENTS) and isinstance(key, str)):
            raise ValueError("expected a number of clients and a metric's name in the plan")
        if any(kind not in _UNKNOWN for kind, _ in scales):
            raise ValueError("expected scales of arrays and statistics in the plan")
        return cls(clients, key, scales)


def sum_bits_of(kind: str) -> int | None:
    """Return how many bits sums may have: of statistics as many as float64 holds exactly."""
    return EXACT_BITS if kind in STATISTICS_KINDS else None


def bounds_after(
    largest: Mapping[Place, float], clients: int, wide: Collection[Place] = ()
) -> dict[Place, float]:
    """Return what a client's numbers may reach in the next round.

    That is twice the sum of the clients' largest, which none can exceed by more than growth; of
    many clients, 32 times their mean, unless that was too little; and where it was, 512 times the
    sum.

    Args:
        largest: by place, the sum over clients of each one's largest magnitude.
        clients: how many they are.
        wide: where numbers were clipped; from ``wide_after``.
    """
    factor = min(_GROWTH, _OF_MANY / clients)
    return {
        place: (GROWTH_OF_CLIPPED if place in wide else factor) * total
        for place, total in largest.items()
        if total > 0
    }


def wide_after(clipped: Collection[Place], wide: Collection[Place], clients: int) -> set[Place]:
    """Return the places that have 64 bits in the next round.

    Among many clients one may be heavier than 32 times the mean in every round: where numbers were
    clipped once, the bits stay.

    Args:
        clipped: where numbers of this round were.
        wide: those that had 64 bits in this round.
        clients: how many there are.
    """
    stay = wide if clients * _GROWTH > _OF_MANY else ()
    return {*clipped, *stay}


def _scale(numbers: Any, clients: int) -> Scale:
    bits, exponent, limit = numbers
    if bits not in (32, 64) or not _is_whole(exponent, -_LARGEST_EXPONENT, _LARGEST_EXPONENT):
        raise ValueError("a scale has other bits than 32 and 64, or an absurd exponent")
    if not _is_whole(limit, 1, (2 ** (bits - 1) - 1) // clients):
        raise ValueError("a scale on which the sum would not fit")
    return Scale(bits, exponent, limit)


def _is_whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high
