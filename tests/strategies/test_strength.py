import math

import pytest
import torch
from flwr.serverapp.strategy import FedAvg

from fedcurv import Curvature
from fedcurv.strategies import AutoStrength, FedCurv
from fedcurv.strategies.strength import Strength
from tests.federation import Federation, options, same_bits


def sums(*largest: float) -> Curvature:
    precision = {str(i): torch.tensor([0.0, value]) for i, value in enumerate(largest)}
    return Curvature(precision, {name: torch.zeros(2) for name in precision})


@pytest.mark.parametrize(
    ("lr", "steps", "largest", "expected"),
    [
        (0.1, 5, 2.0, 10.0),  # 2 / (0.1 * 2)
        (0.1, 50, 0.5, 20.0),  # 1 / (0.1 * 0.5)
        (0.1, 500, 0.001, 1000.0),  # 0.1 / (0.1 * 0.001)
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


def test_every_round_has_the_strength_that_the_last_rounds_statistics_give():
    strategy = FedCurv(strength=AutoStrength(0.1, 3), **options())
    assert strategy.strength is None
    federation = Federation(mode="proximal")
    found = federation.run(strategy, num_rounds=4)
    assert strategy.strength > 0
    assert all(v.precision is None for v in federation.visits if v.server_round == 1)
    strengths: dict[int, set[float | None]] = {}
    for visit in federation.visits:
        strengths.setdefault(visit.server_round, set()).add(visit.strength)
    assert all(len(of_round) == 1 for of_round in strengths.values())
    sent = {r: of_round.pop() for r, of_round in strengths.items() if r > 1}
    assert len(set(sent.values())) == len(sent) == 3
    plain = Federation().run(FedAvg(**options()), num_rounds=4)
    assert not same_bits(plain.arrays, found.arrays)


def test_statistics_that_are_zero_leave_the_strength_as_it_is():
    strength = Strength(AutoStrength(0.1, 5))
    strength.see(sums(0.0))
    assert strength.value is None
    strength.see(sums(2.0))
    strength.see(sums(0.0))
    assert strength.value == pytest.approx(10.0)


def test_a_resumed_run_goes_on_with_what_was_found(tmp_path):
    whole = FedCurv(strength=AutoStrength(0.1, 3), **options())
    forgetful = frozenset((2, partition) for partition in range(4))  # as new contexts are
    wanted = Federation(mode="proximal", forgetful=forgetful).run(whole, num_rounds=2)
    one = FedCurv(strength=AutoStrength(0.1, 3), **options())
    Federation(mode="proximal").run(one, num_rounds=1, checkpoint=tmp_path)
    two = FedCurv(strength=AutoStrength(0.1, 3), **options())
    federation = Federation(mode="proximal")
    got = federation.run(two, num_rounds=2, checkpoint=tmp_path, resume=True)
    assert {visit.strength for visit in federation.visits} == {one.strength}
    assert two.strength == whole.strength
    assert same_bits(got.arrays, wanted.arrays)
    # a number that is given is the caller's, whatever was found before
    three = FedCurv(strength=0.5, **options())
    Federation(mode="proximal").run(three, num_rounds=3, checkpoint=tmp_path, resume=True)
    assert three.strength == 0.5
