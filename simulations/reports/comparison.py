"""A comparison's files: a table, the plot, the configuration, and what they were made of."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich import box
from rich.table import Table

from fedcurv.errors import error_in
from fedcurv.private_files import replaced
from fedcurv.simulations.parts.metrics import ACCURACY, Metric, targets_of
from fedcurv.simulations.parts.tasks import metric_of
from fedcurv.simulations.reports.history import History
from fedcurv.simulations.reports.over_rounds import metric_figure, scores
from fedcurv.simulations.reports.pictures import save
from fedcurv.simulations.reports.provenance import circumstances
from fedcurv.simulations.reports.round_files import RoundFiles, write_csv


def caption_of(metric: Metric) -> str:
    """Return what stands below the comparison's table."""
    return (
        f"Test {metric.label}{metric.in_percent}; rounds until it first reached a target; all "
        "clients' payload per round."
    )


# of a run that nobody has evaluated yet
_UNKNOWN = float("nan")


@dataclass(frozen=True)
class Summary:
    """One strategy's line in the comparison.

    Attributes:
        strategy: its name in the configuration.
        best: the metric's best value on the test set over the rounds, an accuracy in [0, 1].
        final: its value after the last round.
        rounds_to: by target, the first round that reached it, or None.
        bytes_down: payload sent to clients per round, mean over rounds.
        bytes_up: payload received from clients per round, mean over rounds.
        seconds: wall-clock time of all rounds.
        failures: replies that were errors, refused or missing.
        rounds: that were run.
        failure: why there were not more, as when the training diverged; then ``best`` and
            ``final`` are NaN and no target was reached.
        metric: that it is judged by.
    """

    strategy: str
    best: float
    final: float
    rounds_to: Mapping[float, int | None]
    bytes_down: float
    bytes_up: float
    seconds: float
    failures: int
    rounds: int = 0
    failure: str = ""
    metric: Metric = ACCURACY


def summarise(history: History, targets: Sequence[float], metric: Metric = ACCURACY) -> Summary:
    """Return the line of one strategy."""
    values = {} if history.failure else scores(history, metric)
    clients = [client for record in history.rounds for client in record.clients]
    num_rounds = max(1, sum(record.server_round > 0 for record in history.rounds))
    return Summary(
        strategy=history.strategy,
        best=metric.best(values.values(), default=_UNKNOWN),
        final=values[max(values)] if values else _UNKNOWN,
        rounds_to={
            target: next((r for r, v in values.items() if metric.reaches(v, target)), None)
            for target in targets
        },
        bytes_down=sum(client.bytes_down for client in clients) / num_rounds,
        bytes_up=sum(client.bytes_up for client in clients) / num_rounds,
        seconds=sum(record.seconds for record in history.rounds),
        failures=sum(client.status != "ok" for client in clients),
        rounds=max((record.server_round for record in history.rounds), default=0),
        failure=history.failure,
        metric=metric,
    )


def ended_early(summaries: Sequence[Summary], num_rounds: int) -> tuple[str, ...]:
    """Return a line for each strategy whose run did not come to its end."""
    return tuple(
        f"{s.strategy} ended after {s.rounds} of {num_rounds} rounds: {reason(s.failure)}"
        for s in summaries
        if s.failure
    )


def reason(failure: str) -> str:
    """Return what the first line of a failure and the error at its end say, without a traceback."""
    first, _, rest = failure.strip().partition("\n")
    return f"{first.strip()} {error_in(rest)}".strip()


def write_report(
    folder: Path,
    histories: Sequence[History],
    config: dict[str, Any],
    command: str,
    overrides: Mapping[str, str] | None = None,
    *,
    picture: bool = True,
) -> list[Summary]:
    """Write all files into an existing folder and return the summaries.

    They are summary.md and its table as summary.csv, a plot by the metric's name (accuracy.png,
    and the same as PDF and SVG), config.yaml, and what RoundFiles writes.

    Args:
        folder: existing.
        histories: at least one.
        config: resolved.
        command: by which the run was started.
        overrides: of a sweep's job, by key.
        picture: also draw the plot, which takes two seconds.
    """
    metric = metric_of(config)
    targets = targets_of(metric, config)
    summaries = [summarise(history, targets, metric) for history in histories]
    caption = "\n\n".join((caption_of(metric), *ended_early(summaries, config["num_rounds"])))
    write_summary(folder, cells(summaries), caption, config, command)
    files = RoundFiles(folder, config, overrides or {})
    write_csv(folder / "summary.csv", [files.row(summary_row(s)) for s in summaries])
    files.write(histories)
    if picture:
        save(metric_figure(histories, metric, config), folder, metric.name)
    return summaries


