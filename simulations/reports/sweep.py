"""Files over the jobs of a sweep: sweep.csv, sweep.md, sweep.png, report.html."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from fedcurv.simulations.parts.metrics import Metric
from fedcurv.simulations.reports.comparison import markdown_table, mean_and_deviation
from fedcurv.simulations.reports.live_page import write_page
from fedcurv.simulations.reports.pictures import save
from fedcurv.simulations.reports.round_files import write_csv, write_whole
from fedcurv.simulations.reports.sweep_curves import sweep_figure
from fedcurv.simulations.reports.sweep_jobs import (
    Job,
    by_setting,
    keys_of,
    read_jobs,
    rows_of,
    summaries_in,
)
from fedcurv.simulations.reports.sweep_page import sweep_page


def _caption(metrics: Iterable[Metric]) -> str:
    what = " or ".join(dict.fromkeys(f"{m.label}{m.in_percent}" for m in metrics))
    return (
        f"Test {what}, and rounds until it first reached a target (- where a seed never did): mean "
        "± standard deviation over the seeds."
    )


class SweepTable(Callback):
    """Writes the tables after each job, so that none is lost; named in conf/config.yaml.

    Jobs may be in other processes, where each writes them; the last is the one that waits for all.
    """

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        """Write sweep.csv, sweep.md and report.html into the sweep's folder, if there is one."""
        if config.hydra.mode == RunMode.MULTIRUN:
            folder = Path(config.hydra.sweep.dir)
            write_sweep(folder)
            write_sweep_page(folder, ended=False)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write the tables, and the picture over all jobs as sweep.png, sweep.pdf, sweep.svg."""
        folder = Path(config.hydra.sweep.dir)
        write_sweep(folder)
        write_sweep_page(folder, ended=True)
        if (jobs := read_jobs(folder)) and (figure := sweep_figure(jobs, folder)) is not None:
            save(figure, folder, "sweep")


def write_sweep(folder: Path) -> None:
    """Write sweep.csv, a line for each strategy of each job, and sweep.md, a line for all seeds.

    The columns before the strategy are the configuration's keys in which the jobs differ. Jobs
    without results are left out. Where processes write at once, whoever is last has read them all.

    Args:
        folder: with a folder for each job.
    """
    written: dict[Path, int] | None = None
    while (found := {path: path.stat().st_mtime_ns for path in summaries_in(folder)}) != written:
        written = found
        if jobs := read_jobs(folder):
            _write(jobs, folder)


def _write(jobs: Sequence[Job], folder: Path) -> None:
    rows = rows_of(jobs)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_csv(folder / "sweep.csv", [{name: row.get(name, "") for name in columns} for row in rows])
    lines = [*markdown_table(_over_seeds(jobs)), "", _caption(job.metric for job in jobs), ""]
    write_whole(folder / "sweep.md", "\n".join(lines))


def write_sweep_page(folder: Path, *, ended: bool) -> None:
    """Write report.html, if there are results.

    Args:
        folder: with a folder for each job.
        ended: whether no more jobs are to come; else a browser looks again.
    """
    if jobs := read_jobs(folder):
        table, caption = _over_seeds(jobs), _caption(job.metric for job in jobs)
        write_page(folder, lambda: sweep_page(folder, jobs, table, caption, ended=ended))


def _over_seeds(jobs: Sequence[Job]) -> list[list[str]]:
    """Return a header, and a row for each strategy and setting but the seed."""
    rows, metrics = rows_of(jobs), {job.name: job.metric for job in jobs}
    targets = [name for name in rows[0] if name.startswith("rounds_to_")]
    groups = by_setting(rows)
    header = [*keys_of(rows), "seeds", "best", "final"]
    table = [[*header, *(f"to {_target(t, metrics.values())}" for t in targets)]]
    for setting, by_seed in groups.items():
        members = list(by_seed.values())
        metric = metrics[str(members[0]["job"])]
        of_metric = [_mean(members, n, metric.scale, metric.form) for n in ("best", "final")]
        rounds = [_mean(members, target) for target in targets]
        table.append([*setting, str(len(members)), *of_metric, *rounds])
    return table


def _target(column: str, metrics: Iterable[Metric]) -> str:
    value = float(column.rpartition("_")[2])
    (written, *others) = dict.fromkeys(metric.target(value) for metric in metrics)
    return f"{value:g}" if others else written


def _mean(
    rows: Sequence[Mapping[str, object]], name: str, scale: float = 1.0, form: str = ".1f"
) -> str:
    values = [row.get(name, "") for row in rows]
    if "" in values:
        return "-"
    return mean_and_deviation([scale * float(str(value)) for value in values], form)
