"""The command line of ``fedcurv-simulate``: what it prints, its exit codes, and mistakes."""

import os
import re
import subprocess
import sys

import pytest
from flwr.common.config import parse_config_args

from fedcurv.simulations.commands import experiment, trial
from fedcurv.simulations.commands import run as run_module
from fedcurv.simulations.commands.frame import Done, run_command
from fedcurv.simulations.commands.simulate import main
from fedcurv.simulations.configuration import CONF
from fedcurv.simulations.deployment.flower_run import run_config_of
from tests.simulations.test_run import SMALL, rows_of

pytestmark = pytest.mark.usefixtures("quick_pictures")


def test_the_command_prints_a_table_and_says_where_the_files_are(tmp_path, command):
    done = command("fedcurv-simulate", main, *SMALL)
    assert done.code == 0, done.errors
    assert "fedcurv: round 2/2:" in done.output and "left" in done.output
    assert "strategy" in done.output and "to 80 %" in done.output and "…" not in done.output
    (summary,) = tmp_path.glob("outputs/*/*/summary.md")
    assert str(summary.parent.relative_to(tmp_path)) in done.output.replace("\n", "")
    assert "Command: `fedcurv-simulate num_clients=6 num_rounds=2 client.epochs=1`" in (
        summary.read_text()
    )


def test_commands_of_one_second_do_not_share_a_folder(tmp_path, command):
    def count(config, folder, command):
        (folder / "written").touch(exist_ok=False)
        return Done("", folder)

    for _ in range(3):
        folder = "hydra.run.dir='${new_folder:out/config}'"
        done = command("a-command", lambda: run_command("a", "config", count), folder)
        assert done.code == 0, done.errors
    folders = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert folders == ["config", "config-2", "config-3"]
    text = (CONF / "config.yaml").read_text()
    assert text.count("    dir: ${new_folder:") == 2  # of a run, and of a sweep


@pytest.mark.parametrize(
    ("program", "start"),
    [("simulate", main), ("experiment", experiment.main)],
)
def test_help_shows_the_settings_with_their_comments(program, start, command):
    done = command(f"fedcurv-{program}", start, "model=cnn", "--help")
    assert done.code == 0, done.errors
    assert "padding: 2   # 2: 1.66 million parameters" in done.output
    assert "penalty_mode: proximal   # proximal is stable" in done.output
    assert "partition: dirichlet, flwr_datasets" in done.output
    assert "root: ${oc.env:FEDCURV_DATA_ROOT,data}" in done.output
    is_experiment = program == "experiment"
    assert ("- {client.epochs: 1, num_rounds: 40}" in done.output) == is_experiment
    assert "hydra.job" not in done.output and "defaults:" not in done.output


def test_help_shows_the_strategies_that_are_chosen(command):
    done = command("fedcurv-simulate", main, "strategy=[fedcurv]", "--help")
    assert "strength: 30   # λ, or auto" in done.output and "proximal_mu" not in done.output


def test_a_training_that_diverges_ends_there_and_the_others_go_on(tmp_path, command):
    done = command(
        "fedcurv-simulate",
        main,
        *SMALL,
        "num_rounds=3",
        "strategy=[fedavg,fedcurv,fedadam]",
        "strategy.fedadam.eta=1e30",
        "strategy.fedcurv.strength=0",
        f"hydra.run.dir={tmp_path / 'out'}",
    )
    assert done.code == 3, done.errors
    (line,) = done.errors.strip().splitlines()
    assert re.search("fedadam ended after . of 3 rounds: .*(diverged|FedAdam made)", line)
    rows = {row["strategy"]: row for row in rows_of(tmp_path / "out" / "summary.csv")}
    assert rows["fedavg"]["failure"] == rows["fedcurv"]["failure"] == ""
    assert rows["fedadam"]["final"] == rows["fedadam"]["best"] == ""
    assert rows["fedadam"]["failure"] in line
    assert "fedadam ended after" in (tmp_path / "out" / "summary.md").read_text()
    assert rows["fedcurv"]["rounds"] == "3"


