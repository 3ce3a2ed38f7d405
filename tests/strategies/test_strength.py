import math

import pytest
import torch
from flwr.serverapp.strategy import FedAvg

from fedcurv import Curvature
from fedcurv.strategies import AutoStrength, FedCurv
from tests.federation import Federation, options, same_bits


def sums(*largest: float) -> Curvature:
    precision = {str(i): torch.tensor([0.0, value]) for i, value in enumerate(largest)}
    return Curvature(precision, {name: torch.zeros(2) for name in precision})


@pytest.mark.parametrize(
    ("lr", "steps", "largest", "expected"),
    [
        (0.1, 5, 2.0, 10.0),  # 2 / (0.1 * 2)
        (0.1, 25, 0.5, 20.0),  # 1 / (0.1 * 0.5)
        (0.1, 250, 0.001, 1000.0),  # 0.1 / (0.1 * 0.001)
        (0.5, 12.5, 4.0, 1.0),  # 2 / (0.5 * 4)
    ],
)
def test_the_rule(lr, steps, largest, expected):
    assert AutoStrength(lr, steps).found(sums(largest / 7, largest)) == pytest.approx(expected)


def test_statistics_that_are_zero_say_nothing():
    assert AutoStrength(0.1, 5).found(sums(0.0, 0.0)) is None


@pytest.mark.parametrize(
    ("lr", "steps", "message"),
    [
        (0.0, 5, "lr must be > 0"),
        (math.inf, 5, "lr must be > 0 and finite"),
        (math.nan, 5, "lr must be > 0"),
        (0.1, 0, "local_steps must be >= 1"),
        (0.1, math.nan, "local_steps must be >= 1"),
    ],
)
def test_settings_out_of_range(lr, steps, message):
    with pytest.raises(ValueError, match=message):
        AutoStrength(lr, steps)


def test_it_is_found_in_round_1_and_then_the_run_is_that_of_the_number():
    strategy = FedCurv(strength=AutoStrength(0.1, 3), **options())
    assert strategy.strength is None
    federation = Federation(mode="proximal")
    found = federation.run(strategy, num_rounds=4)
    assert strategy.strength > 0
    first = [v for v in federation.visits if v.server_round == 1]
    assert all(visit.precision is None for visit in first)
    numbered = FedCurv(strength=strategy.strength, **options())
    assert same_bits(Federation(mode="proximal").run(numbered, num_rounds=4).arrays, found.arrays)
    plain = Federation().run(FedAvg(**options()), num_rounds=4)
    assert not same_bits(plain.arrays, found.arrays)


def test_a_resumed_run_goes_on_with_what_was_found(tmp_path):
    one = FedCurv(strength=AutoStrength(0.1, 3), **options())
    Federation(mode="proximal").run(one, num_rounds=1, checkpoint=tmp_path)
    two = FedCurv(strength=AutoStrength(0.1, 3), **options())
    Federation(mode="proximal").run(two, num_rounds=2, checkpoint=tmp_path, resume=True)
    assert two.strength == one.strength
    # a number that is given is the caller's, whatever was found before
    three = FedCurv(strength=0.5, **options())
    Federation(mode="proximal").run(three, num_rounds=3, checkpoint=tmp_path, resume=True)
    assert three.strength == 0.5
