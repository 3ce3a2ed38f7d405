import itertools
import math
import statistics

import numpy as np
import pytest

from fedcurv.simulations.reports.statistics import (
    holm,
    paired_difference,
    paired_p_value,
    paired_ratio,
)

# rounds of two methods with eight seeds
OF = [9.0, 7.0, 9.0, 6.0, 8.0, 11.0, 7.0, 9.0]
TO = [11.0, 9.0, 12.0, 9.0, 8.0, 13.0, 10.0, 11.0]


def test_the_interval_is_that_of_all_resamples_of_the_seeds():
    """Five seeds have 3125 resamples; each is formed here, by loops."""
    of, to = OF[:5], TO[:5]
    every = []
    for seeds in itertools.product(range(5), repeat=5):
        every.append(sum(of[s] for s in seeds) / sum(to[s] for s in seeds))
    every.sort()
    # t = 2.776 of four degrees of freedom; Φ(−√(5/4)·2.776) = Φ(−3.104) = 0.00095
    at = 0.00095 * len(every)
    compared = paired_ratio(of, to)
    assert compared.value == pytest.approx(39 / 49)
    assert compared.low == pytest.approx(every[int(at)], abs=0.02)
    assert compared.high == pytest.approx(every[-1 - int(at)], abs=0.02)
    assert every[0] <= compared.low < compared.value < compared.high <= every[-1]


def test_pairing_takes_away_what_a_seed_makes_hard_for_both():
    hard = [1.0, 2.0, 5.0, 10.0, 20.0, 3.0]
    same = paired_ratio([0.8 * h for h in hard], hard)
    assert (same.low, same.high) == pytest.approx((0.8, 0.8))
    mixed = paired_ratio([0.8 * h for h in reversed(hard)], hard)
    assert mixed.high - mixed.low > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 8, 12])
def test_nineteen_of_twenty_intervals_hold_the_true_ratio(seeds):
    random = np.random.default_rng(seeds)
    hits, trials = 0, 300
    for _ in range(trials):
        common = random.normal(size=seeds)
        # rounds to a target, about 9 against 12
        of, to = (
            np.round(n * np.exp(0.18 * (common + random.normal(size=seeds)))) for n in (9, 12)
        )
        compared = paired_ratio(of, to)
        hits += compared.low <= 0.75 <= compared.high
    assert hits / trials > 0.91  # 0.95 less three deviations


def test_few_seeds_have_a_ratio_and_no_interval():
    compared = paired_ratio(OF[:3], TO[:3])
    assert compared.text() == "0.78"
    assert math.isnan(compared.low) and math.isnan(compared.high)
    assert paired_ratio(OF, TO).text().startswith("0.80 [0.7")


def test_a_difference_has_an_interval_too():
    compared = paired_difference(OF, TO)
    assert compared.value == pytest.approx(statistics.mean(OF) - statistics.mean(TO))
    assert compared.low < compared.value < compared.high < 0


def test_p_counts_the_flips_of_signs_that_are_as_far_apart():
    observed = abs(sum(OF) - sum(TO))
    flips = list(itertools.product((1, -1), repeat=len(OF)))
    differences = [a - b for a, b in zip(OF, TO, strict=True)]
    far = sum(
        abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= observed
        for signs in flips
    )
    assert paired_p_value(OF, TO) == pytest.approx(far / len(flips))
    # always the same sign: as small as eight seeds can make it
    assert paired_p_value([1.0] * 8, [2.0] * 8) == pytest.approx(2 / 2**8)
    assert paired_p_value([0.1 + 0.2] * 8, [0.3] * 8) == 1.0


def test_p_of_methods_that_do_not_differ_is_uniform():
    random = np.random.default_rng(0)
    p = [paired_p_value(random.normal(size=8), random.normal(size=8)) for _ in range(200)]
    assert sum(one <= 0.05 for one in p) / len(p) == pytest.approx(0.05, abs=0.04)


def test_holms_rule_on_an_example_by_hand():
    # 0.01·4, then 0.02·3, 0.03·2, and 0.04·1, which may not be smaller than the one before
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_never_came_has_no_ratio(bad):
    assert paired_ratio([bad, *OF[1:]], TO) is None
    assert paired_ratio(OF, [bad, *TO[1:]]) is None
    assert paired_difference([bad, *OF[1:]], TO) is None
    assert paired_p_value([bad, *OF[1:]], TO) is None
    assert paired_ratio(OF, [0.0] * 8) is None
    assert paired_ratio([], []) is None
    assert paired_p_value([1.0], [2.0]) is None


def test_other_seeds_are_not_compared():
    with pytest.raises(ValueError, match="every seed, got 8 and 7"):
        paired_ratio(OF, TO[:7])