def test_an_own_strategy_that_raises_is_named_in_one_line(tmp_path, command):
    done = command(
        "fedcurv-simulate",
        main,
        *SMALL,
        "strategy=[fedavg]",
        "+strategy.own._target_=tests.own_tables.FailsInRoundTwo",
        "+strategy.own.fraction_evaluate=0.0",
        f"hydra.run.dir={tmp_path / 'out'}",
    )
    assert done.code == 1
    (line,) = done.errors.strip().splitlines()
    assert line == (
        "fedcurv-simulate: round 2: aggregate_train of FailsInRoundTwo raised KeyError: 'momentum'"
    )
    assert {row["strategy"] for row in rows_of(tmp_path / "out" / "summary.csv")} == {"fedavg"}


BAD = {
    "strategy=avg": "Could not find 'strategy/avg' Available options in 'strategy': fedadam fedavg",
    "strategy.fedcurv.strenght=1": "'strategy.fedcurv.strenght'; known here: _target_, strength",
    "data=imagenet": "Available options in 'data': arrays cifar10 device digits",
    "rounds=3": "unknown name 'rounds'; known here: .*num_rounds",
    "model=function model.function=os:getcwd model.options.width=8": (
        "width'; known here: none yet, so put . before a new one"
    ),
    "+data.train_sample=9": "unknown name 'data.train_sample'; known here: .*train_samples",
    "+runner.cores=9": "unknown name 'runner.cores'; known here: client_resources, init_args, name",
    "client.epoch=3": "unknown name 'client.epoch'; known here: epochs, batch_size",
    "client.loss=hinge": "client.loss must be one of cross_entropy, mae",
    "client.loss={name:gce,r:1}": "client.loss: 'gce' has no such setting",
    "data.noise.kind=uniform": "data.noise.kind must be one of none, symmetric",
    "data.noise.clients=[20]": "a share in .* or a list of numbers below 20",
    "model.name=vgg": "model.name must be one of mlp, cnn, resnet18, .*, got 'vgg'",
    "partition.name=x": "partition.name must be one of iid, shards, dirichlet",
    "runner.name=spark": "runner.name must be one of local, batched, ray, got 'spark'",
    "strategy=[]": "strategy: expected at least one",
    "strategy.fedcurv.strength=-1": "fedcurv: strength must be finite and >= 0, or auto, got -1",
    "strategy.fedcurv.strength=nan": "strength must be finite and >= 0, or auto, got nan",
    "fraction_train=0.01": "fraction_train=0.01 of 20 clients selects nobody",
    "fraction_train=2": "selects nobody or more than all",
    "num_clients=0": "num_clients must be an integer >= 1, got 0",
    "num_rounds=many": "num_rounds must be an integer >= 1, got 'many'",
    "client.device=cuda:99": "client.device=cuda:99: torch has no such device .*auto or cpu",
    "client.device=meta": "client.device=meta: torch has no such device .*auto or cpu",
    "client.num_threads=100000": "num_threads must be at most [0-9]+, got 100000",
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
    "data.noise.rate=nan": r"data.noise.rate must be in \[0, 1\], or null for 0.4, got nan",
    "resume=nowhere": "resume=nowhere: expected the folder of a simulation, with config.yaml",
    "resume=nowhere seed=2": "takes the configuration in that folder; leave out seed",
    "runner.name=ray": "runner.client_resources must be given; use runner=ray for its defaults",
    "data.name=device": "data.shape must be given; use data=device for its defaults",
    "runner=ray runner.client_resources.num_gpus=99": "num_gpus=99: this machine has 0 GPUs",
    "runner=ray runner.client_resources.num_cpus=9999": "num_cpus=9999: this machine has",
    "runner=ray +runner.init_args.adress=x": "runner.init_args: ray.init has no adress",
    "client.lr=-1": "client.lr must be > 0 and finite, got -1",
    "client.optimizer=sgdd": "client.optimizer: expected one of .* got 'sgdd'",
    "client.optimizer=adamw client.momentum=0.9": "client.optimizer: AdamW has no momentum",
    "client.schedule=cosine": "client.schedule: expected one of .*'cosine'",
    "client.schedule={name:PolynomialLR,total_iters:2}": "client.schedule: round 3 has the",
    "strategy.fedcurv._target_=fedcurv.strategies.FedCruv": (
        "strategy.fedcurv._target_=fedcurv.strategies.FedCruv: fedcurv.strategies has no 'FedCruv';"
        r" is 'FedCurv' meant\?$"
    ),
    "strategy.fedcurv._target_=fedcruv.FedCurv": (
        "_target_=fedcruv.FedCurv: fedcruv cannot be imported .*; start where it lies"
    ),
    "strategy.fedcurv._target_=wine:FedCurv": "_target_ must be package.module.Class, got 'wine:",
    "strategy=[] +strategy.x={_target_:fedcurv.strategies.FedCurv,strategy:{_target_:x.Y}}": (
        "strategy.x.strategy._target_=x.Y: x cannot be imported"
    ),
    "client.lr=fast": "client.lr must be > 0 and finite, got 'fast'",
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
def test_a_mistake_ends_with_one_line_and_leaves_nothing(overrides, tmp_path, command):
    done = command("fedcurv-simulate", main, *overrides.split())
    assert done.code == 1 and done.output == ""
    (line,) = done.errors.splitlines()
    assert re.search(f"^fedcurv-simulate: .*{BAD[overrides]}", line)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "config.yaml: .*expected"),
        ("- 1", "config.yaml: expected the configuration of a simulation"),
        ("seed: 1", "config.yaml: expected the configuration of a simulation"),
    ],
)
def test_a_folder_that_cannot_go_on_is_named(content, message, tmp_path, command):
    (tmp_path / "out" / "unfinished").mkdir(parents=True)
    (tmp_path / "out" / "config.yaml").write_text(content)
    done = command("fedcurv-simulate", main, "resume=out")
    assert done.code == 1 and done.output == ""
    (line,) = done.errors.splitlines()
    assert re.search(f"^fedcurv-simulate: .*{message}", line)


