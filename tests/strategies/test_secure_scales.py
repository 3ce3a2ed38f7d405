"""Scales of secure sums: no client is clipped for ever, and what does not fit is told."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fedcurv.strategies.secure.scales import Scales
from fedcurv.strategies.wire.secure.plan import (
    PRECISION_SUMS,
    STATISTICS_KINDS,
    Plan,
    bounds_after,
    wide_after,
)
from fedcurv.strategies.wire.secure.statistics import rounded
from fedcurv.strategies.wire.secure.vector import sums_of, vector_of
from fedcurv.strategies.wire.secure.words import Words

SIZE = 300


def moves(rounds, weights):
    """Return how far each round moves the model, without masks.

    Args:
        rounds: of each round the clients' steps, alike in all numbers.
        weights: of the clients.
    """
    scales, found = Scales(), []
    sent = ArrayRecord({"w": Array(np.zeros(SIZE))})
    for number, steps in enumerate(rounds, 1):
        plan = Plan.from_text(scales.plan(len(weights), "n", sent).to_text())
        vectors = [
            vector_of(plan, sent, content_of(sent["w"].numpy() + step, weight))
            for step, weight in zip(steps, weights, strict=True)
        ]
        form, first = vectors[0]
        total = Words.zeros(len(first.wide), len(first.narrow))
        for _, words in vectors:
            total.add(words)
        sums = sums_of(plan, sent, form, total, len(weights))
        scales.learn(number, form, sums, len(weights))
        found.append(float(sums.arrays["w"].numpy()[0] - sent["w"].numpy()[0]))
        sent = sums.arrays
        restored = Scales()
        restored.load_state_dict(scales.state_dict())
        scales = restored
    return found


def content_of(w, weight):
    arrays, metrics = ArrayRecord({"w": Array(w)}), MetricRecord({"n": weight})
    return RecordDict({"arrays": arrays, "metrics": metrics})


def told(caplog, what):
    return [record.getMessage() for record in caplog.records if what in record.getMessage()]


def test_a_client_much_heavier_than_the_others_is_clipped_in_one_round_and_no_more(caplog):
    weights = [100_000, *[10] * 99]
    steps = [1.0, *[-1.0] * 99]
    found = moves([steps] * 6, weights)
    expected = np.average(steps, weights=weights)
    # the first round's scales hold it; the second's, 32 times the mean, do not
    assert found[0] == pytest.approx(expected, rel=1e-6)
    assert found[1] < 0.5 * expected
    assert found[2:] == pytest.approx(4 * [expected], rel=1e-6)
    (line,) = told(caplog, "clipped")
    assert "round 2: 300 numbers were clipped" in line
    assert "scales reach 512 times as far at least, in words of 64 bits" in line


@pytest.mark.parametrize("step", [1e10, 1e16])
def test_numbers_beyond_a_first_rounds_scales_are_right_from_the_second_on(step, caplog):
    found = moves([[step] * 3] * 4, [10] * 3)
    assert found[0] < step
    assert found[1:] == pytest.approx([step] * 3, rel=1e-6)
    assert len(told(caplog, "round 1: 900 numbers were clipped")) == 1
    assert len(told(caplog, "clipped")) == 1


def test_steps_that_grow_beyond_their_scale_are_told_with_what_is_true(caplog):
    found = moves([[1.0] * 3, [20.0] * 3, [20.0] * 3], [10] * 3)
    assert found[1] < 20
    assert found[2] == pytest.approx(20)
    (line,) = told(caplog, "clipped")
    assert "round 2" in line
    assert "32 times" not in line


def test_numbers_below_a_first_rounds_scales_are_told_once_and_right_from_the_second_on(caplog):
    found = moves([[1e-10] * 6] * 3, [1] * 6)
    assert found == pytest.approx([0, 1e-10, 1e-10], rel=1e-5)
    (line,) = told(caplog, "rounded to nothing")
    assert "round 1: 1 tensors were rounded to nothing or nearly" in line
    assert "w (arrays)" in line


def test_a_tensor_that_does_not_move_is_not_told(caplog):
    assert moves([[0.0] * 6] * 2, [1] * 6) == [0, 0]
    assert not caplog.records


def test_weights_may_be_small_shares():
    weights = [1e-5 * (1 + p / 10) for p in range(6)]
    steps = [1.0 * p for p in range(6)]
    expected = np.average(steps, weights=weights)
    assert moves([steps] * 3, weights) == pytest.approx([expected] * 3, rel=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
def test_a_metric_that_cannot_be_summed_up_is_refused_and_its_value_not_told(value):
    sent = ArrayRecord({"w": Array(np.zeros(SIZE))})
    content = content_of(np.ones(SIZE), 10)
    content["metrics"]["auc"] = [0.5, value]
    with pytest.raises(ValueError, match="expected the metric 'auc' finite, and times") as error:
        vector_of(Plan(3, "n"), sent, content)
    assert str(value) not in str(error.value)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), 1e-13, 2e12, [3.0]])
def test_a_weight_that_cannot_be_summed_up_is_refused_and_its_value_not_told(weight):
    sent = ArrayRecord({"w": Array(np.zeros(SIZE))})
    with pytest.raises(ValueError, match="expected a number > 0 as 'n' in the metrics") as error:
        vector_of(Plan(3, "n"), sent, content_of(np.ones(SIZE), weight))
    assert f"got {weight}" not in str(error.value)


@pytest.mark.parametrize(("precision", "clients"), [(1e6, 3), (1e7, 100), (1e-10, 1000)])
def test_statistics_of_any_size_are_right_after_the_first_rounds(precision, clients):
    place, sizes = (PRECISION_SUMS, "w"), {(kind, "w"): SIZE for kind in STATISTICS_KINDS}
    own = torch.linspace(0, precision, SIZE, dtype=torch.float64)
    bounds, wide, reported = {}, set(), []
    for _ in range(3):
        plan = Plan.from_bounds(clients, "n", bounds, sizes, wide)
        reported.append(float(rounded(plan, {"w": own}, {"w": own}).precision["w"].max()))
        scale = plan.scale(place)
        clipped = [place] if reported[-1] >= scale.limit * scale.unit else []
        wide = wide_after(clipped, wide, clients)
        bounds = bounds_after({place: clients * reported[-1]}, clients, wide)
    assert reported[0] != pytest.approx(precision, rel=0.1)
    assert reported[-1] == pytest.approx(precision, rel=1e-4)
