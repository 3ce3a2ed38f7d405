import json
import math
import shutil

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fedcurv.simulations.commands.experiment import run_experiment
from fedcurv.simulations.configuration import resolve
from fedcurv.simulations.data.sets import load
from fedcurv.simulations.experiments import runs as experiment_runs
from fedcurv.simulations.experiments.plans import check_budgets, grids
from fedcurv.simulations.experiments.report import summary
from fedcurv.simulations.experiments.runs import Plan, Run, configure
from fedcurv.simulations.experiments.tuning import worth
from tests.simulations.test_run import CONF, configuration, rows_of

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def small(name: str = "fedcurv_digits", **changes):
    """Return an experiment with two methods, two cells, and little to do."""
    few = ["num_clients=3", "num_rounds=2", "data.train_samples=150"]
    config = configuration(f"experiment={name}", *few, name="experiments")
    experiment = {
        "cells": [{"client.epochs": 1}, {"client.epochs": 2, "num_rounds": 3}],
        "seeds": [1, 2],
        "tuning_seeds": [11, 12],
        "target": 0.3,
        "methods": {
            "averaging": {"strategy": "fedavg", "grid": {"client.lr": [0.001, 0.3]}},
            "curvature": {
                "strategy": "fedcurv",
                "set": {"client.penalty_mode": "proximal"},
                "grid": {"strategy.strength": [0, 30]},
            },
        },
        **changes,
    }
    for key, value in experiment.items():
        OmegaConf.update(config, f"experiment.{key}", value, merge=False, force_add=True)
    return config


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """The small experiment's folder and what was shown of it, with its picture."""
    folder = tmp_path_factory.mktemp("experiment")
    return folder, run_experiment(small(), folder, "the command").view


def test_an_experiment_tunes_on_validation_and_reports_on_the_test_set(experiment):
    folder, table = experiment
    assert table.row_count == 4
    results, trials = rows_of(folder / "results.csv"), rows_of(folder / "trials.csv")
    assert len(results) == 2 * 2 * 2
    assert len(trials) == 2 * 2 * 2 * 2
    # what is reported is the setting that was best on the validation split
    for cell in ("epochs 1", "epochs 2, num_rounds 3"):
        own = [t for t in trials if (t["cell"], t["method"]) == (cell, "averaging")]
        best = max(own, key=lambda t: float(t["final"]))
        chosen = {r["settings"] for r in results if (r["cell"], r["method"]) == (cell, "averaging")}
        assert chosen == {best["settings"]} == {"lr 0.3"}
    assert {t["seed"] for t in trials} == {"11", "12"}
    text = (folder / "summary.md").read_text()
    assert "Command: `the command`" in text
    assert "| epochs 1 | averaging | lr 0.3 |" in text
    assert (folder / "accuracy.png").stat().st_size > 10_000


