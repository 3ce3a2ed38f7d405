import csv
import statistics
import sys

import matplotlib.image
import pytest

from fedcurv.simulations.commands import label_noise
from fedcurv.simulations.commands.label_noise import Outcome, compare_losses, label_of, summary
from tests.simulations.test_run import configuration

SMALL = (
    "num_rounds=2",
    "label_noise.seeds=[1,2]",
    "label_noise.losses=[cross_entropy,{name:gce,q:0.5}]",
    "label_noise.noises=[{kind:none,rate:0.0},{kind:symmetric,rate:0.4}]",
)


def run(folder, *overrides: str) -> list[dict[str, str]]:
    config = configuration(*SMALL, *overrides, name="label_noise")
    compare_losses(config, folder, "the command")
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def centralised(tmp_path_factory):
    """A folder with the results, and its picture, of training at one place."""
    folder = tmp_path_factory.mktemp("centralised")
    return folder, run(folder)


@pytest.mark.usefixtures("quick_pictures")
def test_each_loss_meets_each_noise_with_each_seed(tmp_path):
    """Federated over several clients."""
    check_rows(run(tmp_path, "num_clients=3"), tmp_path)


def test_a_single_client_is_centralised_training(centralised):
    folder, rows = centralised
    check_rows(rows, folder)
    assert matplotlib.image.imread(folder / "accuracy.png").std() > 0.02


def check_rows(rows, folder):
    assert [(r["loss"], r["noise"], r["seed"]) for r in rows] == [
        (loss, noise, seed)
        for loss in ("cross_entropy", "gce (q 0.5)")
        for noise in ("none", "symmetric 0.4")
        for seed in ("1", "2")
    ]
    rates = {float(r["rate"]) for r in rows if r["noise"] != "none"}
    assert len(rates) == 2 and all(0.35 < rate < 0.45 for rate in rates)
    assert {float(r["rate"]) for r in rows if r["noise"] == "none"} == {0}
    assert all(0.1 < float(r["last"]) <= float(r["best"]) <= 1 for r in rows)
    assert len({r["last"] for r in rows}) > 4
    text = (folder / "summary.md").read_text()
    assert "| loss | none | symmetric 0.4 |" in text
    assert "Command: `the command`" in text
    assert "noises:" in (folder / "config.yaml").read_text()


@pytest.mark.usefixtures("quick_pictures")
def test_a_training_that_diverges_counts_as_nothing_and_says_so(tmp_path):
    rows = run(tmp_path, "client.lr=1e30", "label_noise.losses=[cross_entropy]")
    assert {(r["last"], r["best"]) for r in rows} == {("0.0", "0.0")}
    assert all("round 1" in r["failure"] for r in rows)


@pytest.mark.usefixtures("quick_pictures")
def test_the_same_seed_gives_the_same_accuracies(centralised, tmp_path):
    assert run(tmp_path) == centralised[1]


@pytest.mark.usefixtures("quick_pictures")
def test_fewer_training_samples_may_be_used(centralised, tmp_path):
    few, (_, all_of_them) = run(tmp_path, "data.train_samples=50"), centralised
    assert float(few[0]["last"]) < float(all_of_them[0]["last"])


def test_the_summary_has_means_and_deviations():
    outcomes = [Outcome("ce", "none", seed, 0.0, last, 0.9) for seed, last in ((1, 0.5), (2, 0.7))]
    deviation = 100 * statistics.stdev([0.5, 0.7])
    assert summary(outcomes) == [
        ["loss", "none"],
        ["ce", f"60.0 ± {deviation:.1f} (90.0 ± 0.0)"],
    ]
    assert summary(outcomes[:1])[1] == ["ce", "50.0 (90.0)"]


def test_labels_name_the_settings():
    assert label_of("gce") == "gce"
    assert label_of({"name": "gce"}) == "gce"
    assert label_of({"name": "sce", "alpha": 6.0, "beta": 0.1}) == "sce (alpha 6, beta 0.1)"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("label_noise.losses=[hinge]", "client.loss must be one of"),
        ("label_noise.noises=[{kind:uniform,rate:0.1}]", "data.noise.kind must be one of"),
        ("label_noise.seeds=[]", "label_noise.seeds: expected at least one"),
        ("label_noise.seeds=[2,2]", "label_noise.seeds: expected each once, got 2 twice"),
        ("label_noise.losses=[gce,gce]", "label_noise.losses: expected each once, got 'gce'"),
        ("label_noise.seeds=[a]", "label_noise.seeds must be integers >= 0"),
        ("label_noise.noises=[{kind:none}]", "expected tables with kind and rate"),
        ("strategy=[fedavg,fedprox]", "strategy: expected one, got fedavg, fedprox"),
        ("data.train_samples=0", "data.train_samples must be an integer from 1 to 1437, got 0"),
        ("data.train_samples=2000", "an integer from 1 to 1437, got 2000"),
    ],
)
def test_a_mistake_ends_with_one_line(override, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fedcurv-label-noise", override])
    with pytest.raises(SystemExit, match=f"^fedcurv-label-noise: .*{message}"):
        label_noise.main()
    assert capsys.readouterr().err == ""
