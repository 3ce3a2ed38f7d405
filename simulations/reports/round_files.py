"""CSV files of a comparison that grow round by round: metrics, clients and traffic."""

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedcurv.errors import error_in
from fedcurv.private_files import name_file
from fedcurv.simulations.parts.tasks import metric_of
from fedcurv.simulations.reports.history import History
from fedcurv.strategies.loop.rounds import RoundRecord


def evaluation(record: RoundRecord) -> Mapping[str, object]:
    """Return a round's evaluation: the server's, or where it has no test set the clients'."""
    return record.server_metrics or record.client_metrics


class RoundFiles:
    """metrics.csv, clients.csv and traffic.csv, a round at a time.

    The files have a line for each round, for each client in a round and for each record that
    travelled in a round.

    Args:
        folder: existing.
        config: resolved; its seed is in every line, and its metric is a column of metrics.csv.
        overrides: of a sweep's job, by key; they are in every line, too.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], overrides: Mapping[str, str]
    ) -> None:
        self._folder, self._metric = folder, metric_of(config).name
        self._more = {"seed": config["seed"], **overrides}

    def write(self, histories: Sequence[History]) -> None:
        """Write the files anew."""
        for name, rows_of in _ROWS.items():
            rows = [
                self.row(row) for history in histories for row in rows_of(history, self._metric)
            ]
            if rows:
                write_csv(self._folder / name, rows)

    def add(self, history: History) -> None:
        """Add a history's last round."""
        last = replace(history, rounds=history.rounds[-1:])
        for name, rows_of in _ROWS.items():
            rows = [self.row(row) for row in rows_of(last, self._metric)]
            path = self._folder / name
            if rows and not path.exists():
                write_csv(path, rows)
            elif rows:
                write_csv(path, rows, append=True)

    def row(self, row: Mapping[str, object]) -> dict[str, object]:
        """Return a line with the seed and the overrides, of which none takes its own's place."""
        return {**row, **{key: value for key, value in self._more.items() if key not in row}}


def round_rows(history: History, metric: str) -> list[dict[str, object]]:
    """Return the lines of metrics.csv.

    Args:
        history: of a strategy.
        metric: by which it is judged; the other tables do not depend on it.
    """
    return [
        {
            "strategy": history.strategy,
            "round": record.server_round,
            metric: evaluation(record).get(metric, ""),
            "loss": evaluation(record).get("loss", ""),
            "train_loss": record.train_metrics.get("train-loss", ""),
            "clients_ok": sum(c.status == "ok" for c in record.clients),
            "clients_failed": sum(c.status != "ok" for c in record.clients),
            "bytes_down": sum(c.bytes_down for c in record.clients),
            "bytes_up": sum(c.bytes_up for c in record.clients),
            "seconds": round(record.seconds, 4),
            # of all that trained
            "lr": next((c.metrics["lr"] for c in record.clients if "lr" in c.metrics), ""),
            "penalty": record.train_metrics.get("penalty", ""),
            "strength": next((c.strength for c in record.clients if c.strength is not None), ""),
            "epsilon": record.train_metrics.get("epsilon", ""),
        }
        for record in history.rounds
    ]


def client_rows(history: History, metric: str) -> list[dict[str, object]]:
    """Return the lines of clients.csv."""
    return [
        {
            "strategy": history.strategy,
            "round": record.server_round,
            "client": client.client_id,
            "status": client.status,
            "reason": error_in(client.reason),
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
                    "lr",
                )
            },
        }
        for record in history.rounds
        for client in record.clients
    ]


def traffic_rows(history: History, metric: str) -> list[dict[str, object]]:
    """Return the lines of traffic.csv."""
    return [
        {
            "strategy": history.strategy,
            "round": record.server_round,
            "record": name,
            "bytes_down": sum(client.down.get(name, 0) for client in record.clients),
            "bytes_up": sum(client.up.get(name, 0) for client in record.clients),
        }
        for record in history.rounds
        for name in dict.fromkeys(n for c in record.clients for n in (*c.down, *c.up))
    ]


# by file
_ROWS: dict[str, Callable[[History, str], list[dict[str, object]]]] = {
    "metrics.csv": round_rows,
    "clients.csv": client_rows,
    "traffic.csv": traffic_rows,
}


def write_csv(path: Path, rows: Sequence[Mapping[str, object]], *, append: bool = False) -> None:
    """Write at least one row; all have the same columns.

    What is no text, such as an undecodable file name in an error, is written escaped.
    """
    lines = io.StringIO()
    writer = csv.DictWriter(lines, fieldnames=list(rows[0]))
    if not append:
        writer.writeheader()
    writer.writerows(rows)
    if not append:
        write_whole(path, lines.getvalue())
        return
    try:
        with path.open("a", newline="", encoding="utf-8", errors="backslashreplace") as file:
            file.write(lines.getvalue())
    except OSError as error:
        name_file(error, path)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file, in the place of which its readers find the one before until it is done."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = None
            name_file(error, path)
        raise
