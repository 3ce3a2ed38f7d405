"""What attacks cost on digits; the tables of docs/robustness.md have more of them."""

import math

import pytest

from fedcurv.strategies import FedCurv
from tests.attacks import IID, STRATEGIES, inflate, outcome, shift, shift_and_inflate

FEW_ROUNDS = [*IID, "num_rounds=6"]


@pytest.mark.parametrize(
    ("name", "liars", "attack"),
    [
        ("FedAvg", 1, shift),
        ("FedAvg", 1, inflate),
        ("FedMedian", 2, shift_and_inflate),
        ("MultiKrum", 1, shift_and_inflate),
    ],
)
def test_liars_cost_a_federation_little(name, liars, attack):
    strategy = FedCurv(STRATEGIES[name](5, liars), strength=30)
    found = outcome(strategy, FEW_ROUNDS, seed=1, num_attackers=liars, attack=attack)
    assert found.accuracy > 93.0


def test_without_bounds_one_liar_ruins_it():
    """Else the test above could pass with attacks that do nothing."""
    strategy = FedCurv(
        STRATEGIES["FedMedian"](5, 1),
        strength=30,
        robust="none",
        max_distance=math.inf,
        max_trace=math.inf,
    )
    found = outcome(strategy, FEW_ROUNDS, seed=1, num_attackers=1, attack=shift_and_inflate)
    assert found.accuracy < 60.0