def test_overrides_reach_the_servers_app_as_they_are():
    """Flower cuts a value at its first quotation mark."""
    overrides = """'data.classes=["a","é 𝟙"]' a=b\\c 'x=\ty'"""
    settings = run_config_of(overrides, "/out", resume=False, checkpoint_every=2)
    assert parse_config_args([settings]) == {
        "overrides": overrides,
        "output": "/out",
        "resume": False,
        "checkpoint-every": 2,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["home", "--output", "here"], "--output must be an absolute folder on the server"),
        (["home", "--checkpoint-every", "0"], "--checkpoint-every must be >= 1, got 0"),
    ],
)
def test_fedcurv_run_refuses_before_it_runs(arguments, message, command):
    done = command("fedcurv-run", run_module.main, *arguments)
    assert done.code == 2 and message in done.errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folder", "a-file"], "--folder must be one that can be written, got a-file: Not a dir"),
        (["--folder", "a-file/b"], "--folder must be one that can be written, got a-file/b"),
        (["--folder", "."], "--folder must be empty or missing"),
        (["--nodes", "0"], "--nodes must be >= 1, got 0"),
        (["--node-config", "a=1"], "expected one for each of 2 nodes, got 1"),
    ],
)
def test_fedcurv_site_refuses_before_it_starts_anything(arguments, message, tmp_path, command):
    (tmp_path / "a-file").touch()
    done = command("fedcurv-trial", trial.main, *arguments)
    assert done.code == 2 and message in done.errors
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["client.lr=-1"], "lr must be"),
        (["client.lr_=1"], "unknown name 'client.lr_'"),
        (["num_clients=3"], "num_clients must be the number of nodes, 2, got 3; use --nodes"),
        (["strategy=[fedavg,fedcurv]"], "strategy: expected one, got fedavg, fedcurv"),
        (["data=function", "data.function=missing:data"], "missing cannot be imported"),
    ],
)
def test_a_trials_configuration_is_checked_before_it_starts_anything(words, message, command):
    done = command("fedcurv-trial", trial.main, *words)
    (line,) = done.errors.splitlines()
    assert done.code == 1 and line.startswith("fedcurv-trial: ") and message in line


def test_a_mistake_ends_the_process_with_an_exit_code(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fedcurv.simulations", "model.name=vgg"],
        cwd=tmp_path,
        env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("fedcurv-simulate: model.name must be one of")
    assert len(done.stderr.strip().splitlines()) == 1


def test_code_that_ends_the_process_is_no_success(tmp_path, command, monkeypatch):
    (tmp_path / "quits.py").write_text(
        "from flwr.serverapp.strategy import FedAvg\n"
        "class Quits(FedAvg):\n"
        "    def configure_train(self, *_):\n"
        "        raise SystemExit(0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = ["strategy=[]", "+strategy.quits._target_=quits.Quits", "num_rounds=1"]
    done = command("fedcurv-simulate", main, *own)
    assert done.code == 1
    assert "code of your own ended the process, by sys.exit(0)" in done.errors
