"""A sweep's jobs: their faults, and other processes for them by Hydra's launchers."""

import importlib.metadata
import io
import os
import pickle
import signal
import sys
import time
from pathlib import Path

import pytest

from fedcurv.simulations.commands import simulate
from fedcurv.simulations.commands.frame import Done, Task, run_command
from fedcurv.simulations.commands.jobs import end_with, this_process
from fedcurv.simulations.console import progress
from fedcurv.simulations.console.progress import Steps, console, speak_as
from fedcurv.simulations.reports import sweep
from fedcurv.simulations.reports.sweep import write_sweep
from tests.forks import forks
from tests.processes import is_alive
from tests.simulations.test_interruption import wait_for
from tests.simulations.test_run import rows_of
from tests.simulations.test_sweep import write_job

ONE_BY_ONE = ["--multirun"]
PARALLEL = ["--multirun", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
SMALL = ["num_clients=4", "num_rounds=1", "data.train_samples=200", "partition=iid"]


def is_installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


needs_joblib = pytest.mark.skipif(
    not is_installed("hydra-joblib-launcher"), reason="hydra-joblib-launcher is not installed"
)


def test_what_hydra_calls_can_go_to_another_process():
    task = Task("fedcurv-simulate", simulate._simulate_and_tabulate, "the command")
    assert pickle.loads(pickle.dumps(task)) == task


@pytest.mark.parametrize(
    "launcher",
    [ONE_BY_ONE, pytest.param(PARALLEL, marks=[needs_joblib, pytest.mark.slow])],
    ids=["one", "joblib"],
)
@pytest.mark.usefixtures("quick_pictures")
def test_a_job_that_fails_is_told_with_its_overrides_and_costs_no_other(
    launcher, tmp_path, command
):
    varied = ["strategy=fedadam", "strategy.fedadam.eta=-1,1e30,0.1"]
    folder = f"hydra.sweep.dir={tmp_path}"
    # what an earlier sweep has left in that folder
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "failed.txt").touch()
    done = command("fedcurv-simulate", simulate.main, *launcher, *SMALL, *varied, folder)
    assert done.code == 1, done.errors
    rows = {row["job"]: row for row in rows_of(tmp_path / "sweep.csv")}
    assert set(rows) == {"1", "2"}
    assert "FedAdam made numbers" in rows["1"]["failure"] and rows["2"]["failure"] == ""
    (final,) = (
        row["accuracy"] for row in rows_of(tmp_path / "2/metrics.csv") if row["round"] == "1"
    )
    assert float(rows["2"]["final"]) == pytest.approx(float(final), abs=1e-6)
    assert (tmp_path / "sweep.md").exists() and (tmp_path / "sweep.png").exists()
    (failed,) = tmp_path.glob("*/failed.txt")
    (early,) = tmp_path.glob("*/ended_early.txt")
    assert [failed.parent.name, early.parent.name] == ["0", "1"]
    (line,) = failed.read_text().splitlines()
    assert line.startswith("job #0 (") and "eta must be > 0 and finite, got -1" in line
    assert "strategy.fedadam.eta=-1" in line.partition("): ")[0]
    last = done.errors.splitlines()[-2:]
    assert f"1 of the jobs failed; {tmp_path}/*/failed.txt says why" in last[1]
    assert "in 1 of the jobs a training ended early" in last[0]
    if launcher is ONE_BY_ONE:  # else other processes have printed it
        assert done.errors.splitlines()[0] == f"fedcurv-simulate: {line}"


def fall(config, folder, command):
    """Be the work of jobs of which one has a mistake that nobody foresaw."""
    if config.seed == 1:
        raise RuntimeError("of one's own\ncode")
    (folder / "summary").touch()
    return Done("the table", folder)


def test_an_unforeseen_error_is_told_with_its_traceback_and_costs_no_other(tmp_path, command):
    words = [*ONE_BY_ONE, "seed=1,2", f"hydra.sweep.dir={tmp_path}"]
    done = command("program", lambda: run_command("program", "config", fall), *words)
    assert done.code == 1
    assert "Traceback" in done.errors
    assert "program: job #0 (seed=1): RuntimeError: of one's own code\n" in done.errors
    assert (tmp_path / "1" / "summary").exists()


def wait(config, folder, command):
    """Be the work of a job that takes long."""
    (folder / "process").write_text(str(os.getpid()))
    time.sleep(120)
    return Done("", folder)


def sweep_of_waits(folder: Path) -> None:
    """Be a command with two such jobs at a time."""
    os.dup2(os.open(folder / "errors", os.O_CREAT | os.O_WRONLY, 0o600), 2)
    sys.argv = ["program", *PARALLEL, "seed=1,2", f"hydra.sweep.dir={folder}"]
    run_command("program", "config", wait)


@needs_joblib
@pytest.mark.slow
def test_sigterm_ends_a_sweep_with_the_jobs_in_other_processes(tmp_path):
    process = forks().Process(target=sweep_of_waits, args=(tmp_path,))
    process.start()
    files = [tmp_path / job / "process" for job in "01"]
    for file in files:
        wait_for(file)
    time.sleep(0.2)  # the number is written
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
    line = (tmp_path / "errors").read_text().strip().splitlines()[-1]
    assert line == "program: ended by SIGTERM; what was finished is kept"
    wait_until_gone([int(file.read_text()) for file in files])


def with_a_job(folder: Path) -> None:
    """Be a command that has one job in another process."""
    command = this_process()
    if os.fork() == 0:
        end_with(command)
        (folder / "process").write_text(str(os.getpid()))
    time.sleep(120)


def test_a_job_ends_with_a_command_that_was_killed(tmp_path):
    process = forks().Process(target=with_a_job, args=(tmp_path,))
    process.start()
    wait_for(tmp_path / "process")
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    wait_until_gone([int((tmp_path / "process").read_text())])


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, "a job has outlived the command"
        time.sleep(0.05)


def test_a_table_written_while_another_job_ends_has_that_job_too(tmp_path, monkeypatch):
    write_job(tmp_path / "0", seed=1, best=0.6, final=0.5, rounds_to=1)
    write = sweep._write
    written = []

    def write_late(jobs, folder):
        written.append(len(jobs))
        if len(written) == 1:  # another process reads, writes its table and is done
            write_job(tmp_path / "1", seed=2, best=0.8, final=0.7, rounds_to=2)
            write_sweep(tmp_path)
        write(jobs, folder)

    monkeypatch.setattr(sweep, "_write", write_late)
    write_sweep(tmp_path)
    assert [row["job"] for row in rows_of(tmp_path / "sweep.csv")] == ["0", "1"]


def test_one_of_several_writes_lines_with_its_name_even_on_a_terminal(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(progress, "_speaker", "")
    monkeypatch.setattr(progress, "_AT_ONCE_S", -1.0)
    monkeypatch.setattr(console, "_file", written)
    monkeypatch.setattr(console, "_force_terminal", True)
    speak_as("#3")
    with Steps("round", 2) as steps:
        steps.begin("fedavg")
        steps.done(1, "80 %")
    assert written.getvalue() == "#3 fedavg: round 1/2: 80 %, 0:00 left\n"
