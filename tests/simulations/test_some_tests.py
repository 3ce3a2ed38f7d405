"""Evaluation on some of the test samples."""

import numpy as np
import pytest
import torch

from fedcurv.simulations.build import load_data
from fedcurv.simulations.configuration import resolve
from fedcurv.simulations.data.samples import DataSet
from fedcurv.simulations.parts.tasks import task_named
from tests.simulations.test_run import FEW, configuration, rows_of, run


@pytest.mark.parametrize("number", [1, 7, 100, 359, 360])
def test_some_tests_have_each_class_by_its_share_and_are_the_same_for_every_seed(number):
    configured = [
        configuration(f"data.test_samples={number}", f"seed={seed}", "data.train_samples=200")
        for seed in (1, 2)
    ]
    one, other = (load_data(resolve(config)) for config in configured)
    whole = load_data(resolve(configuration()))
    assert len(one.test_targets) == len(one.test_inputs) == number
    assert torch.equal(one.test_inputs, other.test_inputs)
    assert torch.equal(one.test_targets, other.test_targets)
    counts = [torch.bincount(d.test_targets, minlength=10).numpy() for d in (one, whole)]
    assert np.abs(counts[0] - counts[1] * number / 360).max() <= 1
    pairs = {(x.numpy().tobytes(), int(y)) for x, y in zip(*whole.test_samples(), strict=True)}
    taken = [(x.numpy().tobytes(), int(y)) for x, y in zip(*one.test_samples(), strict=True)]
    assert pairs.issuperset(taken) and len(set(taken)) >= number - (
        len(whole.test_targets) - len(pairs)
    )


def test_some_tests_are_refused_beyond_all_and_do_not_touch_the_validation_samples():
    with pytest.raises(ValueError, match=r"data\.test_samples must be an integer from 1 to 360"):
        resolve(configuration("data.test_samples=361"))
    device = ["data=device", "data.classes=[a,b]", "fraction_evaluate=1", "data.test_samples=9"]
    with pytest.raises(ValueError, match=r"data\.test_samples: data\.test names the server's own"):
        resolve(configuration(*device))
    held_out = ["data.validation_samples=50", "data.evaluate_on=validation"]
    config = resolve(configuration(*held_out, "data.test_samples=10"))
    assert len(load_data(config).test_targets) == 50


def test_targets_without_classes_are_taken_at_random():
    targets = torch.arange(40.0).reshape(20, 2)
    task = task_named("regression")
    data = DataSet(targets, targets, targets, targets, num_classes=0, task=task)
    taken = data.with_some_tests(5)
    assert torch.equal(taken.test_inputs, taken.test_targets)
    assert len({float(x) for x in taken.test_targets[:, 0]}) == 5


@pytest.mark.usefixtures("quick_pictures")
def test_the_report_says_on_how_many_tests_it_is(tmp_path):
    run(tmp_path / "some", FEW, "strategy=fedavg", "data.test_samples=40")
    run(tmp_path / "all", FEW, "strategy=fedavg")
    said = "Evaluated on 40 of the test samples, the same ones for every seed."
    assert said in (tmp_path / "some" / "summary.md").read_text()
    assert "Evaluated on" not in (tmp_path / "all" / "summary.md").read_text()
    for row in rows_of(tmp_path / "some" / "metrics.csv"):
        assert (40 * float(row["accuracy"])) % 1 == pytest.approx(0, abs=1e-9)
