"""Ctrl-C and SIGTERM: a simulation ends in time, and goes on as if it had not."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from fedcurv.simulations.commands import simulate as run_module
from fedcurv.simulations.commands.simulate import simulate
from fedcurv.simulations.console.interruption import Interrupted, interruptible
from tests.forks import forks
from tests.simulations.test_run import FEW, SMALL, configuration, rows_of, run

pytestmark = pytest.mark.usefixtures("quick_pictures")


@pytest.mark.parametrize(("runner", "every"), [("local", 2), ("batched", 1)])
def test_a_run_that_goes_on_writes_what_an_uninterrupted_one_does(
    runner, every, tmp_path, monkeypatch
):
    choices = ["num_rounds=5", "strategy=[fedavg,fedcurv,fedadam]", f"runner={runner}"]
    choices += [FEW, f"checkpoint_every={every}", "fraction_train=0.5"]
    choices += ["client.schedule={name: ExponentialLR, gamma: 0.8, warm_up: 2}"]
    run(tmp_path / "whole", *choices)
    show = run_module._show

    def stop(steps, record, metric):
        if run_module_stops and (len(seen), record.server_round) != (0, 0):
            seen.append(record.server_round)
            if len(seen) == run_module_stops[0]:
                run_module_stops.pop(0)
                raise Interrupted(signal.SIGINT)
        show(steps, record, metric)

    monkeypatch.setattr(run_module, "_show", stop)
    # in fedavg's round 2, in fedcurv's rounds 1 and 4
    run_module_stops, seen = [2, 8, 13], [0]
    part, resume = tmp_path / "part", False
    for _ in range(3):
        with pytest.raises(Interrupted) as interrupted:
            simulate(configuration(*SMALL, *choices), part, command="the command", resume=resume)
        assert f"go on with: fedcurv-simulate resume={part}" in interrupted.value.how_to_go_on
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


def as_a_process(arguments: list[str], folder: Path) -> None:
    """Be ``fedcurv-simulate``, with output and errors in files."""
    for number, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY, 0o600), number)
    os.chdir(folder)
    sys.argv = ["fedcurv-simulate", *arguments]
    run_module.main()


@pytest.mark.parametrize(
    ("runner", "number"), [("local", signal.SIGINT), ("batched", signal.SIGTERM)]
)
def test_a_signal_ends_the_command_and_the_printed_line_goes_on(runner, number, tmp_path, command):
    folder, rounds = tmp_path / "out", 25
    arguments = ["num_clients=6", f"num_rounds={rounds}", "client.epochs=3", "strategy=fedcurv"]
    arguments += [f"runner={runner}", f"hydra.run.dir={folder}"]
    process = forks().Process(target=as_a_process, args=(arguments, tmp_path))
    process.start()
    output, deadline = tmp_path / "output", time.monotonic() + 120
    while not (output.exists() and "fedcurv: round 1/25:" in output.read_text()):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 128 + number
    (line,) = (tmp_path / "errors").read_text().strip().splitlines()
    assert line.endswith(f"go on with: fedcurv-simulate resume={folder}")
    finished = len(rows_of(folder / "metrics.csv")) - 1
    assert 1 <= finished < rounds
    done = command("fedcurv-simulate", run_module.main, f"resume={folder}")
    assert done.code == 0, done.errors
    assert "round 1/25" not in done.output and "round 25/25" in done.output
    written = [int(row["round"]) for row in rows_of(folder / "metrics.csv")]
    assert written == list(range(rounds + 1))
    again = command("fedcurv-simulate", run_module.main, f"resume={folder}")
    assert again.code == 0 and "has come to its end already" in again.output


def test_an_unfinished_run_is_not_begun_anew_in_its_folder(tmp_path):
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(ValueError, match="holds an unfinished simulation; go on with resume="):
        run(tmp_path)


def clean_up_for(seconds: float, patience_s: float | None, folder: Path) -> None:
    """Be a program whose block cleans up for some time, with errors in a file."""
    os.dup2(os.open(folder / "errors", os.O_CREAT | os.O_WRONLY, 0o600), 2)
    with interruptible("program", "that is all", patience_s=patience_s):
        try:
            (folder / "begun").touch()
            time.sleep(60)
        finally:
            (folder / "cleaning").touch()
            time.sleep(seconds)
            (folder / "cleaned").touch()


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline, f"no {file}"
        time.sleep(0.01)


@pytest.mark.parametrize(("patience_s", "seconds"), [(None, 0.5), (0.3, 50.0)])
def test_no_second_signal_breaks_off_the_cleaning_up_but_patience_does(
    patience_s, seconds, tmp_path
):
    process = forks().Process(target=clean_up_for, args=(seconds, patience_s, tmp_path))
    process.start()
    wait_for(tmp_path / "begun")
    os.kill(process.pid, signal.SIGTERM)
    wait_for(tmp_path / "cleaning")
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 128 + signal.SIGTERM  # the first counts
    assert (tmp_path / "errors").read_text() == "program: ended by SIGTERM; that is all\n"
    assert (tmp_path / "cleaned").exists() is (patience_s is None)
