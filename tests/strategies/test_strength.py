import math

import pytest
import torch
from flwr.serverapp.strategy import FedAvg

from fedcurv import Curvature, CurvaturePenalty
from fedcurv.strategies import AutoStrength, FedCurv
from fedcurv.strategies.strength import Strength
from tests.federation import Federation, options, same_bits


def sums(*largest: float) -> Curvature:
    precision = {str(i): torch.tensor([0.0, value]) for i, value in enumerate(largest)}
    return Curvature(precision, {name: torch.zeros(2) for name in precision})


@pytest.mark.parametrize(
    ("epochs", "batch_size", "mean_samples", "largest", "expected"),
    [
        (1, 8, 40, 2.0, 10.0),  # 5 steps: 2 / (0.1 * 2)
        (10, 8, 40, 0.5, 20.0),  # 50 steps: 1 / (0.1 * 0.5)
        (10, 8, 32.5, 0.5, 20.0),  # the last batch may be small
        (100, 8, 40, 0.001, 1000.0),  # 500 steps: 0.1 / (0.1 * 0.001)
        (0.5, 1000, 40, 2.0, 10.0),  # less than a step
    ],
)
def test_the_rule(epochs, batch_size, mean_samples, largest, expected):
    rule = AutoStrength(0.1, epochs, batch_size)
    assert rule.found(sums(largest / 7, largest), mean_samples) == pytest.approx(expected)


@pytest.mark.parametrize("epochs", [1, 10])
def test_the_stiffest_parameter_goes_four_fifths_of_the_way_in_either_form(epochs):
    """A step of the pull alone, from 1 towards the optimum 0; 0.4 of lr·λ·max(P) at most."""
    away = {}
    for mode in ("gradient", "proximal"):
        strength = AutoStrength(0.1, epochs, 8, mode).found(sums(1.0, 3.0), 8.0 * 5 * epochs)
        model = torch.nn.ParameterDict({str(i): torch.ones(2) for i in range(2)})
        penalty = CurvaturePenalty(model, sums(1.0, 3.0), strength=strength)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        penalty.attach(optimizer, mode=mode)
        optimizer.zero_grad()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        away[mode] = float(model["1"][1])
    long = epochs == 10  # 500 steps, in each of which a little
    assert away["proximal"] == pytest.approx(1 / 1.2 if long else 0.2)
    assert away["gradient"] == pytest.approx(0.8 if long else 0.2)


def test_statistics_that_are_zero_say_nothing():
    assert AutoStrength(0.1, 5, 8).found(sums(0.0, 0.0), 40) is None


@pytest.mark.parametrize(
    ("lr", "epochs", "batch_size", "message"),
    [
        (0.0, 5, 8, "lr must be > 0"),
        (math.inf, 5, 8, "lr must be > 0 and finite"),
        (math.nan, 5, 8, "lr must be > 0"),
        (0.1, 0, 8, "epochs must be > 0"),
        (0.1, math.nan, 8, "epochs must be > 0"),
        (0.1, 5, 0, "batch_size must be >= 1"),
    ],
)
def test_settings_out_of_range(lr, epochs, batch_size, message):
    with pytest.raises(ValueError, match="mode must be one of gradient, proximal, got 'prox'"):
        AutoStrength(0.1, 5, 8, "prox")
    with pytest.raises(ValueError, match=message):
        AutoStrength(lr, epochs, batch_size)


def test_the_samples_are_those_of_the_clients_whose_statistics_are_in_the_sums(monkeypatch):
    """Client 0 has 12 samples, 1 says that it has 36, 2 is refused, 3 sends no statistics."""
    means = []

    def found(rule, sums, mean_samples, server_round):
        means.append(mean_samples)
        return 1.0

    def counts_more(content):
        content["metrics"]["num-examples"] = 36

    def is_poisoned(content):
        content["metrics"]["num-examples"] = math.nan

    monkeypatch.setattr(AutoStrength, "found", found)
    spoil = {(1, 1): counts_more, (1, 2): is_poisoned}
    strategy = FedCurv(strength=AutoStrength(0.1, 1, 8), **options())
    Federation(spoil=spoil, plain=frozenset({3})).run(strategy, num_rounds=1)
    assert means == [24.0]


def test_every_round_has_the_strength_that_the_last_rounds_statistics_give():
    strategy = FedCurv(strength=AutoStrength(0.1, 1, 4), **options())
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
    strength = Strength(AutoStrength(0.1, 1, 8))
    strength.see(sums(0.0), 40)
    assert strength.value is None
    strength.see(sums(2.0), 40)
    strength.see(sums(0.0), 40)
    assert strength.value == pytest.approx(10.0)


def test_a_resumed_run_goes_on_with_what_was_found(tmp_path):
    whole = FedCurv(strength=AutoStrength(0.1, 1, 4), **options())
    forgetful = frozenset((2, partition) for partition in range(4))  # as new contexts are
    wanted = Federation(mode="proximal", forgetful=forgetful).run(whole, num_rounds=2)
    one = FedCurv(strength=AutoStrength(0.1, 1, 4), **options())
    Federation(mode="proximal").run(one, num_rounds=1, checkpoint=tmp_path)
    two = FedCurv(strength=AutoStrength(0.1, 1, 4), **options())
    federation = Federation(mode="proximal")
    got = federation.run(two, num_rounds=2, checkpoint=tmp_path, resume=True)
    assert {visit.strength for visit in federation.visits} == {one.strength}
    assert two.strength == whole.strength
    assert same_bits(got.arrays, wanted.arrays)
    # a number that is given is the caller's, whatever was found before
    three = FedCurv(strength=0.5, **options())
    Federation(mode="proximal").run(three, num_rounds=3, checkpoint=tmp_path, resume=True)
    assert three.strength == 0.5
