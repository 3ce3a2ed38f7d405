"""Bound on a reply's weight in a round's averages: no single one may stand for all others."""

import math
from collections.abc import Mapping

# more than this no device holds
_MOST_EXAMPLES = 1e12
# by how much a reply may outweigh the one in the middle; honest ones reach hundreds
_TIMES_THE_MIDDLE = 1000.0


class Weights:
    """A round's weights in classes, of which the absurd ones show when the last has come.

    Without a bound of its own it is relative to the round: what is more than 1000 times the middle
    weight is too heavy. The middle is known when the last reply has come, and what was summed by
    then cannot be told apart; so weights that lie a factor of 1000 apart are kept apart, in classes
    that are judged as one. In a cohort whose weights lie closer there is one class.

    Args:
        max_examples: the largest weight, > 0; None for the relative bound.

    Raises:
        ValueError: if the bound is not above 0.
    """

    def __init__(self, max_examples: float | None = None) -> None:
        self._bound = checked_bound(max_examples)
        self._firsts: list[float] = []
        self._by_class: dict[int, list[float]] = {}

    def add(self, weight: float, key: str) -> int:
        """Return the class of a reply's weight.

        Args:
            weight: > 0.
            key: its name in the metrics.

        Raises:
            ValueError: if it is above the bound, or above a million million without one.
        """
        bound = _MOST_EXAMPLES if self._bound is None else self._bound
        if weight > bound:
            raise ValueError(
                f"expected {key!r} of at most {bound:g}, got {weight:g}; raise max_examples if "
                "that is what the client has"
            )
        if self._bound is not None:
            return 0
        for number, first in enumerate(self._firsts):
            if first / _TIMES_THE_MIDDLE <= weight <= first * _TIMES_THE_MIDDLE:
                self._by_class[number].append(weight)
                return number
        self._firsts.append(weight)
        self._by_class[len(self._firsts) - 1] = [weight]
        return len(self._firsts) - 1

    def too_heavy(self, key: str) -> dict[int, str]:
        """Return the classes that are above the bound, and what to say of them."""
        if len(self._by_class) < 2:
            return {}
        everyone = sorted(w for weights in self._by_class.values() for w in weights)
        # of an even number the greater: of two replies none can be called the odd one
        middle = everyone[len(everyone) // 2]
        return {
            number: f"expected {key!r} of at most {_TIMES_THE_MIDDLE:g} times the round's middle "
            f"one, {middle:g}, got {min(weights):g}; give max_examples if that is what the client "
            "has"
            for number, weights in self._by_class.items()
            if min(weights) > _TIMES_THE_MIDDLE * middle
        }


def far_from_the_middle(values: Mapping[str, float], what: str) -> dict[str, str]:
    """Return by name what to say of values > 0 over 1000 times the middle one, or below 1/1000.

    Args:
        values: of a round's replies, by name.
        what: they are called.
    """
    in_order = sorted(values.values())
    middle = in_order[len(in_order) // 2] if in_order else 1.0
    least, most = middle / _TIMES_THE_MIDDLE, middle * _TIMES_THE_MIDDLE
    return {
        name: f"expected {what!r} within {_TIMES_THE_MIDDLE:g} times the round's middle one, "
        f"{middle:g}, got {value:g}"
        for name, value in values.items()
        if not least <= value <= most
    }


def checked_bound(max_examples: float | None) -> float | None:
    """Return a bound on weights.

    Raises:
        ValueError: if it is not above 0; infinity is no bound, None the default.
    """
    if max_examples is not None and not 0.0 < max_examples <= math.inf:
        raise ValueError(f"max_examples must be > 0, got {max_examples!r}")
    return max_examples
