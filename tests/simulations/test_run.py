import csv
import os
import re
import signal
import subprocess
import sys
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
from fedcurv.simulations.console.interruption import Interrupted
from fedcurv.simulations.federation.client_app import data_root, make_task
from fedcurv.simulations.federation.task_description import describe_task
from tests.federation import message_with
from tests.simulations.test_data import write_mnist

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
    assert "fedcurv: round 2/2:" in done.stdout and "left" in done.stdout
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
    rows = [row for table in tables for row in rows_of(table)]
    assert {row["seed"] for row in rows} == {"1", "2"}
    assert {row["client.epochs"] for row in rows} == {"1"}


def test_a_training_that_diverges_ends_there_and_the_others_go_on(tmp_path):
    done = command(
        *SMALL,
        "num_rounds=3",
        "strategy=[fedavg,fedcurv,fedadam]",
        "strategy.fedadam.eta=1e30",
        "strategy.fedcurv.strength=0",
        f"hydra.run.dir={tmp_path / 'out'}",
        cwd=tmp_path,
    )
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert re.search("fedadam ended after . of 3 rounds: .*diverged", line)
    rows = {row["strategy"]: row for row in rows_of(tmp_path / "out" / "summary.csv")}
    assert rows["fedavg"]["failure"] == rows["fedcurv"]["failure"] == ""
    assert rows["fedadam"]["final"] == rows["fedadam"]["best"] == ""
    assert "diverged" in rows["fedadam"]["failure"]
    assert "fedadam ended after" in (tmp_path / "out" / "summary.md").read_text()
    assert rows["fedcurv"]["rounds"] == "3"


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedcurv", "fedadam"])
def test_no_strategy_survives_a_learning_rate_that_is_absurd(strategy, tmp_path):
    (summary,) = run(tmp_path, f"strategy={strategy}", "client.lr=1e30")
    assert summary.failure
    assert summary.final != summary.final and set(summary.rounds_to.values()) == {None}


