import csv
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.image
import pytest
import yaml
from flwr.app import Context, RecordDict
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fedcurv.simulations.build import make_settings
from fedcurv.simulations.commands import simulate as run_module
from fedcurv.simulations.commands.simulate import simulate
from fedcurv.simulations.configuration import CONF, resolve
from fedcurv.simulations.federation.client_app import data_root, make_task
from fedcurv.simulations.federation.task_description import describe_task
from tests.federation import message_with
from tests.simulations.test_data import write_mnist

SMALL = ["num_clients=6", "num_rounds=2", "client.epochs=1"]
# what is looked at is not how well a model learns
FEW = "data.train_samples=200"


def configuration(*overrides: str, name: str = "config"):
    with initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def run(folder: Path, *overrides: str):
    return simulate(configuration(*SMALL, *overrides), folder, command="the command")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def accuracies(folder: Path) -> list[tuple[str, str, str, str]]:
    rows = rows_of(folder / "metrics.csv")
    return [(r["strategy"], r["round"], r["accuracy"], r["loss"]) for r in rows]


@pytest.fixture(scope="module")
def main_job(tmp_path_factory):
    """The main job's folder and summaries, with its picture."""
    folder = tmp_path_factory.mktemp("main") / "out"
    return folder, run(folder)


def test_the_main_job_writes_its_report(main_job):
    folder, summaries = main_job
    assert [s.strategy for s in summaries] == ["fedavg", "fedprox", "fedcurv"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "accuracy.pdf",
        "accuracy.png",
        "accuracy.svg",
        "clients.csv",
        "config.yaml",
        "metrics.csv",
        "report.html",
        "summary.csv",
        "summary.md",
        "traffic.csv",
    ]
    metrics = rows_of(folder / "metrics.csv")
    assert len(metrics) == 3 * 3  # strategies x (round 0 and two more)
    assert {r["clients_ok"] for r in metrics if r["round"] != "0"} == {"6"}
    clients = rows_of(folder / "clients.csv")
    assert len(clients) == 3 * 2 * 6
    assert sum(int(r["num_examples"]) for r in clients[:6]) == 1437
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["strategy"]["fedcurv"]["fraction_train"] == 1.0  # resolved
    summary = (folder / "summary.md").read_text()
    assert "| strategy | best | final | to 80 % | to 90 % | to 95 % | MB down | MB up |" in summary
    assert re.search(r"flwr 1\.\d+.*torch 2\.", summary)
    picture = matplotlib.image.imread(folder / "accuracy.png")
    assert picture.shape[0] > 400
    assert picture.std() > 0.05


@pytest.mark.usefixtures("quick_pictures")
def test_strategies_start_from_the_same_model_and_see_the_same_clients(tmp_path):
    run(tmp_path, FEW, "fraction_train=0.5")
    first = {row[0]: row[2:] for row in accuracies(tmp_path) if row[1] == "0"}
    assert len(set(first.values())) == 1
    clients = rows_of(tmp_path / "clients.csv")
    seen = {
        name: [(r["round"], r["client"]) for r in clients if r["strategy"] == name]
        for name in ("fedavg", "fedprox", "fedcurv")
    }
    assert seen["fedavg"] == seen["fedprox"] == seen["fedcurv"]
    assert len(seen["fedavg"]) == 2 * 3


@pytest.mark.usefixtures("quick_pictures")
def test_fedcurv_in_32_bits_costs_three_downloads_and_two_uploads(tmp_path):
    choices = [FEW, "num_rounds=4", "strategy=[fedavg,fedcurv]", "strategy.fedcurv.bits=32"]
    plain, curved = run(tmp_path, *choices)
    assert curved.bytes_up / plain.bytes_up == pytest.approx(2, rel=0.01)
    # the first of four rounds has no statistics
    assert curved.bytes_down / plain.bytes_down == pytest.approx((1 + 3 * 3) / 4, rel=0.01)
    traffic = rows_of(tmp_path / "traffic.csv")
    second = {r["record"]: r for r in traffic if (r["strategy"], r["round"]) == ("fedcurv", "2")}
    model = second["arrays"]["bytes_down"]
    assert second["fedcurv.precision"]["bytes_down"] == model
    assert second["fedcurv.precision"]["bytes_up"] == model
    assert second["fedcurv.weighted-parameters"]["bytes_down"] == model
    assert second["fedcurv.weighted-parameters"]["bytes_up"] == "0"
    for direction in ("down", "up"):
        total = sum(int(r[f"bytes_{direction}"]) for r in traffic if r["strategy"] == "fedcurv")
        assert total == pytest.approx(getattr(curved, f"bytes_{direction}") * 4)


