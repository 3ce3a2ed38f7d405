"""A comparison's files: a table, the plot, the configuration, and what they were made of."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import OmegaConf
from rich import box
from rich.table import Table

from fedcurv.simulations.circumstances import circumstances
from fedcurv.simulations.server import History
from fedcurv.strategies.rounds import RoundRecord

_CAPTION = (
    "Test accuracy in %; rounds until it first reached a target; all clients' payload per round."
)

# of a run that nobody has evaluated yet
_UNKNOWN = float("nan")


@dataclass(frozen=True)
class Summary:
    """One strategy's line in the comparison.

    Attributes:
        strategy: its name in the configuration.
        best: highest test accuracy over the rounds, in [0, 1].
        final: test accuracy after the last round.
        rounds_to: by target accuracy, the first round that reached it, or None.
        bytes_down: payload sent to clients per round, mean over rounds.
        bytes_up: payload received from clients per round, mean over rounds.
        seconds: wall-clock time of all rounds.
        failures: replies that were errors, refused or missing.
    """

    strategy: str
    best: float
    final: float
    rounds_to: Mapping[float, int | None]
    bytes_down: float
    bytes_up: float
    seconds: float
    failures: int


def evaluation(record: RoundRecord) -> Mapping[str, object]:
    """Return a round's evaluation: the server's, or where it has no test set the clients'."""
    return record.server_metrics or record.client_metrics


def accuracies(history: History) -> dict[int, float]:
    """Return the test accuracy by round; 0 is before training."""
    return {
        record.server_round: float(str(evaluation(record)["accuracy"]))
        for record in history.rounds
        if "accuracy" in evaluation(record)
    }


def summarise(history: History, targets: Sequence[float]) -> Summary:
    """Return the line of one strategy."""
    accuracy = accuracies(history)
    clients = [client for record in history.rounds for client in record.clients]
    num_rounds = max(1, sum(record.server_round > 0 for record in history.rounds))
    return Summary(
        strategy=history.strategy,
        best=max(accuracy.values(), default=_UNKNOWN),
        final=accuracy[max(accuracy)] if accuracy else _UNKNOWN,
        rounds_to={
            target: next((r for r, a in accuracy.items() if a >= target), None)
            for target in targets
        },
        bytes_down=sum(client.bytes_down for client in clients) / num_rounds,
        bytes_up=sum(client.bytes_up for client in clients) / num_rounds,
        seconds=sum(record.seconds for record in history.rounds),
        failures=sum(client.status != "ok" for client in clients),
    )


def write_report(
    folder: Path, histories: Sequence[History], config: dict[str, Any], command: str
) -> list[Summary]:
    """Write all files into an existing folder and return the summaries.

    They are summary.md, accuracy.png, config.yaml, and as CSV a line for each round (metrics), for
    each client in a round (clients) and for each record that travelled in a round (traffic).

    Args:
        folder: existing.
        histories: at least one.
        config: resolved.
        command: by which the run was started.
    """
    summaries = [summarise(history, config["target_accuracies"]) for history in histories]
    write_summary(folder, _cells(summaries), _CAPTION, config, command)
    write_csv(folder / "metrics.csv", _round_rows(histories))
    write_csv(folder / "clients.csv", _client_rows(histories))
    write_csv(folder / "traffic.csv", _traffic_rows(histories))
    accuracy_figure(histories).savefig(folder / "accuracy.png", dpi=150)
    return summaries


def table(summaries: Sequence[Summary]) -> Table:
    """Return the comparison for the terminal."""
    view = Table(
        caption=_CAPTION,
        box=box.SIMPLE,
        pad_edge=False,
        collapse_padding=True,
        caption_justify="left",
    )
    header, *rows = _cells(summaries)
    view.add_column(header[0], no_wrap=True)
    for name in header[1:]:
        view.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        view.add_row(*row)
    return view