@pytest.mark.parametrize("runner", ["local", "batched"])
@pytest.mark.parametrize("every", [1, 2])
def test_a_run_that_goes_on_writes_what_an_uninterrupted_one_does(
    runner, every, tmp_path, monkeypatch
):
    choices = ["num_rounds=5", "strategy=[fedavg,fedcurv,fedadam]", f"runner={runner}"]
    choices.append(f"checkpoint_every={every}")
    run(tmp_path / "whole", *choices)
    show = run_module._show

    def stop(steps, record):
        if run_module_stops and (len(seen), record.server_round) != (0, 0):
            seen.append(record.server_round)
            if len(seen) == run_module_stops[0]:
                run_module_stops.pop(0)
                raise Interrupted(signal.SIGINT)
        show(steps, record)

    monkeypatch.setattr(run_module, "_show", stop)
    # in fedavg's round 2, in fedcurv's rounds 1 and 4
    run_module_stops, seen = [2, 8, 13], [0]
    part, resume = tmp_path / "part", False
    for _ in range(3):
        with pytest.raises(Interrupted) as interrupted:
            simulate(configuration(*SMALL, *choices), part, command="the command", resume=resume)
        assert f"go on with: fedcurv-simulate resume={part}" in interrupted.value.in_words()
        assert rows_of(part / "metrics.csv") and (part / "summary.md").exists()
        resume = True
    simulate(configuration(*SMALL, *choices), part, command="the command", resume=True)
    for name in ("metrics.csv", "clients.csv", "traffic.csv"):
        whole, again = (rows_of(folder / name) for folder in (tmp_path / "whole", part))
        assert [without_times(row) for row in again] == [without_times(row) for row in whole]
    assert sorted(p.name for p in part.iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


def without_times(row: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in row.items() if "seconds" not in key}


@pytest.mark.parametrize("runner", ["local", "batched"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_the_printed_line_goes_on(runner, number, tmp_path):
    folder = tmp_path / "out"
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "fedcurv.simulations", "num_clients=6", "num_rounds=3"),
            *(
                "strategy=fedcurv",
                "client.epochs=30",
                f"runner={runner}",
                f"hydra.run.dir={folder}",
            ),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            if "fedcurv: round 1/3:" in line and "%" in line:  # not one that says "so far"
                break
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    (line,) = errors.strip().splitlines()
    assert line.endswith(f"go on with: fedcurv-simulate resume={folder}")
    assert [row["round"] for row in rows_of(folder / "metrics.csv")][:2] == ["0", "1"]
    done = command(f"resume={folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "round 1/3" not in done.stdout and "round 3/3" in done.stdout
    assert [row["round"] for row in rows_of(folder / "metrics.csv")] == ["0", "1", "2", "3"]
    again = command(f"resume={folder}", cwd=tmp_path)
    assert again.returncode == 0 and "has come to its end already" in again.stdout


def test_an_unfinished_run_is_not_begun_anew_in_its_folder(tmp_path):
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(ValueError, match="holds an unfinished simulation; go on with resume="):
        run(tmp_path)


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
    "strategy.fedcurv.strength=-1": "fedcurv: strength must be finite and >= 0, or auto, got -1",
    "strategy.fedcurv.strength=nan": "strength must be finite and >= 0, or auto, got nan",
    "fraction_train=0.01": "fraction_train=0.01 of 20 clients selects nobody",
    "fraction_train=2": "selects nobody or more than all",
    "num_clients=0": "num_clients must be an integer >= 1, got 0",
    "num_rounds=many": "num_rounds must be an integer >= 1, got 'many'",
    "client.device=cuda:99": "client.device=cuda:99 cannot be used on this machine .*auto or cpu",
    "strategy.fedcurv.strength=automatic": "finite and >= 0, or auto, got 'automatic'",
    "strategy.fedprox.proximal_mu=nan": "strategy.fedprox: proximal_mu must be >= 0 and finite",
    "strategy.fedavg.min_available_nodes=21": "min_available_nodes must be <= num_clients=20",
    "strategy=fedadam strategy.fedadam.eta=fast": "fedadam: eta must be > 0 and finite, got 'fast'",
    "model.hidden=200": r"model.hidden must be a list of layer sizes, .*\[200, 200\], got 200",
    "model.hidden=[0]": "model.hidden must be a list of layer sizes",
    "model=cnn model.padding=-1": "model.padding must be an integer >= 0, got -1",
    "model=resnet18 model.groups=7": "divides 64 channels, got 7",
    "client=5": "Config group override must be a string or a list. Got int",
    "data.noise=3": "data.noise must be a table of keys and values, got 3",
    "client.stragglers=1": "client.stragglers must be a table",
    "seed=true": "seed must be an integer >= 0 .*, got True",
    "seed=1.5": "seed must be an integer >= 0 .*, got 1.5",
    "num_clients=true": "num_clients must be an integer >= 1, got True",
    "num_clients=2000": "expected at least 4000 samples, got 1437; change num_clients",
    "partition=iid num_clients=2000": "expected at least 2000 samples, got 1437",
    "round_timeout=-1": "round_timeout must be a number of seconds > 0, or null",
    "round_timeout=nan": "round_timeout must be a number of seconds > 0, or null",
    "target_accuracies=0.9": r"must be a list of accuracies in \[0, 1\], got 0.9",
    "target_accuracies=[90]": r"target_accuracies must be a list of accuracies in \[0, 1\]",
    "verbose=loud": "verbose must be true or false, got 'loud'",
    "data.download=maybe": "data.download must be true or false",
    "checkpoint_every=0": "checkpoint_every must be an integer >= 1, got 0",
    "data.noise.rate=nan": r"data.noise.rate must be in \[0, 1\], got nan",
    "resume=nowhere": "resume=nowhere: expected the folder of a simulation, with config.yaml",
    "resume=nowhere seed=2": "takes the configuration in that folder; leave out seed",
    "runner=ray runner.client_resources.num_gpus=99": "num_gpus=99: this machine has 0 GPUs",
    "runner=ray runner.client_resources.num_cpus=9999": "num_cpus=9999: this machine has",
    "runner=ray +runner.init_args.adress=x": "runner.init_args: ray.init has no adress",
    "client.lr=-1": "lr must be > 0 and finite, got -1",
    "client.lr=fast": "lr must be > 0 and finite, got 'fast'",
    "model.hidden=wide": "model.hidden must be a list of layer sizes",
    "partition=dirichlet partition.alpha=much": "alpha must be > 0 and finite, got 'much'",
    "partition.size_ratio=0.5": "size_ratio must be >= 1 and finite, got 0.5",
    "partition.size_ratio=5000": "expected at least 1 samples in the smallest shard, got 0",
    "client.stragglers.share=2": r"client.stragglers.share must be in \[0, 1\], got 2",
    "client.stragglers.epochs=0": "client.stragglers.epochs must be an integer >= 1, got 0",
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
    "hydra.run.dir=/dev/null/out": "/dev/null/out: not a directory; choose a folder that can",
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

    def fails_second(server_app, config, on_reply):
        if (tmp_path / "summary.md").exists():
            raise OSError("No space left on device")
        original(server_app, config, on_reply)

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
