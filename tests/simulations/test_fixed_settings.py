"""Experiments whose methods are not tuned: losses on noisy labels, and a user's own."""

import re
from pathlib import Path

import matplotlib.image
import pytest

from fedcurv.simulations.commands import experiment as command_module
from fedcurv.simulations.commands.experiment import run_experiment
from fedcurv.simulations.experiments.report import last_scores
from fedcurv.simulations.experiments.runs import Plan, Run
from fedcurv.simulations.reports.words import in_words
from tests.simulations.test_run import configuration, rows_of

DOCS = Path(__file__).parents[2] / "docs"
SMALL = (
    "experiment=label_noise",
    "num_rounds=2",
    "experiment.seeds=[1,2]",
    "experiment.only=[cross_entropy,'label_smoothing (strength 10)']",
    "experiment.cells=[{data.noise.kind: none},{data.noise.kind: symmetric, data.noise.rate: 0.4}]",
)


def run(folder, *overrides):
    run_experiment(configuration(*SMALL, *overrides, name="experiments"), folder, "the command")
    return rows_of(folder / "results.csv")


def test_each_loss_meets_each_noise_with_each_seed_and_nothing_is_tuned(tmp_path):
    """Federated over several clients."""
    rows = run(tmp_path, "num_clients=3", "data.train_samples=300")
    assert [(r["method"], r["cell"], r["seed"]) for r in rows] == [
        (loss, noise, seed)
        for noise in ("kind none", "kind symmetric, rate 0.4")
        for loss in ("cross_entropy", "label_smoothing (strength 10)")
        for seed in ("1", "2")
    ]
    rates = {float(r["label_noise"]) for r in rows if r["cell"] != "kind none"}
    assert len(rates) == 2 and all(0.3 < rate < 0.5 for rate in rates)
    assert {float(r["label_noise"]) for r in rows if r["cell"] == "kind none"} == {0}
    assert all(0.1 < float(r["last"]) <= float(r["best"]) <= 1 for r in rows)
    assert not (tmp_path / "trials.csv").exists()
    text = (tmp_path / "summary.md").read_text()
    assert "| method | kind none | kind symmetric, rate 0.4 |" in text
    assert "Command: `the command`" in text
    assert matplotlib.image.imread(tmp_path / "accuracy.png").std() > 0.02


def test_a_published_cell_comes_out_as_it_was_published(tmp_path):
    """Of digits, linear; another processor rounds otherwise."""
    linear = ("experiment=label_noise_grid", "model.hidden=[]", "experiment.seeds=[1]")
    noise = "experiment.cells=[{data.noise.kind: symmetric, data.noise.rate: 0.4}]"
    config = configuration(*linear, noise, "experiment.only=[gce]", name="experiments")
    run_experiment(config, tmp_path, "the command")
    (row,) = rows_of(tmp_path / "results.csv")
    published = rows_of(DOCS / "results" / "label_noise" / "digits_linear" / "results.csv")
    (wanted,) = [
        (float(r["last"]), float(r["best"]))
        for r in published
        if (r["loss"], r["noise"], r["seed"]) == ("gce", "symmetric 0.4", "1")
    ]
    assert (float(row["last"]), float(row["best"])) == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("name", ["label_noise", "label_noise_grid"])
def test_methods_are_called_as_their_losses_are(name):
    for method, options in configuration(
        f"experiment={name}", name="experiments"
    ).experiment.methods.items():
        loss = options.set["client.loss"]
        if not isinstance(loss, str):
            settings = in_words({key: value for key, value in loss.items() if key != "name"})
            loss = f"{loss.name} ({settings})"
        assert method == loss


def test_the_table_has_last_and_best_accuracies():
    runs = [
        Run(Plan({"data.noise.rate": rate}, method, {}, seed, "test"), [0.1, 0.9, last], 1.0, 1.0)
        for method, rate, seed, last in [("ce", 0, 1, 0.5), ("ce", 0, 2, 0.7), ("gce", 0.2, 1, 0.8)]
    ]
    assert last_scores(runs) == [
        ["method", "rate 0", "rate 0.2"],
        ["ce", "60.0 ± 14.1 (90.0 ± 0.0)", ""],
        ["gce", "", "80.0 (90.0)"],
    ]
    failed = Run(runs[0].plan, [0.1], 1.0, 1.0, "it has diverged")
    assert last_scores([failed])[1] == ["ce", "0.0 (0.0)"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experiment.table=wide", "experiment.table must be rounds or last, got 'wide'"),
        ("experiment.tuning_seeds=[a]", "experiment.tuning_seeds: expected at least one seed"),
        ("experiment.cells=[{data.noise.kind: uniform}]", "data.noise.kind must be one of"),
        (
            "experiment.methods.cross_entropy.grid=3",
            "expected strategy, and grid where it is tuned",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_trains(override, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", "+" * ("grid" in override) + override)
    assert not (tmp_path / "out").exists()


def test_the_pages_own_experiment_runs_from_a_folder_of_the_users(command, tmp_path):
    (page,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "own_things.md").read_text(), re.DOTALL)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "widths.yaml").write_text(page)
    arguments = ("--config-dir", "mine", "experiment=widths", "data.train_samples=120")
    done = command("fedcurv-experiment", command_module.main, *arguments, "hydra.run.dir=out")
    assert done.code == 0, done
    rows = rows_of(tmp_path / "out" / "results.csv")
    assert [row["method"] for row in rows] == ["averaging"] * 2 + ["curvature"] * 2 + [
        "averaging"
    ] * 2 + ["curvature"] * 2
    assert "hidden [16]" in (tmp_path / "out" / "summary.md").read_text()