@pytest.mark.usefixtures("quick_pictures")
def test_what_was_run_is_not_run_again(experiment, tmp_path, monkeypatch):
    shutil.copytree(experiment[0], tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "results.csv").read_text()
    runs = sorted((tmp_path / "runs").iterdir())

    def never(*_):
        raise AssertionError("run again")

    monkeypatch.setattr(experiment_runs, "run", never)
    run_experiment(small(), tmp_path, "the command")
    assert (tmp_path / "results.csv").read_text() == before
    # what is damaged is named, and not taken for a result
    name, content = runs[0], runs[0].read_text()
    for damaged in (content[: len(content) // 2], "[]", "{}"):
        name.write_text(damaged)
        with pytest.raises(ValueError, match=f"{name}: expected what came of a training"):
            run_experiment(small(), tmp_path, "the command")
    name.write_text(content)
    # another seed is another run
    with pytest.raises(AssertionError, match="run again"):
        run_experiment(small(seeds=[1, 2, 3]), tmp_path, "the command")
    assert sorted((tmp_path / "runs").iterdir()) == runs
    assert json.loads(runs[0].read_text())["configuration"]


@pytest.mark.usefixtures("quick_pictures")
def test_a_training_that_diverges_is_a_result_and_not_chosen(tmp_path):
    methods = {"a": {"strategy": "fedcurv", "grid": {"client.lr": [1e12, 0.3]}}}
    run_experiment(small(methods=methods, seeds=[1]), tmp_path, "the command")
    trials = rows_of(tmp_path / "trials.csv")
    assert [(t["settings"], t["final"] == "0.0") for t in trials[:4:2]] == [
        ("lr 1e+12", True),
        ("lr 0.3", False),
    ]
    assert "failed" in trials[0]["failure"] or "expected finite" in trials[0]["failure"]
    assert {r["settings"] for r in rows_of(tmp_path / "results.csv")} == {"lr 0.3"}
    # where nothing else is left it is reported all the same
    methods["a"]["grid"] = {"client.lr": [1e12, 1e13]}
    done = run_experiment(small(methods=methods, seeds=[1, 2]), tmp_path / "all", "the command")
    assert len(done.ended_early) == 4 and "with seed 1 ended after" in done.ended_early[0]
    assert "| 0.0 ± 0.0 | 0.0 ± 0.0 | - |" in (tmp_path / "all" / "summary.md").read_text()
    # and it is not run again either
    methods["a"]["grid"] = {"client.lr": [1e12, 0.3]}
    run_experiment(small(methods=methods, seeds=[1]), tmp_path, "the command")
    assert rows_of(tmp_path / "trials.csv") == trials


@pytest.mark.usefixtures("quick_pictures")
def test_averaging_that_diverges_counts_as_nothing(tmp_path):
    """Its loss is NaN, and its accuracy that of a constant guess."""
    methods = {"a": {"strategy": "fedavg", "grid": {"client.lr": [1e30, 0.3]}}}
    cells = [{"client.epochs": 1}]
    done = run_experiment(small(methods=methods, seeds=[1], cells=cells), tmp_path, "the command")
    trials = rows_of(tmp_path / "trials.csv")
    assert [float(t["final"]) > 0 for t in trials] == [False, False, True, True]
    assert trials[0]["failure"] and trials[0]["best"] == "0.0"
    assert done.ended_early == ()


@pytest.mark.usefixtures("quick_pictures")
def test_cells_may_hold_names(tmp_path):
    cells = [{"client.loss": "gce", "num_rounds": 1}, {"client.loss": {"name": "gce", "q": 0.5}}]
    methods = {"a": {"strategy": "fedavg", "grid": {"client.lr": [0.3]}}}
    changes = {"methods": methods, "seeds": [1], "tuning_seeds": [11]}
    run_experiment(small(cells=cells, **changes), tmp_path, "the command")
    text = (tmp_path / "summary.md").read_text()
    assert "| loss gce, num_rounds 1 | a |" in text
    assert "| loss (name gce, q 0.5) | a |" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning_seeds": []}, "experiment.tuning_seeds: expected at least one seed"),
        ({"seeds": ["one"]}, "experiment.seeds: expected at least one seed, integers >= 0"),
        ({"cells": []}, "experiment.cells: expected at least one table"),
        ({"target": 90}, r"experiment.target must be an accuracy in \(0, 1\], got 90"),
        ({"seeds": [1, 2, 1]}, "experiment.seeds: expected each once, got 1 twice"),
        ({"cells": [{"client.epochs": 1}] * 2}, "cells: expected each once, got .* twice"),
        ({"cells": [{"client.loss": "gcee"}]}, "client.loss must be one of .* got 'gcee'"),
        ({"cells": [{"client.epoch": 3}]}, "'client.epoch' of method averaging .* is no key"),
        (
            {"num_clients": 4, "experiment": {}},
            "^experiment.num_clients: num_clients belongs to the top level; "
            "is `# @package _global_` the first line",
        ),
        (
            {"tabel": "last"},
            r"^experiment has no key tabel; its keys are against, cells, .*, table, target",
        ),
        (
            {"methods": {"a": {"strategy": "fedavg", "gird": {"client.lr": [0.1]}}}},
            r"^experiment\.methods\.a has no key gird; its keys are strategy, set, grid$",
        ),
        (
            {"methods": {"a": {"strategy": "fedavg", "grid": {"client.lr": [0.1, 0.3, 0.1]}}}},
            r"methods.a.grid.client.lr: expected each once, got 0.1 twice",
        ),
        (
            {"methods": {"a": {"strategy": "fedavg"}}, "against": "a"},
            "experiment.against: expected other methods to set beside a, got that alone",
        ),
        ({"cells": [{"client.epochs": 0}]}, "epochs must be an integer >= 1, got 0"),
        (
            {"cells": [{"client.device": "cuda:99"}]},
            "client.device=cuda:99: torch has no such device",
        ),
    ],
)
def test_an_experiment_that_cannot_be_is_refused_before_anything_trains(
    changes, message, tmp_path, monkeypatch
):
    def never(*_):
        raise AssertionError("trained")

    monkeypatch.setattr(experiment_runs, "run", never)
    with pytest.raises(ValueError, match=message):
        run_experiment(small(**changes), tmp_path / "out", "the command")
    assert not (tmp_path / "out").exists()


def test_methods_with_other_budgets_are_refused(tmp_path):
    methods = {
        "a": {"strategy": "fedavg", "grid": {"client.lr": [0.1]}},
        "b": {"strategy": "fedcurv", "grid": {"strategy.strength": [1, 10]}},
    }
    with pytest.raises(ValueError, match=r"same number of trials .* got \{'a': 1, 'b': 2\}"):
        run_experiment(small(methods=methods), tmp_path, "the command")


@pytest.mark.usefixtures("quick_pictures")
@pytest.mark.parametrize("word", ["client.epochs=7", "client.lr=0.2"])
def test_a_setting_that_every_run_has_already_is_refused_on_the_command_line(word, tmp_path):
    methods = {"averaging": {"strategy": "fedavg", "grid": {"client.lr": [0.001, 0.3]}}}
    place = "cells" if "epochs" in word else "methods"
    with pytest.raises(ValueError, match=rf"{word} would change nothing: experiment\.{place} set"):
        run_experiment(small(methods=methods), tmp_path, f"fedcurv-experiment {word}")


