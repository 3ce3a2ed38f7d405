"""What would do nothing, or is likely a mistake, is told once."""

import numpy as np
import pytest
import torch

from fedcurv import Curvature
from fedcurv.simulations.commands.simulate import simulate
from fedcurv.simulations.configuration import resolve
from fedcurv.simulations.console import telling
from fedcurv.simulations.data.own import data_set_of
from fedcurv.simulations.parts.strategies import make_strategy
from tests.simulations.test_own import arrays
from tests.simulations.test_run import configuration

OWN = ["data=function", "data.function=tests.own_tables:rows", "num_clients=3", "num_rounds=1"]


@pytest.fixture(autouse=True)
def told(monkeypatch, caplog):
    """Return the lines that have been told, of which none was before."""
    monkeypatch.setattr(telling, "_told", set())
    return lambda: [r.getMessage() for r in caplog.records if r.name == telling.__name__]


def test_a_line_is_told_once(told):
    for _ in range(2):
        telling.tell_once("a")
        telling.tell_once("b %s")
    assert told() == ["a", "b %s"]


def test_what_all_clients_of_a_run_warn_of_is_one_line_of_the_log(tmp_path, caplog):
    more = ["model=function", "model.function=tests.own_tables:probabilities", "strategy=[fedcurv]"]
    simulate(configuration(*OWN, *more, "num_rounds=2"), tmp_path / "out", command="the command")
    lines = [r.getMessage() for r in caplog.records if "softmax makes of them" in r.getMessage()]
    assert len(lines) == 1
    # and a line of the next run is written again
    simulate(configuration(*OWN, *more), tmp_path / "next", command="the command")
    assert sum("softmax makes of them" in r.getMessage() for r in caplog.records) == 2


def test_a_name_in_brackets_is_shown_as_it_is(capsys):
    from fedcurv.simulations.console.progress import console

    with console.capture() as shown:
        console.print("job #2 (seed=2 strategy=[fedavg] client.lr=0.1) in runs/[old]")
    assert "strategy=[fedavg]" in shown.get() and "runs/[old]" in shown.get()


def test_why_clients_train_one_by_one_is_told_once_a_command(told, tmp_path):
    more = ["runner=batched", "client.loss=gce", "strategy=[fedavg,fedprox]"]
    simulate(configuration(*OWN, *more), tmp_path / "out", command="the command")
    assert [line for line in told() if "one by one" in line] == [
        "runner=batched: clients train one by one, since client.loss is not cross-entropy"
    ]


def test_arrays_that_nothing_reads_are_told_once(told):
    for _ in range(2):
        data_set_of(arrays(writers=np.zeros(4), test_groups=np.zeros(2)), "here")
    (line,) = told()
    assert line.startswith("here: writers, test_groups: not used; what is known: train_inputs,")


@pytest.mark.parametrize(
    ("lowest", "more", "is_told"),
    [
        (0, {}, False),
        (1, {}, True),
        (1, {"classes": ["none", "a", "b", "c"]}, False),
        (1, {"train_inputs": np.zeros((4, 3), int), "test_inputs": np.zeros((2, 3), int)}, False),
    ],
)
def test_classes_that_are_numbered_from_one_on_are_told(lowest, more, is_told, told):
    targets = {"train_targets": np.array([0, 1, 2, 1]), "test_targets": np.array([0, 1])}
    data_set_of(arrays(**{k: v + lowest for k, v in targets.items()}, **more), "here")
    assert [line[:41] for line in told()] == is_told * ["here: classes are numbered from 1 on, so "]


def test_a_class_that_only_the_other_part_has_is_not_missed(told):
    data_set_of(arrays(train_targets=np.array([1, 2, 1, 2])), "here")
    assert not [line for line in told() if "numbered from" in line]


@pytest.mark.parametrize("names", [{}, {"classes": ["a", "b", "c"]}])
def test_a_class_that_only_the_test_set_has_is_told(names, told):
    data_set_of(arrays(train_targets=np.array([0, 2, 0, 2]), **names), "here")
    assert told() == [
        "here: no training sample has the class 1 of the test set; are both numbered alike?"
    ]
    data_set_of(arrays(train_targets=np.array([0, 1, 2, 1]), **names), "there")
    assert len(told()) == 1


@pytest.mark.parametrize(
    ("targets", "is_told"), [("[0.5]", True), ("[]", False), ("[0.8,0.9,0.95]", False)]
)
def test_targets_of_an_accuracy_are_told_beside_another_metric(targets, is_told, told):
    metric = "metric.function=tests.own_tables:first_right"
    for _ in range(2):
        resolve(configuration(*OWN, metric, f"target_accuracies={targets}"))
    says = "target_accuracies=[0.5] is not used, as first_right is no accuracy; its targets are"
    assert told() == is_told * [f"{says} metric.targets"]


@pytest.mark.parametrize(
    ("optimizer", "mode", "limit", "is_told"),
    [
        ("sgd", "proximal", 2.0, False),
        ("sgd", "gradient", 0.4, False),
        ("adam", "gradient", 0.4, True),
        ("adam", "proximal", 2.0, False),
    ],
)
def test_a_strength_to_be_found_follows_the_form_of_the_pull(optimizer, mode, limit, is_told, told):
    one = ["strategy=fedcurv", "strategy.fedcurv.strength=auto", "client.epochs=1"]
    how = [f"client.optimizer={optimizer}", f"client.penalty_mode={mode}", "client.lr=0.1"]
    config = configuration(*one, *how)
    strategy = make_strategy(config.strategy.fedcurv, resolve(config))
    strategy._strength.see(Curvature({"w": torch.ones(2)}, {"w": torch.zeros(2)}), 16.0)
    assert strategy.strength == pytest.approx(limit / 0.1)
    assert [f"client.optimizer={optimizer} has no known" in line for line in told()] == [
        True
    ] * is_told


def test_a_local_term_that_no_strategy_names_is_told(tmp_path, told):
    both = "strategy=[fedavg,fedprox]"
    term = "+client.terms.mine=tests.own_tables:no_term"
    simulate(configuration(*OWN, both, term), tmp_path / "out", command="it")
    (line,) = told()
    assert line.startswith("client.terms.mine was not used, as no strategy's messages name it; a")


def test_a_local_term_that_one_of_the_strategies_names_is_not_told(tmp_path, told):
    term = "+client.terms.mine=tests.own_tables:no_term"
    own = "+strategy.own._target_=tests.own_tables.NamesATerm"
    simulate(configuration(*OWN, "strategy=[fedavg]", own, term), tmp_path / "out", command="it")
    assert not told()