def table(summaries: Sequence[Summary]) -> Table:
    """Return the comparison for the terminal."""
    view = Table(
        caption=caption_of(summaries[0].metric),
        box=box.SIMPLE,
        pad_edge=False,
        collapse_padding=True,
        caption_justify="left",
    )
    header, *rows = cells(summaries)
    view.add_column(header[0], no_wrap=True)
    for name in header[1:]:
        view.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        view.add_row(*row)
    return view


def summary_row(summary: Summary) -> dict[str, object]:
    """Return a summary as a line of a CSV file; what is not known is empty."""
    return {
        "strategy": summary.strategy,
        "best": _or_empty(summary.best),
        "final": _or_empty(summary.final),
        **{
            f"rounds_to_{target:g}": "" if reached is None else reached
            for target, reached in summary.rounds_to.items()
        },
        "bytes_down": round(summary.bytes_down),
        "bytes_up": round(summary.bytes_up),
        "seconds": round(summary.seconds, 2),
        "lost": summary.failures,
        "rounds": summary.rounds,
        "failure": reason(summary.failure) if summary.failure else "",
    }


def _or_empty(value: float) -> float | str:
    return "" if math.isnan(value) else round(value, 6)


def cells(summaries: Sequence[Summary]) -> list[list[str]]:
    """Return the comparison's header and rows as text."""
    targets, metric = list(summaries[0].rounds_to), summaries[0].metric
    header = ["strategy", "best", "final"]
    header += [f"to {metric.target(target)}" for target in targets]
    header += ["MB down", "MB up", "s", "lost"]
    some_ended_early = any(s.failure for s in summaries)
    header += ["ended"] if some_ended_early else []
    rows = [header]
    for s in summaries:
        reached = ["-" if s.rounds_to[t] is None else str(s.rounds_to[t]) for t in targets]
        rows.append(
            [
                s.strategy,
                metric.text(s.best),
                metric.text(s.final),
                *reached,
                f"{s.bytes_down / 1e6:.2f}",
                f"{s.bytes_up / 1e6:.2f}",
                f"{s.seconds:.1f}",
                str(s.failures),
                *([f"round {s.rounds}" if s.failure else ""] if some_ended_early else []),
            ]
        )
    return rows


def write_summary(
    folder: Path,
    rows: Sequence[Sequence[str]],
    caption: str,
    config: dict[str, Any],
    command: str,
) -> None:
    """Write summary.md, of a table and how it came about, and config.yaml into a folder.

    Args:
        folder: existing.
        rows: of the table; the first is its header.
        caption: of the table.
        config: resolved.
        command: by which the run was started.
    """
    write_config(folder, config)
    told = [*markdown_table(rows), "", caption, ""]
    number = config["data"].get("test_samples")
    if number is not None and config["data"]["evaluate_on"] == "test":
        told += [f"Evaluated on {number} of the test samples, the same ones for every seed.", ""]
    lines = [*told, *circumstances(command), ""]
    (folder / "summary.md").write_text("\n".join(lines), encoding="utf-8")


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write config.yaml, from which a run can go on or be repeated."""
    with replaced(folder / "config.yaml") as file:
        file.write(config_text(config).encode())


def config_text(config: Mapping[str, Any]) -> str:
    """Return what config.yaml says."""
    # where the data lay on this machine is no part of the result, nor is whether it went on
    shown = {key: value for key, value in config.items() if key != "resume"}
    shown["data"] = {k: v for k, v in config["data"].items() if k != "root"}
    return OmegaConf.to_yaml(OmegaConf.create(shown))


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, of which the first row is the header."""
    header, *others = rows
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *others)]


def mean_and_deviation(values: Sequence[float], form: str = ".1f") -> str:
    """Return mean ± standard deviation for a table, or the only value; - where one is unknown."""
    if not all(map(math.isfinite, values)):
        return "-"
    mean = f"{statistics.mean(values):{form}}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):{form}}"
