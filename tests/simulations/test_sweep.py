"""A sweep's tables."""

import csv

import pytest

from fedcurv.simulations.commands.simulate import main
from fedcurv.simulations.reports import sweep
from fedcurv.simulations.reports.sweep import sweep_figure, write_sweep
from tests.simulations.test_run import FEW

SMALL = ["num_clients=4", "num_rounds=2", "target_accuracies=[0.2,0.99]", "client.epochs=4", FEW]


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("quick_pictures")
def test_a_sweep_has_one_table_over_its_jobs_with_the_varied_keys_as_columns(tmp_path, command):
    varied = ["strategy=[fedavg,fedcurv]", "seed=1,2", "strategy.fedcurv.strength=3,30"]
    sweep = ["--multirun", *SMALL, *varied, f"hydra.sweep.dir={tmp_path}"]
    done = command("fedcurv-simulate", main, *sweep)
    assert done.code == 0, done.errors
    check_table(tmp_path)
    assert {path.name for path in tmp_path.glob("sweep.*")} == {
        f"sweep.{suffix}" for suffix in ("csv", "md", "png", "pdf", "svg")
    }
    tables = sorted(tmp_path.glob("*/metrics.csv"))
    assert len({table.read_text() for table in tables}) == 4
    rows = [row for table in tables for row in rows_of(table)]
    assert {(row["seed"], row["strategy.fedcurv.strength"]) for row in rows} == {
        (seed, strength) for seed in ("1", "2") for strength in ("3", "30")
    }
    assert {row["client.epochs"] for row in rows} == {"4"}


@pytest.mark.usefixtures("quick_pictures")
def test_a_mistake_in_a_later_job_keeps_the_table_over_the_earlier(tmp_path, command):
    sweep = ["--multirun", *SMALL, "strategy=fedavg", "client.lr=0.1,-1"]
    done = command("fedcurv-simulate", main, *sweep, f"hydra.sweep.dir={tmp_path}")
    assert done.code == 1
    overrides = " ".join([*SMALL, "strategy=fedavg", "client.lr=-1"])
    assert done.errors == (
        f"fedcurv-simulate: job #1 ({overrides}): client.lr must be > 0 and finite, got -1\n"
        f"fedcurv-simulate: 1 of the jobs failed; {tmp_path}/*/failed.txt says why\n"
    )
    assert [row["job"] for row in rows_of(tmp_path / "sweep.csv")] == ["0"]


def check_table(tmp_path):
    rows = rows_of(tmp_path / "sweep.csv")
    found = {(r["seed"], r["strategy.fedcurv.strength"], r["strategy"]) for r in rows}
    assert len(rows) == 8
    assert found == {
        (seed, strength, strategy)
        for seed in ("1", "2")
        for strategy, strengths in (("fedavg", ("",)), ("fedcurv", ("3", "30")))
        for strength in strengths
    }
    assert set(list(rows[0])[1:3]) == {"seed", "strategy.fedcurv.strength"}
    for row in rows:  # each line says what its job's own files say
        lines = [
            line
            for line in rows_of(tmp_path / row["job"] / "metrics.csv")
            if line["strategy"] == row["strategy"]
        ]
        accuracies = [float(line["accuracy"]) for line in lines]
        assert float(row["final"]) == pytest.approx(accuracies[-1], abs=1e-6)
        assert float(row["best"]) == pytest.approx(max(accuracies), abs=1e-6)
        reached = [int(line["round"]) for line in lines if float(line["accuracy"]) >= 0.2]
        assert row["rounds_to_0.2"] == (str(reached[0]) if reached else "")
        assert row["rounds_to_0.99"] == ""
    table = (tmp_path / "sweep.md").read_text(encoding="utf-8")
    header, _, *lines = [line for line in table.splitlines() if line.startswith("|")]
    assert "| strategy.fedcurv.strength |" in header
    assert "| seed |" not in header
    assert len(lines) == 3  # fedavg, and fedcurv with two strengths
    assert all(" ± " in line for line in lines)
    # fedavg ran twice with each seed, since its own settings were the same in two jobs
    assert next(line for line in lines if "| fedavg |" in line).split(" | ")[2] == "2"


