"""What runs with the same seeds say about two methods: ratios with intervals, and tests.

Two methods' runs with one seed have the same data, clients and first weights. They are compared
seed by seed, which takes away what makes a seed easy or hard for both.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, norm, permutation_test, t

Values = NDArray[np.float64]

# of fewer, resampling makes intervals that are too narrow: with three seeds, for 79 % and not 95 %
FEWEST_SEEDS = 5
# of an interval's misses
_ALPHA = 0.05
_RESAMPLES = 9999


@dataclass(frozen=True)
class Compared:
    """A figure of two methods, with the 95 % interval that resampling the seeds gives.

    Attributes:
        value: of all seeds.
        low: lower end; NaN for fewer than ``FEWEST_SEEDS``.
        high: upper end likewise.
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    def text(self, form: str = ".2f") -> str:
        """Return the figure, with its interval if it has one, for a table."""
        if math.isnan(self.low):
            return f"{self.value:{form}}"
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


def paired_ratio(of: Sequence[float], to: Sequence[float]) -> Compared | None:
    """Return mean(of) / mean(to) with its 95 % interval over seeds.

    The interval is the percentile interval of the paired bootstrap, widened for small samples: the
    percentiles are Φ(∓√(n/(n − 1)) t), t the 97.5 % point of Student's t with n − 1 degrees of
    freedom, in the place of 2.5 and 97.5 %.

    Args:
        of: a value >= 0 for each seed.
        to: likewise, of the same seeds in the same order.

    Returns:
        the ratio; None without a seed, for a value that is not finite, or a value of 0 in ``to``.

    Raises:
        ValueError: if there are not as many of one as of the other.
    """
    a, b = _paired(of, to)
    if not _known(a, b) or b.min() <= 0.0:
        return None
    return _resampled(a, b, lambda x, y, axis: x.mean(axis) / y.mean(axis))


def paired_difference(of: Sequence[float], to: Sequence[float]) -> Compared | None:
    """Return mean(of) − mean(to) likewise; None without a seed, or a value that is not finite."""
    a, b = _paired(of, to)
    if not _known(a, b):
        return None
    return _resampled(a, b, lambda x, y, axis: x.mean(axis) - y.mean(axis))


def paired_p_value(of: Sequence[float], to: Sequence[float]) -> float | None:
    """Return how often chance alone makes two means as different as they are.

    The two-sided test by flipped signs: if the methods do not differ, a seed's two values could as
    well be the other way round. All 2^n ways are tried up to 13 seeds, 9,999 random ones beyond;
    with n seeds no value is below 2 / 2^n.

    Args:
        of: a value for each seed.
        to: likewise, of the same seeds in the same order.

    Returns:
        p in (0, 1]; None for fewer than two seeds, or a value that is not finite.
    """
    a, b = _paired(of, to)
    if len(a) < 2 or not _known(a, b):
        return None

    def difference(x: Values, y: Values, axis: int) -> Values:
        # sums that are equal but for the order of their terms must not count as different
        rounded: Values = np.round((x - y).mean(axis), 9)
        return rounded

    tested = permutation_test(
        (a, b),
        difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(tested.pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values corrected for their number, by Holm's step-down rule.

    The k-th smallest of m is multiplied by m − k + 1, is at least as large as the one before it,
    and at most 1. If those at or below 0.05 are believed, the chance that any of them is wrong is
    at most 0.05.

    Args:
        p_values: of one table; None where there is no test, which counts as none.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[place] = largest
    return corrected


def _paired(of: Sequence[float], to: Sequence[float]) -> tuple[Values, Values]:
    if len(of) != len(to):
        raise ValueError(
            f"expected a value of each method for every seed, got {len(of)} and {len(to)}"
        )
    return np.asarray(of, dtype=float), np.asarray(to, dtype=float)


def _known(a: Values, b: Values) -> bool:
    return len(a) > 0 and bool(np.isfinite(a).all() and np.isfinite(b).all())


def _resampled(
    a: Values, b: Values, statistic: Callable[[Values, Values, int], Values]
) -> Compared:
    value, n = float(statistic(a, b, 0)), len(a)
    if n < FEWEST_SEEDS:
        return Compared(value)
    low = norm.cdf(-math.sqrt(n / (n - 1)) * t.ppf(1 - _ALPHA / 2, n - 1))
    interval = bootstrap(
        (a, b),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        confidence_level=1 - 2 * low,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Compared(value, float(interval.low), float(interval.high))
