"""``fedcurv-lasgd``: what it tries, what it shows, and what it refuses in one line."""

import json
import math
import random
import re

import pytest

from fedcurv.lasgd.virtual import Landing
from fedcurv.simulations.commands import lasgd as module
from fedcurv.simulations.commands.lasgd import argument_parser, lengths_of, main, run_all

PROGRAM = "fedcurv-lasgd"
PROBLEM = """
from torch import nn, optim, zeros
from fedcurv.lasgd.virtual import Problem

def small():
    data = zeros(8, 2), zeros(8, 1)
    make = lambda: nn.Linear(2, 1)
    return Problem(make, lambda m: optim.SGD(m.parameters(), lr=0.1), nn.MSELoss(), data, data, 4)

def other():
    return 3
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "mine.py").write_text(PROBLEM)
    return ("--problem", "mine:small", "--seconds", "5", "--loss", "-1")


def test_every_method_is_tried_with_every_number_of_workers(command, own):
    ended = command(PROGRAM, main, *own, "--workers", "2", "3", "--sync-every", "4", "8")
    assert ended.code == 0
    rows = [line.split()[:3] for line in ended.output.splitlines()[3:13]]
    expected = [
        [method, workers, every]
        for workers in ("2", "3")
        for method, every in (
            *(("lasgd", "4"), ("lasgd", "8"), ("blocking", "4"), ("blocking", "8")),
            ("synchronous", "-"),
        )
    ]
    assert rows == expected


def test_the_table_has_what_the_runs_were_worth(command):
    words = ("--methods", "lasgd", "--link", "0.2", "--loss", "1.2", "--seconds", "20")
    (row,) = run_all(argument_parser().parse_args(words))
    reached = row.outcome.first_below(1.2)
    ended = command(PROGRAM, main, *words)
    (shown,) = (line.split() for line in ended.output.splitlines() if "lasgd" in line)
    assert shown[:6] == ["lasgd", "4", "32", "1.00", f"{reached.seconds:.1f}", str(reached.steps)]
    assert shown[-2] == str(len(row.outcome.landings))
    assert shown[-1] == f"{row.outcome.payload_bytes / 1e6:.2f}"


def test_every_outer_optimizer_is_tried_with_every_learning_rate(command):
    words = ("--methods", "lasgd", "synchronous", "--lr", "0.02", "0.05", "--seconds", "2")
    outer = ("--outer", "none", "nesterov", "--outer-lr", "0.5", "0.7")
    rows = run_all(argument_parser().parse_args((*words, *outer)))
    of_lasgd = ["-", "nesterov 0.5 0.9", "nesterov 0.7 0.9"]
    assert [(row.lr, row.outer_in_words) for row in rows] == [
        (lr, name) for lr in (0.02, 0.05) for name in (*of_lasgd, "-")
    ]
    losses = [row.outcome.landings[-1].loss for row in rows]
    assert len(set(losses)) == len(losses)
    ended = command(PROGRAM, main, *words, *outer)
    shown = [line for line in ended.output.splitlines() if "lasgd" in line or "synchr" in line]
    assert "nesterov 0.5 0.9" in shown[1] and "0.02" in shown[1]
    assert rows[1].name == "lasgd, 4 workers, sync_every 32, outer nesterov 0.5 0.9, lr 0.02"


def test_few_bits_put_fewer_bytes_into_a_sum():
    words = ("--methods", "lasgd", "synchronous", "--seconds", "6", "--loss", "-1")
    plain, synchronous = run_all(argument_parser().parse_args(words))
    coded, _ = run_all(argument_parser().parse_args((*words, "--compression", "int8")))
    numbers = 16 * 128 + 128 + 128 * 10 + 10
    # with the momentum, whether each of four tensors has one, and 9 lines of header a worker
    assert plain.outcome.payload_bytes == 4 * (2 * numbers + 4 + 4 * 9) * rounds(plain)
    assert synchronous.outcome.payload_bytes == 4 * numbers * rounds(synchronous)
    blocks = -(-2 * numbers // 256)
    expected = 2 * numbers + 4 * (blocks + 2 + 4 + 4 * 9)
    assert coded.outcome.payload_bytes == expected * rounds(coded)


def rounds(row):
    return len(row.outcome.landings)


def test_losses_that_are_never_finite_and_what_was_left_out_are_told(command):
    words = ("--lr", "1e30", "--seconds", "6")
    ended = command(PROGRAM, main, *words, "--methods", "lasgd", "synchronous")
    assert ended.code == 0
    lines = ended.output.splitlines()
    (shown,) = (line for line in lines if line.split()[:1] == ["synchronous"])
    assert "not finite" in shown
    (told,) = (line for line in lines if "left out of a round" in line)
    (row, _) = run_all(argument_parser().parse_args((*words, "--methods", "lasgd", "synchronous")))
    broken, rounds = row.outcome.broken, len(row.outcome.landings)
    assert told.startswith(f"{row.name}: ") and f"{broken} times in {rounds} rounds" in told
    assert broken == 4 * rounds > 0 and row.outcome.landings[-1].steps == 0


def test_what_is_not_finite_does_not_hide_a_finite_loss(command, monkeypatch):
    (row,) = run_all(argument_parser().parse_args(("--methods", "synchronous", "--seconds", "2")))
    worth = (math.nan, 0.75, math.inf)
    row.outcome.landings = [Landing(1.0, 4, loss) for loss in worth]
    monkeypatch.setattr(module, "run_all", lambda options: [row])
    assert " 0.750 " in command(PROGRAM, main).output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--lr", "nan"), "lr must be finite and >= 0, got nan"),
        (("--lr", "0.1", "inf"), "lr must be finite and >= 0, got inf"),
        (("--lr", "-1"), "lr must be finite and >= 0, got -1.0"),
        (("--momentum", "nan"), "momentum must be finite and >= 0, got nan"),
    ],
)
def test_learning_rates_that_cannot_be_are_one_line(command, words, message):
    ended = command(PROGRAM, main, *words)
    assert ended.code == 1 and ended.errors.splitlines() == [f"{PROGRAM}: {message}"]


def test_a_record_gives_the_lengths_of_the_steps(tmp_path):
    record = tmp_path / "steps.json"
    record.write_text(json.dumps([[0.5, 1.5], [2.0]]))
    lengths = lengths_of(str(record), 2)
    assert [lengths(w, 0.0, None) for w in (0, 0, 1)] == [0.5, 1.5, 2.0]


def test_a_picture_is_written(command, own, tmp_path):
    ended = command(PROGRAM, main, *own, "--picture", str(tmp_path / "site.png"))
    assert ended.code == 0 and "written to" in ended.output
    assert (tmp_path / "site.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--steps", "slow"],
            "--steps must be one of equal, .*, or a .json, got 'slow'",
        ),
        (["--steps", "straggler:time=2"], "no option 'time'; its options are seconds, times, num"),
        (["--steps", "straggler:times=x"], "--steps straggler: times must be a number, got 'x'"),
        (["--steps", "equal:seconds=0"], "seconds must be finite and > 0, got 0.0"),
        (["--steps", "none.json"], "--steps none.json: expected a JSON list of seconds"),
        (["--lose", "3"], "--lose must be WORKER@SECONDS, such as 3@20.5, got '3'"),
        (["--lose", "1@1"], "--lose: synchronous SGD ends with its first lost worker"),
        (["--lose", "9@1", "--methods", "lasgd"], "expected workers from 0 to 3, got 9"),
        (["--lose", "0@nan", "--methods", "lasgd"], "seconds >= 0 at which a worker ends, got nan"),
        (["--lose", "0@-5", "--methods", "lasgd"], "seconds >= 0 at which a worker ends, got -5"),
        (["--lose", "0@1", "--lose", "0@2"], "--lose: expected a worker once, got 0 twice"),
        (["--seconds", "nan"], "expected seconds > 0 and a loss, got nan and -1.0"),
        (["--seconds", "0"], "expected seconds > 0 and a loss, got 0.0 and -1.0"),
        (["--loss", "nan"], "expected seconds > 0 and a loss, got 5.0 and nan"),
        (["--workers", "2", "2"], "--workers: expected each once, got 2 twice"),
        (["--steps", "equal:seconds=1,seconds=2"], "--steps equal: expected each once, got 'sec"),
        (["--outer-lr", "0.5"], "must be left out without outer, got 0.5 and 0.9; say outer=nest"),
        (["--outer", "nesterov", "--outer-momentum", "1"], r"outer_momentum must be .* \[0, 1\)"),
        (["--outer", "none", "none"], "--outer: expected each once, got 'none' twice"),
        (["--momentum", "0.1"], "--lr and --momentum are of the small network"),
        (["--lr", "0.1"], "--lr and --momentum are of the small network; with --problem"),
        (["--workers", "0"], "workers must be an integer >= 1, got 0"),
        (["--link", "-1"], "seconds must be finite and >= 0, got -1.0"),
        (["--sync-every", "0"], "sync_every must be an integer >= 1, got 0"),
        (["--problem", "mine:other"], "--problem mine:other: expected a fedcurv.lasgd.virtual.Pr"),
        (["--problem", "mine:none"], "--problem"),
        (["--picture", "no/such/site.png"], "no/such/site.png"),
    ],
)
def test_what_cannot_be_meant_is_one_line(command, own, words, message):
    ended = command(PROGRAM, main, *own, *words)
    assert ended.code == 1
    (line,) = ended.errors.splitlines()
    assert line.startswith(f"{PROGRAM}: ") and re.search(message, line), line


def test_every_kind_of_lengths_can_be_named():
    for kind in module._LENGTHS:
        assert lengths_of(kind, 4)(0, 0.0, random.Random(0)) > 0