def accuracy_figure(histories: Sequence[History]) -> Figure:
    """Return test accuracy over rounds and over the bytes that travelled."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    over_rounds, over_bytes = figure.subplots(1, 2, sharey=True)
    for history in histories:
        accuracy = {r: 100 * a for r, a in accuracies(history).items()}
        totals = accumulate(
            sum(c.bytes_down + c.bytes_up for c in record.clients) / 1e6
            for record in history.rounds
        )
        traffic = dict(zip((r.server_round for r in history.rounds), totals, strict=True))
        over_rounds.plot(list(accuracy), list(accuracy.values()), label=history.strategy)
        over_bytes.plot(
            [traffic[r] for r in accuracy], list(accuracy.values()), label=history.strategy
        )
    over_rounds.set(xlabel="round", ylabel="test accuracy (%)")
    over_bytes.set(xlabel="sent and received by all clients (MB)")
    over_rounds.legend()
    for axes in (over_rounds, over_bytes):
        axes.grid(alpha=0.3)
    return figure


def _cells(summaries: Sequence[Summary]) -> list[list[str]]:
    targets = list(summaries[0].rounds_to)
    header = ["strategy", "best", "final"]
    header += [f"to {100 * target:g} %" for target in targets]
    header += ["MB down", "MB up", "s", "lost"]
    rows = [header]
    for s in summaries:
        reached = ["-" if s.rounds_to[t] is None else str(s.rounds_to[t]) for t in targets]
        rows.append(
            [
                s.strategy,
                f"{100 * s.best:.2f}",
                f"{100 * s.final:.2f}",
                *reached,
                f"{s.bytes_down / 1e6:.2f}",
                f"{s.bytes_up / 1e6:.2f}",
                f"{s.seconds:.1f}",
                str(s.failures),
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
    # where the data lay on this machine is no part of the result
    shown = {**config, "data": {k: v for k, v in config["data"].items() if k != "root"}}
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(shown)))
    lines = [*markdown_table(rows), "", caption, "", *circumstances(command), ""]
    (folder / "summary.md").write_text("\n".join(lines), encoding="utf-8")


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, of which the first row is the header."""
    header, *others = rows
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *others)]


def _round_rows(histories: Sequence[History]) -> list[dict[str, object]]:
    return [
        {
            "strategy": history.strategy,
            "round": record.server_round,
            "accuracy": evaluation(record).get("accuracy", ""),
            "loss": evaluation(record).get("loss", ""),
            "train_loss": record.train_metrics.get("train-loss", ""),
            "clients_ok": sum(c.status == "ok" for c in record.clients),
            "clients_failed": sum(c.status != "ok" for c in record.clients),
            "bytes_down": sum(c.bytes_down for c in record.clients),
            "bytes_up": sum(c.bytes_up for c in record.clients),
            "seconds": round(record.seconds, 4),
        }
        for history in histories
        for record in history.rounds
    ]


def _client_rows(histories: Sequence[History]) -> list[dict[str, object]]:
    return [
        {
            "strategy": history.strategy,
            "round": record.server_round,
            "client": client.client_id,
            "status": client.status,
            "reason": client.reason.strip().splitlines()[-1] if client.reason else "",
            "bytes_down": client.bytes_down,
            "bytes_up": client.bytes_up,
            **{
                name.replace("-", "_"): client.metrics.get(name, "")
                for name in (
                    "num-examples",
                    "label-noise",
                    "train-loss",
                    "penalty",
                    "train-seconds",
                    "fisher-seconds",
                )
            },
        }
        for history in histories
        for record in history.rounds
        for client in record.clients
    ]


def _traffic_rows(histories: Sequence[History]) -> list[dict[str, object]]:
    return [
        {
            "strategy": history.strategy,
            "round": record.server_round,
            "record": name,
            "bytes_down": sum(client.down.get(name, 0) for client in record.clients),
            "bytes_up": sum(client.up.get(name, 0) for client in record.clients),
        }
        for history in histories
        for record in history.rounds
        for name in dict.fromkeys(n for c in record.clients for n in (*c.down, *c.up))
    ]


def mean_and_deviation(values: Sequence[float]) -> str:
    """Return mean ± standard deviation for a table, or the only value."""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.1f}"


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write at least one row; all have the same columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
