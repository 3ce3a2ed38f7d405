"""A sweep's jobs as their folders have them, and which of their settings differ."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedcurv.simulations.parts.metrics import Metric
from fedcurv.simulations.parts.tasks import metric_of

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


def read_jobs(folder: Path) -> list[Job]:
    """Return the jobs that have results, in order."""
    return [_read_job(path.parent) for path in summaries_in(folder)]


def summaries_in(folder: Path) -> list[Path]:
    """Return the tables of the jobs that have results, in order."""
    return sorted(folder.glob("*/summary.csv"), key=_in_order)


def rows_of(jobs: Sequence[Job]) -> list[dict[str, object]]:
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


def keys_of(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the columns that tell settings apart: the varied keys but the seed, and the strategy.

    Args:
        rows: of sweep.csv.
    """
    names = list(rows[0])
    return [name for name in names[1 : names.index("strategy") + 1] if name != "seed"]


def by_setting(
    rows: Sequence[Mapping[str, object]],
) -> dict[tuple[str, ...], dict[object, Mapping[str, object]]]:
    """Return by setting, and in it by seed, the lines of sweep.csv."""
    keys = keys_of(rows)
    groups: dict[tuple[str, ...], dict[object, Mapping[str, object]]] = {}
    for row in rows:
        of_setting = groups.setdefault(tuple(str(row.get(key, "")) for key in keys), {})
        # a strategy that a varied key does not concern runs again with the same seed in each job
        of_setting.setdefault(row.get("seed"), row)
    return groups