@pytest.mark.usefixtures("quick_pictures")
@pytest.mark.parametrize("runner", ["local", "batched"])
def test_fedcurv_in_4_bits_costs_at_most_a_third_more_than_fedavg(runner, tmp_path):
    choices = [FEW, "num_rounds=4", "strategy=[fedavg,fedcurv]", f"runner={runner}"]
    choices.append("strategy.fedcurv.bits=4")
    plain, curved = run(tmp_path, *choices)
    assert 1.12 < curved.bytes_up / plain.bytes_up < 1.15
    # the first of four rounds has no statistics
    assert 0.25 < (curved.bytes_down / plain.bytes_down - 1) * 4 / 3 < 0.3
    traffic = rows_of(tmp_path / "traffic.csv")
    second = {r["record"]: r for r in traffic if (r["strategy"], r["round"]) == ("fedcurv", "2")}
    assert second["fedcurv.distance"]["bytes_up"] == "0"
    assert "fedcurv.weighted-parameters" not in second
    model = int(second["arrays"]["bytes_down"])
    for record, way in (("precision", "down"), ("precision", "up"), ("distance", "down")):
        assert 0.125 < int(second[f"fedcurv.{record}"][f"bytes_{way}"]) / model < 0.14


@pytest.mark.usefixtures("quick_pictures")
def test_same_seed_same_bits(main_job, tmp_path):
    folder, _ = main_job
    run(tmp_path / "again")
    assert accuracies(folder) == accuracies(tmp_path / "again")
    run(tmp_path / "other", "seed=2", "strategy=fedavg")
    other = accuracies(tmp_path / "other")
    assert not {row[3] for row in accuracies(folder)} & {row[3] for row in other}


@pytest.mark.usefixtures("quick_pictures")
def test_strength_0_is_fedavg_bit_for_bit(tmp_path):
    run(tmp_path, FEW, "strategy=[fedavg,fedcurv]", "strategy.fedcurv.strength=0")
    rows = accuracies(tmp_path)
    plain = [row[1:] for row in rows if row[0] == "fedavg"]
    assert plain == [row[1:] for row in rows if row[0] == "fedcurv"]


@pytest.mark.parametrize(
    "override",
    [
        "strategy=fedadam",
        "strategy=fedcurv_fedadam",
        "strategy=[fedcurv,fedcurv_fedadam] partition=iid",
        "partition=dirichlet client=adam",
        "partition=pathological num_clients=6",
        "model=cnn data.train_samples=60",
        "client.penalty_mode=gradient strategy.fedcurv.strength=0.01",
        "client.fisher_kind=exact",
        "strategy.fedcurv.strength=auto client.fisher_samples=6",
        "client.fisher_kind=sampled partition.size_ratio=4",
        "client.stragglers.share=0.5 client.epochs=2 client.loss=nce+rce",
        "client.loss={name:entropy,strength:3.0}",
        "data.noise.kind=symmetric data.noise.clients=0.5",
    ],
)
@pytest.mark.usefixtures("quick_pictures")
def test_every_choice_of_a_group_works(override, tmp_path):
    summaries = run(tmp_path, FEW, "num_clients=3", "strategy=fedcurv", *override.split())
    assert not any(summary.failure or summary.failures for summary in summaries)
    assert len(rows_of(tmp_path / "metrics.csv")) == 3 * len(summaries)


@pytest.mark.usefixtures("quick_pictures")
def test_torchvision_data_are_found_under_data_root(tmp_path):
    write_mnist(tmp_path / "data")
    run(tmp_path / "out", "data=mnist", f"data.root={tmp_path / 'data'}", "data.download=false")
    assert len(rows_of(tmp_path / "out" / "metrics.csv")) == 9


def test_no_path_travels():
    """A server that could name one could make its clients read and write there."""
    for data in ("mnist", "device", "digits"):
        overrides = [f"data={data}"] + (["data.classes=[a,b]"] if data == "device" else [])
        config = OmegaConf.to_container(configuration(*overrides), resolve=True)
        config["data"] |= {"root": "/somewhere", "test": {"folder": "/somewhere"}}
        assert "/somewhere" not in str(describe_task(config))


