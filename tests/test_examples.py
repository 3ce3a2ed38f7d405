"""The commands of the page on own things run, with few rounds, on the example that it names."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedcurv.simulations.commands import experiment
from fedcurv.simulations.commands.simulate import simulate
from tests.simulations.test_run import configuration, rows_of
from tests.test_docs import blocks

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "own_things.md"
COMMANDS = [
    command
    for command in "".join(blocks(PAGE, "console")).splitlines()
    if command.startswith("fedcurv-simulate")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_with_own_things_runs(command, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    (writes_file,) = (block for block in blocks(PAGE, "python") if "tokens.npz" in block)
    exec(compile(writes_file, PAGE.name, "exec"), {})
    _, *overrides = shlex.split(command)
    small = ["num_rounds=1", "client.epochs=1"]
    if not any(word.startswith("strategy=") for word in overrides):
        small.append("strategy=[fedcurv]")
    summaries = simulate(configuration(*overrides, *small), tmp_path / "out", command=command)
    rows = rows_of(tmp_path / "out" / "metrics.csv")
    assert len(rows) == 2 * len(summaries)
    assert all(np.isfinite(float(row["loss"])) for row in rows)


def test_an_experiment_in_a_file_of_ones_own_runs(tmp_path, monkeypatch):
    assert "fedcurv-experiment --config-dir . experiment=wine" in PAGE.read_text(encoding="utf-8")
    shutil.copytree(ROOT / "examples", tmp_path, dirs_exist_ok=True)
    monkeypatch.delitem(sys.modules, "wine", raising=False)
    few = ["num_rounds=2", "client.epochs=1", "experiment.seeds=[1]"]
    words = ["--config-dir", ".", "experiment=wine", *few]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fedcurv-experiment", *words])
    experiment.main()
    (results,) = tmp_path.glob("outputs/experiments/wine/results.csv")
    assert {row["method"] for row in rows_of(results)} == {"fedavg", "fedcurv-auto"}


@pytest.mark.slow
def test_a_trial_hands_own_things_to_its_nodes(tmp_path):
    (words,) = re.findall(r"^fedcurv-trial (.*)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    program = str(Path(sys.executable).with_name("fedcurv-trial"))
    done = subprocess.run(
        [program, "--folder", str(tmp_path / "trial"), *shlex.split(words)],
        cwd=ROOT / "examples",
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(tmp_path / "trial" / "report" / "metrics.csv")
    assert [row["clients_ok"] for row in rows] == ["0", "2", "2"]
    assert float(rows[-1]["accuracy"]) > 0.8


def test_the_table_names_what_a_node_may_name():
    from fedcurv.simulations.own import NAMES

    told = dict(re.findall(r"\| `([\w.]+)` \| `([\w-]+)` \|", PAGE.read_text(encoding="utf-8")))
    assert told == NAMES | {"client.terms.NAME": "term-NAME"}


@pytest.mark.parametrize("runner", ["local", "batched"])
def test_a_term_of_ones_own_is_felt_under_every_runner(runner, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    command = "+strategy.sparse._target_=sparse.SparseAverage +client.terms.sparse=sparse:make_term"
    small = ["num_rounds=2", "client.epochs=1", "num_clients=3", f"runner={runner}"]
    losses = {}
    for growth in ("0", "1e-1"):
        overrides = ["strategy=[]", *command.split(), f"+strategy.sparse.growth={growth}", *small]
        folder = tmp_path / growth
        simulate(configuration(*overrides), folder, command="the command")
        losses[growth] = [float(row["loss"]) for row in rows_of(folder / "metrics.csv")]
    assert losses["0"][0] == losses["1e-1"][0]
    assert losses["0"][2] < 0.9 * losses["1e-1"][2]
