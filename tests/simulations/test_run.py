import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import yaml
from flwr.app import Context, RecordDict
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fedcurv.simulations import run as run_module
from fedcurv.simulations.client import data_root, make_settings, make_task
from fedcurv.simulations.run import resolve, simulate
from fedcurv.simulations.task_description import describe_task
from tests.federation import message_with
from tests.simulations.test_data import write_mnist

CONF = Path(run_module.__file__).parent / "conf"
SMALL = ["num_clients=6", "num_rounds=2", "client.epochs=1"]


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


def test_the_main_job_writes_its_report(tmp_path):
    summaries = run(tmp_path / "out")
    assert [s.strategy for s in summaries] == ["fedavg", "fedprox", "fedcurv"]
    folder = tmp_path / "out"
    assert sorted(p.name for p in folder.iterdir()) == [
        "accuracy.png",
        "clients.csv",
        "config.yaml",
        "metrics.csv",
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


def test_strategies_start_from_the_same_model_and_see_the_same_clients(tmp_path):
    run(tmp_path, "fraction_train=0.5")
    first = {row[0]: row[2:] for row in accuracies(tmp_path) if row[1] == "0"}
    assert len(set(first.values())) == 1
    clients = rows_of(tmp_path / "clients.csv")
    seen = {
        name: [(r["round"], r["client"]) for r in clients if r["strategy"] == name]
        for name in ("fedavg", "fedprox", "fedcurv")
    }
    assert seen["fedavg"] == seen["fedprox"] == seen["fedcurv"]
    assert len(seen["fedavg"]) == 2 * 3


def test_fedcurv_costs_three_downloads_and_two_uploads(tmp_path):
    summaries = run(tmp_path, "num_rounds=4", "strategy=[fedavg,fedcurv]")
    plain, curved = summaries
    assert curved.bytes_up / plain.bytes_up == pytest.approx(2, rel=0.01)
    # the first of four rounds has no statistics
    assert curved.bytes_down / plain.bytes_down == pytest.approx((1 + 3 * 3) / 4, rel=0.01)
    traffic = rows_of(tmp_path / "traffic.csv")
    second = {r["record"]: r for r in traffic if (r["strategy"], r["round"]) == ("fedcurv", "2")}
    model = second["arrays"]["bytes_down"]
    assert second["fedcurv.precision"]["bytes_down"] == model
    assert second["fedcurv.precision"]["bytes_up"] == model
    assert second["fedcurv.information"]["bytes_down"] == model
    assert second["fedcurv.information"]["bytes_up"] == "0"
    for direction in ("down", "up"):
        total = sum(int(r[f"bytes_{direction}"]) for r in traffic if r["strategy"] == "fedcurv")
        assert total == pytest.approx(getattr(curved, f"bytes_{direction}") * 4)


def test_same_seed_same_bits(tmp_path):
    for name in ("a", "b"):
        run(tmp_path / name)
    assert accuracies(tmp_path / "a") == accuracies(tmp_path / "b")
    run(tmp_path / "c", "seed=2")
    assert accuracies(tmp_path / "a") != accuracies(tmp_path / "c")


def test_strength_0_is_fedavg_bit_for_bit(tmp_path):
    run(tmp_path, "strategy=[fedavg,fedcurv]", "strategy.fedcurv.strength=0")
    rows = accuracies(tmp_path)
    plain = [row[1:] for row in rows if row[0] == "fedavg"]
    assert plain == [row[1:] for row in rows if row[0] == "fedcurv"]


@pytest.mark.parametrize(
    "override",
    [
        "strategy=fedadam",
        "strategy=fedcurv_fedadam",
        "strategy=[fedcurv,fedcurv_fedadam]",
        "partition=iid",
        "partition=dirichlet",
        "partition=pathological",
        "model=cnn",
        "client=adam",
        "client.penalty_mode=gradient strategy.fedcurv.strength=0.01",
        "client.fisher_kind=exact",
        "strategy.fedcurv.strength=auto",
        "client.fisher_kind=sampled",
        "client.fisher_share=0.1",
        "partition.size_ratio=4",
        "client.stragglers.share=0.5 client.epochs=2",
        "client.loss=nce+rce",
        "client.loss={name:entropy,strength:3.0}",
        "data.noise.kind=symmetric data.noise.clients=0.5",
    ],
)
def test_every_choice_of_a_group_works(override, tmp_path):
    run(tmp_path, "strategy=fedcurv", *override.split())
    assert rows_of(tmp_path / "metrics.csv")


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


def test_the_environment_is_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDCURV_DATA_ROOT", raising=False)
    run(tmp_path, "strategy=fedavg")
    assert "FEDCURV_DATA_ROOT" not in os.environ


def test_stragglers_train_for_fewer_epochs():
    config = resolve(configuration("client.stragglers={share: 0.3, epochs: 2}", "client.epochs=7"))
    epochs = [make_settings(config, client).epochs for client in range(20)]
    assert sorted(epochs) == [2] * 6 + [7] * 14
    assert make_settings(config).epochs == 7


def test_resnet18_trains(tmp_path):
    run(tmp_path, "model=resnet18", "strategy=fedcurv", "num_clients=40", "fraction_train=0.05")
    assert len(rows_of(tmp_path / "clients.csv")) == 4


# ---- the command line


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedcurv.simulations", *arguments],
        cwd=cwd,
        env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_command_prints_a_table_and_says_where_the_files_are(tmp_path):
    done = command(*SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "strategy" in done.stdout and "to 80 %" in done.stdout and "…" not in done.stdout
    (summary,) = tmp_path.glob("outputs/*/*/summary.md")
    assert str(summary.parent) in done.stdout.replace("\n", "")
    assert "Command: `fedcurv-simulate num_clients=6 num_rounds=2 client.epochs=1`" in (
        summary.read_text()
    )


def test_sweeps(tmp_path):
    done = command("--multirun", *SMALL, "strategy=fedavg,fedcurv", "seed=1,2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tables = sorted(tmp_path.glob("multirun/*/*/*/metrics.csv"))
    assert len(tables) == 4
    assert len({t.read_text() for t in tables}) == 4


BAD = {
    "strategy=avg": "Could not find 'strategy/avg' Available options in 'strategy': fedadam fedavg",
    "strategy.fedcurv.strenght=1": "'strategy.fedcurv.strenght'; known here: _target_, strength",
    "data=imagenet": "Available options in 'data': cifar10 device digits fashion_mnist",
    "rounds=3": "unknown name 'rounds'; known here: .*num_rounds",
    "client.epoch=3": "unknown name 'client.epoch'; known here: epochs, batch_size",
    "client.loss=hinge": "client.loss must be one of cross_entropy, label_smoothing",
    "client.loss={name:gce,r:1}": "client.loss: 'gce' has no such setting",
    "data.noise.kind=uniform": "data.noise.kind must be one of none, symmetric",
    "data.noise.clients=[20]": "a share in .* or a list of numbers below 20",
    "model.name=vgg": "model.name must be one of mlp, cnn, resnet18, got 'vgg'",
    "partition.name=x": "partition.name must be one of iid, shards, dirichlet",
    "runner.name=spark": "runner.name must be one of local, batched, ray, got 'spark'",
    "strategy=[]": "strategy: expected at least one",
    "strategy.fedcurv.strength=-1": "strategy.fedcurv: strength must be finite and >= 0, got -1",
    "strategy.fedcurv.strength=nan": "strength must be finite and >= 0, got nan",
    "fraction_train=0.01": "fraction_train=0.01 of 20 clients selects nobody",
    "fraction_train=2": "selects nobody or more than all",
    "num_clients=0": "num_clients must be an integer >= 1, got 0",
    "num_rounds=many": "num_rounds must be an integer >= 1, got 'many'",
    "client.lr=-1": "lr must be > 0 and finite, got -1",
    "client.lr=fast": "lr must be > 0 and finite, got 'fast'",
    "model.hidden=wide": "model: an option is of a wrong type",
    "partition=dirichlet partition.alpha=much": "partition: an option is of a wrong type",
    "partition.size_ratio=0.5": "size_ratio must be >= 1 and finite, got 0.5",
    "partition.size_ratio=5000": "expected at least 1 samples in the smallest shard, got 0",
    "client.stragglers.share=2": r"client.stragglers.share must be in \[0, 1\], got 2",
    "client.stragglers.epochs=0": "epochs must be an integer >= 1, got 0",
    "partition.shards_per_client=100": "expected at least 2000 samples, got 1437",
    "data=mnist data.download=false": "data=mnist: not found in .*data/MNIST/raw",
    "data=device data.classes=[a,b] fraction_evaluate=1": "data=device needs real nodes",
    "data=device data.classes=[a,b]": "expected the server's test set in data.test, or f",
    "data=device fraction_evaluate=1": "data.classes must be given",
    "data.evaluate_on=train": "data.evaluate_on must be test or validation, got 'train'",
    "data.evaluate_on=validation": "data.evaluate_on=validation needs data.validation_samples > 0",
    "data.validation_samples=2000": "data.validation_samples must be an integer from 0 to 1436",
    "fraction_evaluate=1": "fraction_evaluate=1: the clients of a simulation have no test data",
    "partition=flwr_datasets": "needs the package flwr-datasets",
    "hydra.run.dir=/dev/null/out": "Not a directory: '/dev/null/out'",
}


@pytest.mark.parametrize("overrides", BAD)
def test_a_mistake_ends_with_one_line_and_leaves_nothing(overrides, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fedcurv-simulate", *overrides.split()])
    with pytest.raises(SystemExit) as ended:
        run_module.main()
    assert re.search(f"^fedcurv-simulate: .*{BAD[overrides]}", str(ended.value.code))
    assert "\n" not in str(ended.value.code)
    assert capsys.readouterr() == ("", "")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_mistake_ends_the_process_with_an_exit_code(tmp_path):
    done = command("model.name=vgg", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("fedcurv-simulate: model.name must be one of")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_failure_in_a_later_strategy_keeps_the_report_of_the_earlier(tmp_path, monkeypatch):
    original = run_module.run

    def fails_second(server_app, config):
        if (tmp_path / "summary.md").exists():
            raise OSError("No space left on device")
        original(server_app, config)

    monkeypatch.setattr(run_module, "run", fails_second)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path)
    assert {row[0] for row in accuracies(tmp_path)} == {"fedavg"}


@pytest.mark.slow
def test_ray_and_local_write_the_same_accuracies(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    for runner in ("local", "ray"):
        done = command(
            *SMALL,
            f"runner={runner}",
            "strategy=[fedavg,fedcurv]",
            "fraction_train=0.67",
            f"hydra.run.dir={tmp_path / runner}",
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
    assert accuracies(tmp_path / "local") == accuracies(tmp_path / "ray")
    for column in ("client", "train_loss", "penalty"):
        one, other = (
            [r[column] for r in rows_of(tmp_path / runner / "clients.csv")]
            for runner in ("local", "ray")
        )
        assert one == other