@pytest.mark.parametrize(
    ("name", "meant"), [("num_round", "num_rounds"), ("metrics", "metric"), ("cleint", "client")]
)
def test_a_misspelt_name_of_the_top_level_is_refused_and_ones_own_is_not(name, meant, tmp_path):
    config = small(only=["curvature"])
    OmegaConf.update(config, "my_width", 16, force_add=True)
    resolve(config)
    OmegaConf.update(config, name, 1, force_add=True)
    with pytest.raises(ValueError, match=rf"unknown name '{name}'; is '{meant}' meant\?"):
        run_experiment(config, tmp_path, "the command")


def test_some_methods_can_be_run_alone(tmp_path):
    table = run_experiment(small(only=["curvature"]), tmp_path, "the command").view
    assert table.row_count == 2
    assert {run["method"] for run in rows_of(tmp_path / "trials.csv")} == {"curvature"}


@pytest.mark.parametrize("only", [[], ["curvature", "curvatur"]])
def test_a_method_that_does_not_exist_is_refused_with_the_names_of_those_that_do(only, tmp_path):
    with pytest.raises(ValueError, match="only must name some of averaging, curvature, got"):
        run_experiment(small(only=only), tmp_path, "the command")
    assert not list(tmp_path.iterdir())


def test_a_strategy_that_does_not_exist_is_named(tmp_path):
    methods = {"a": {"strategy": "fedavgg", "grid": {"client.lr": [0.1]}}}
    with pytest.raises(ValueError, match=r"a\.strategy must be one of fedavg, .*'fedavgg'"):
        run_experiment(small(methods=methods), tmp_path, "the command")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_point_of_every_experiment_is_a_valid_configuration(name):
    config = configuration(f"experiment={name}", name="experiments")
    experiment = OmegaConf.to_container(config.experiment, resolve=True)
    check_budgets(experiment["methods"])
    assert len(experiment["seeds"]) >= 3
    assert not {*experiment["tuning_seeds"]} & {*experiment["seeds"]}
    assert config.data.validation_samples > 0 or not experiment["tuning_seeds"]
    for cell in experiment["cells"]:
        for method, points in grids(experiment["methods"]).items():
            for point in points:
                configured, strategy = configure(config, Plan(cell, method, point, 1, "test"))
                assert configured.data.evaluate_on == "test"
                assert strategy._target_


def test_a_run_that_loses_the_target_again_is_not_chosen():
    def run(*accuracy):
        cost = range(len(accuracy))
        return Run(Plan({}, "a", {}, 1, "validation"), list(accuracy), cost, cost)

    early, lost, late = run(0.1, *[0.9] * 6), run(0.95, *[0.3] * 6), run(0.1, 0.2, *[0.9] * 5)
    assert min([lost, late, early], key=lambda r: worth([r], 0.8)) is early
    assert min([lost, late], key=lambda r: worth([r], 0.8)) is late
    # with several seeds all of them must have it
    assert worth([early, early], 0.8) < worth([late, late], 0.8) < worth([early, lost], 0.8)


def test_the_summary_counts_seeds_that_did_not_reach_a_target():
    def run(method, seed, accuracy):
        plan = Plan({"client.epochs": 5}, method, {"client.lr": 0.1}, seed, "test")
        return Run(plan, accuracy, megabytes=[0.0, 2.0, 4.0], seconds=[0.5, 1.0, 1.5])

    runs = [
        run("a", 1, [0.1, 0.5, 0.8]),
        run("a", 2, [0.1, 0.8, 0.9]),
        run("b", 1, [0.1, 0.6, 0.7]),
    ]
    header, a, b = summary(runs, [0.5, 0.9], 0.8)
    assert header[:3] == ["cell", "method", "tuned"]
    assert header[3:] == ["rounds to 50 %", "rounds to 90 %", "best", "final", "MB to 80 %"]
    assert a[:5] == ["epochs 5", "a", "lr 0.1", "1.0 ± 0.0", "2.0 (1 of 2)"]
    assert a[5:] == ["85.0 ± 7.1", "75.0 ± 14.1", "3.0 ± 1.4"]
    assert b[3:] == ["1.0", "-", "70.0", "65.0", "-"]


# ---- the validation split


def test_validation_samples_are_held_out_of_the_training_samples():
    data = load("digits", "", False)
    training, held_out = data.split(300)
    assert torch.equal(training.test_targets, data.test_targets)
    assert len(training.train_targets) == len(data.train_targets) - 300
    both = torch.cat([training.train_inputs, held_out.train_inputs]).flatten(1)
    all_of_them = data.train_inputs.flatten(1)
    assert np.array_equal(np.sort(both.numpy(), axis=0), np.sort(all_of_them.numpy(), axis=0))
    assert torch.equal(data.split(300)[1].train_inputs, held_out.train_inputs)


@pytest.mark.parametrize("number", [0, 1437, -1, math.nan])
def test_a_split_that_cannot_be(number):
    with pytest.raises(ValueError, match=r"validation_samples must be an integer from 0 to 1436"):
        load("digits", "", False).split(number)