def write_job(folder, *, seed, best, final, rounds_to):
    folder.mkdir()
    (folder / "config.yaml").write_text(f"seed: {seed}\ntarget_accuracies: [0.5]\n")
    with (folder / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["strategy", "best", "final", "rounds_to_0.5", "failure", "seed"])
        writer.writerow(["fedavg", best, final, rounds_to, "", seed])


def test_the_mean_over_seeds_is_that_of_the_jobs(tmp_path):
    write_job(tmp_path / "0", seed=1, best=0.6, final=0.5, rounds_to=1)
    write_job(tmp_path / "1", seed=2, best=0.8, final=0.7, rounds_to=2)
    write_sweep(tmp_path)
    last = (tmp_path / "sweep.md").read_text(encoding="utf-8").splitlines()[2]
    # 60 and 80 %: mean 70, deviation 10·√2; 50 and 70 %; rounds 1 and 2
    assert last == "| fedavg | 2 | 70.0 ± 14.1 | 60.0 ± 14.1 | 1.5 ± 0.7 |"


def test_a_run_that_diverged_has_no_mean(tmp_path):
    write_job(tmp_path / "0", seed=1, best=0.6, final=0.5, rounds_to=1)
    write_job(tmp_path / "1", seed=2, best="", final="", rounds_to="")
    write_sweep(tmp_path)
    last = (tmp_path / "sweep.md").read_text(encoding="utf-8").splitlines()[2]
    assert last == "| fedavg | 2 | - | - | - |"


def test_a_job_without_results_is_left_out(tmp_path):
    write_job(tmp_path / "0", seed=1, best=0.6, final=0.5, rounds_to=1)
    (tmp_path / "1").mkdir()
    write_sweep(tmp_path)
    assert [row["job"] for row in rows_of(tmp_path / "sweep.csv")] == ["0"]


def test_a_folder_without_jobs_gets_no_table(tmp_path):
    write_sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def with_curves(folder, values, **summary):
    """Write a job whose accuracy by round is known."""
    write_job(folder, best=max(values), final=values[-1], rounds_to="", **summary)
    with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["strategy", "round", "accuracy"])
        writer.writerows(("fedavg", number, value) for number, value in enumerate(values))


def test_the_picture_has_the_mean_over_seeds_and_their_range(tmp_path):
    with_curves(tmp_path / "0", [0.1, 0.5], seed=1)
    with_curves(tmp_path / "1", [0.2, 0.9], seed=2)
    (axes,) = sweep_figure(sweep.read_jobs(tmp_path), tmp_path).axes
    (line,) = axes.lines
    assert line.get_label() == "fedavg"
    assert list(line.get_ydata()) == pytest.approx([15, 70])
    (band,) = axes.collections
    heights = sorted({round(float(corner[1]), 6) for corner in band.get_paths()[0].vertices})
    assert heights == [10, 20, 50, 90]


def test_of_many_settings_the_picture_has_those_that_end_best(tmp_path):
    for number in range(13):
        folder = tmp_path / str(number)
        with_curves(folder, [0.1, 0.5 + number / 100], seed=1)
        with (folder / "config.yaml").open("a") as file:
            file.write(f"client: {{lr: {number}}}\n")
    (axes,) = sweep_figure(sweep.read_jobs(tmp_path), tmp_path).axes
    assert [line.get_label() for line in axes.lines] == [f"fedavg, lr {n}" for n in range(3, 13)]
    assert axes.get_title() == "the 10 of 13 that end best"


def test_jobs_without_curves_make_no_picture(tmp_path):
    write_job(tmp_path / "0", seed=1, best=0.6, final=0.5, rounds_to=1)
    assert sweep_figure(sweep.read_jobs(tmp_path), tmp_path) is None
