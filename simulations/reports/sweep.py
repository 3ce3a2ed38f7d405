"""Tables and picture over the jobs of a sweep: sweep.csv, sweep.md, sweep.png."""

import csv
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from hydra.types import RunMode
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from omegaconf import DictConfig, OmegaConf

from fedcurv.simulations.parts.metrics import Metric
from fedcurv.simulations.parts.tasks import metric_of
from fedcurv.simulations.reports.comparison import markdown_table, mean_and_deviation
from fedcurv.simulations.reports.pictures import Curve, draw, legend_below, save
from fedcurv.simulations.reports.round_files import write_csv, write_whole
from fedcurv.simulations.reports.words import in_words


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
        """Write sweep.csv and sweep.md into the sweep's folder, if there is one."""
        if config.hydra.mode == RunMode.MULTIRUN:
            write_sweep(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write the tables, and the picture over all jobs as sweep.png, sweep.pdf, sweep.svg."""
        folder = Path(config.hydra.sweep.dir)
        write_sweep(folder)
        if (jobs := read_jobs(folder)) and (figure := sweep_figure(jobs, folder)) is not None:
            save(figure, folder, "sweep")


# more on one plot cannot be told apart
_MOST_CURVES = 10

# columns of summary.csv
_RESULTS = ("best", "final", "bytes_down", "bytes_up", "seconds", "lost", "rounds", "failure")


@dataclass(frozen=True)
class Job:
    """One job's files.

    Attributes:
        name: of its folder.
        settings: what its configuration sets, by dotted key.
        lines: of its summary.csv, one for each strategy.
        metric: that they are judged by.
    """

    name: str
    settings: Mapping[str, Any]
    lines: Sequence[Mapping[str, str]]
    metric: Metric


def write_sweep(folder: Path) -> None:
    """Write sweep.csv, a line for each strategy of each job, and sweep.md, a line for all seeds.

    The columns before the strategy are the configuration's keys in which the jobs differ. Jobs
    without results are left out. Where processes write at once, whoever is last has read them all.

    Args:
        folder: with a folder for each job.
    """
    written: dict[Path, int] | None = None
    while (found := {path: path.stat().st_mtime_ns for path in _summaries(folder)}) != written:
        written = found
        if jobs := read_jobs(folder):
            _write(jobs, folder)


def _write(jobs: Sequence[Job], folder: Path) -> None:
    rows = _rows_of(jobs)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_csv(folder / "sweep.csv", [{name: row.get(name, "") for name in columns} for row in rows])
    metrics = {job.name: job.metric for job in jobs}
    lines = [*markdown_table(_over_seeds(rows, metrics)), "", _caption(metrics.values()), ""]
    write_whole(folder / "sweep.md", "\n".join(lines))


def sweep_figure(jobs: Sequence[Job], folder: Path) -> Figure | None:
    """Return the metric over rounds of each strategy and setting: mean and range over the seeds.

    Args:
        jobs: that are judged by one metric; for others, or where no job has a curve, there is None.
        folder: of the jobs' folders.
    """
    metrics = dict.fromkeys(job.metric for job in jobs)
    if len(metrics) > 1:
        return None
    (metric,) = metrics
    rows = _rows_of(jobs)
    keys = _keys(rows)
    settings = {setting: list(by_seed.values()) for setting, by_seed in _by_setting(rows).items()}
    found = [
        _curve(dict(zip(keys, setting, strict=True)), own, metric, folder)
        for setting, own in settings.items()
    ]
    curves = [curve for curve in found if curve is not None]
    if not curves:
        return None
    best = sorted(range(len(curves)), key=lambda index: -metric.sign * curves[index].y[-1])
    shown = [curves[index] for index in sorted(best[:_MOST_CURVES])]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for number, curve in enumerate(shown):
        draw(axes, curve, number)
    if len(shown) < len(curves):
        axes.set_title(f"the {len(shown)} of {len(curves)} that end best", fontsize="medium")
    axes.set(xlabel="round", ylabel=metric.axis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    legend_below(figure, 2)
    return figure


def _curve(
    setting: Mapping[str, str], rows: Sequence[Mapping[str, object]], metric: Metric, folder: Path
) -> Curve | None:
    """Return the mean and the range over some runs; None if one has no curve or diverged."""
    runs = [_by_round(folder / str(row["job"]), str(row["strategy"]), metric) for row in rows]
    rounds = sorted(set.intersection(*(set(run) for run in runs)))
    if not rounds or any(row.get("failure") for row in rows):
        return None
    values = [[metric.scale * run[number] for run in runs] for number in rounds]
    said = {key: value for key, value in setting.items() if value and key != "strategy"}
    label = ", ".join(filter(None, (setting["strategy"], in_words(said))))
    means = [statistics.mean(of_round) for of_round in values]
    if len(runs) == 1:
        return Curve(label, rounds, means)
    return Curve(label, rounds, means, [min(v) for v in values], [max(v) for v in values])


def _by_round(folder: Path, strategy: str, metric: Metric) -> dict[int, float]:
    """Return a run's values by round, as its metrics.csv has them."""
    file = folder / "metrics.csv"
    if not file.exists():
        return {}
    with file.open(newline="", encoding="utf-8") as lines:
        return {
            int(line["round"]): float(line[metric.name])
            for line in csv.DictReader(lines)
            if line["strategy"] == strategy and line.get(metric.name)
        }


def read_jobs(folder: Path) -> list[Job]:
    """Return the jobs that have results, in order."""
    return [_read_job(path.parent) for path in _summaries(folder)]


def _summaries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/summary.csv"), key=_in_order)


def _rows_of(jobs: Sequence[Job]) -> list[dict[str, object]]:
    """Return the lines of sweep.csv."""
    varied = _varied_keys(jobs)
    return [row for job in jobs for row in _rows(job, varied)]


def _in_order(summary: Path) -> tuple[int, str]:
    name = summary.parent.name
    return (int(name), "") if name.isdecimal() else (-1, name)


def _read_job(folder: Path) -> Job:
    with (folder / "summary.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert isinstance(config, dict)
    settings = {str(key): value for key, value in config.items()}
    return Job(folder.name, dict(_flat(settings)), lines, metric_of(settings))


def _flat(config: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _varied_keys(jobs: Sequence[Job]) -> list[str]:
    """Return the keys with several values; a job without a strategy says nothing of its keys."""
    keys = dict.fromkeys(key for job in jobs for key in job.settings)
    return [
        key
        for key in keys
        if len({str(job.settings[key]) for job in jobs if key in job.settings}) > 1
    ]


def _rows(job: Job, varied: Sequence[str]) -> Iterator[dict[str, object]]:
    for line in job.lines:
        strategy = line["strategy"]
        # another strategy's settings are not this one's
        others = [k for k in varied if k.startswith("strategy.") and k.split(".")[1] != strategy]
        yield {
            "job": job.name,
            **{key: "" if key in others else job.settings.get(key, "") for key in varied},
            "strategy": strategy,
            # the rest of the line says once more what the job was given
            **{name: value for name, value in line.items() if _is_a_result(name)},
        }


def _is_a_result(column: str) -> bool:
    return column in _RESULTS or column.startswith("rounds_to_")


def _over_seeds(
    rows: Sequence[Mapping[str, object]], metrics: Mapping[str, Metric]
) -> list[list[str]]:
    """Return a header, and a row for each strategy and setting but the seed.

    Args:
        rows: of sweep.csv.
        metrics: by job.
    """
    targets = [name for name in rows[0] if name.startswith("rounds_to_")]
    groups = _by_setting(rows)
    header = [*_keys(rows), "seeds", "best", "final"]
    table = [[*header, *(f"to {_target(t, metrics.values())}" for t in targets)]]
    for setting, by_seed in groups.items():
        members = list(by_seed.values())
        metric = metrics[str(members[0]["job"])]
        of_metric = [_mean(members, n, metric.scale, metric.form) for n in ("best", "final")]
        rounds = [_mean(members, target) for target in targets]
        table.append([*setting, str(len(members)), *of_metric, *rounds])
    return table


def _keys(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the columns that tell settings apart: the varied keys but the seed, and the strategy.

    Args:
        rows: of sweep.csv.
    """
    names = list(rows[0])
    return [name for name in names[1 : names.index("strategy") + 1] if name != "seed"]


def _by_setting(
    rows: Sequence[Mapping[str, object]],
) -> dict[tuple[str, ...], dict[object, Mapping[str, object]]]:
    """Return by setting, and in it by seed, the lines of sweep.csv."""
    keys = _keys(rows)
    groups: dict[tuple[str, ...], dict[object, Mapping[str, object]]] = {}
    for row in rows:
        of_setting = groups.setdefault(tuple(str(row.get(key, "")) for key in keys), {})
        # a strategy that a varied key does not concern runs again with the same seed in each job
        of_setting.setdefault(row.get("seed"), row)
    return groups


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