def test_data_root_is_the_nodes_own(monkeypatch):
    monkeypatch.delenv("FEDCURV_DATA_ROOT", raising=False)
    assert data_root({}) == "data"
    monkeypatch.setenv("FEDCURV_DATA_ROOT", "/from/environment")
    assert data_root({}) == "/from/environment"
    assert data_root({"data-root": "/from/node"}) == "/from/node"


def test_a_node_without_a_partition_is_told():
    message = message_with(None)
    message.content["config"] = describe_task(resolve(configuration()))
    with pytest.raises(ValueError, match="data=digits is dealt out by partition-id"):
        make_task(message, Context(1, 2, {"client-id": "kitchen"}, RecordDict(), {}))


@pytest.mark.usefixtures("quick_pictures")
def test_the_environment_is_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDCURV_DATA_ROOT", raising=False)
    monkeypatch.setenv("FEDCURV_DATA_DOWNLOAD", "yes")
    run(tmp_path, FEW, "strategy=fedavg")
    assert "FEDCURV_DATA_ROOT" not in os.environ
    assert os.environ["FEDCURV_DATA_DOWNLOAD"] == "yes"


def test_stragglers_train_for_fewer_epochs():
    config = resolve(configuration("client.stragglers={share: 0.3, epochs: 2}", "client.epochs=7"))
    epochs = [make_settings(config, client).epochs for client in range(20)]
    assert sorted(epochs) == [2] * 6 + [7] * 14
    assert make_settings(config).epochs == 7


@pytest.mark.usefixtures("quick_pictures")
def test_resnet18_trains(tmp_path):
    """Two of ten clients a round, with three samples each."""
    small = ["data.train_samples=30", "partition=iid", "num_clients=10", "fraction_train=0.2"]
    (summary,) = run(tmp_path, "model=resnet18", "strategy=fedcurv", *small)
    clients = rows_of(tmp_path / "clients.csv")
    assert [(row["status"], row["num_examples"]) for row in clients] == [("ok", "3")] * 4
    assert float(clients[-1]["penalty"]) > 0 and not summary.failure


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedcurv", "fedadam"])
@pytest.mark.usefixtures("quick_pictures")
@pytest.mark.parametrize("lr", ["1e6", "1e30"])
def test_no_strategy_survives_a_learning_rate_that_is_absurd(strategy, lr, tmp_path):
    """Even where all numbers stay finite."""
    (summary,) = run(tmp_path, FEW, f"strategy={strategy}", f"client.lr={lr}")
    assert summary.failure
    assert summary.final != summary.final and set(summary.rounds_to.values()) == {None}


@pytest.mark.usefixtures("quick_pictures")
def test_a_failure_in_a_later_strategy_keeps_the_report_of_the_earlier(tmp_path, monkeypatch):
    original = run_module.run

    def fails_second(server_app, config, on_reply):
        if (tmp_path / "summary.md").exists():
            raise OSError("No space left on device")
        original(server_app, config, on_reply)

    monkeypatch.setattr(run_module, "run", fails_second)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, FEW)
    assert {row[0] for row in accuracies(tmp_path)} == {"fedavg"}


@pytest.mark.slow
def test_ray_and_local_write_the_same_accuracies(tmp_path):
    """Beside what a cluster that has ended leaves on a machine, which Ray would wait for."""
    choices = ["strategy=[fedavg,fedcurv]", "fraction_train=0.67", FEW, "strategy.fedcurv.bits=4"]
    run(tmp_path / "local", *choices)
    command = [sys.executable, "-m", "fedcurv.simulations", *SMALL, *choices, "runner=ray"]
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray") as short:  # for names of sockets
        left = Path(short, "ray", "ray_current_cluster")
        left.parent.mkdir()
        left.write_text("127.0.0.1:1")
        done = subprocess.run(
            [*command, f"hydra.run.dir={tmp_path / 'ray'}"],
            cwd=tmp_path,
            env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "RAY_TMPDIR": short},
            capture_output=True,
            text=True,
            timeout=500,
        )
    assert done.returncode == 0, done.stderr
    assert accuracies(tmp_path / "local") == accuracies(tmp_path / "ray")
    for column in ("client", "train_loss", "penalty"):
        one, other = (
            [r[column] for r in rows_of(tmp_path / runner / "clients.csv")]
            for runner in ("local", "ray")
        )
        assert one == other
