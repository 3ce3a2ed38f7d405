"""Watchers for ``start(on_round=...)``, besides functions of one's own."""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from fedcurv.private_files import name_file, open_private, private_folder
from fedcurv.strategies.loop.rounds import ClientRecord, RoundRecord
from fedcurv.strategies.wire.arrays import reason_of

OnRound = Callable[[RoundRecord], object]


def called_in_rounds(on_round: OnRound | Sequence[OnRound]) -> Sequence[OnRound]:
    """Return the functions to call after every round, of one or of several.

    Raises:
        TypeError: for what cannot be called.
    """
    functions = [on_round] if callable(on_round) else on_round
    if not isinstance(functions, Sequence) or not all(map(callable, functions)):
        raise TypeError(
            "on_round: expected a function of a round's record, or a list of them, got "
            f"{on_round!r:.80}; leave it out for none"
        )
    return functions


class JsonLines:
    """Writes a line of JSON for each round, with every client's part, as soon as it is over.

    A resumed run appends. Numbers that are not finite become null, which JSON has no other word
    for.

    Args:
        path: of the file, for its owner alone; its folder, likewise, is made if it is missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        private_folder(self._path.parent)

    def __call__(self, record: RoundRecord) -> None:
        """Append a round."""
        line = json.dumps(_plain(asdict(record)), allow_nan=False)
        begin = "\n" if _is_cut_off(self._path) else ""
        try:
            with open_private(self._path, "ab") as file:
                file.write(f"{begin}{line}\n".encode())
        except OSError as error:
            name_file(error, self._path)
            raise

    @staticmethod
    def read(path: str | os.PathLike[str]) -> list[RoundRecord]:
        """Return the rounds of a file, in order; of one that was repeated, the last.

        A line that was cut off when its writer was killed is left out.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if a line is no round.
        """
        rounds: dict[int, RoundRecord] = {}
        for number, line in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
            if not line:
                continue
            try:
                record = _round_in(line)
            except json.JSONDecodeError:
                continue
            except Exception as error:  # whatever a damaged line makes of the reader
                raise ValueError(
                    f"{path}, line {number}: expected a round: {reason_of(error)}"
                ) from error
            rounds[record.server_round] = record
        return [rounds[server_round] for server_round in sorted(rounds)]


def _round_in(line: bytes) -> RoundRecord:
    table = json.loads(line.decode("utf-8"))
    clients = tuple(ClientRecord(**client) for client in table.pop("clients"))
    record = RoundRecord(clients=clients, **table)
    _require_types(record, record.clients)
    return record


def _require_types(record: RoundRecord, clients: Iterable[ClientRecord]) -> None:
    texts = [t for c in clients for t in (c.client_id, c.status, c.reason)]
    tables = [record.train_metrics, record.client_metrics, record.server_metrics]
    tables += [record.refused_evaluations, record.lost_evaluations]
    tables += [t for c in clients for t in (c.down, c.up, c.metrics)]
    sizes = [size for c in clients for table in (c.down, c.up) for size in dict(table).values()]
    if (
        type(record.server_round) is not int
        or not isinstance(record.seconds, int | float | None)
        or not all(isinstance(text, str) for text in texts)
        or not all(isinstance(table, dict) for table in tables)
        or not all(type(size) is int for size in sizes)
        or not all(isinstance(c.strength, int | float | None) for c in clients)
    ):
        raise ValueError("a value is of a wrong type")


def _is_cut_off(path: Path) -> bool:
    """Return whether the last line of a file has no end, as its writer was killed."""
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # there is none, or it cannot be read; then it says so when it is opened
        return False


class Log(Protocol):
    """How experiment trackers take numbers."""

    def __call__(self, numbers: dict[str, float], /, *, step: int) -> object:
        """Take the numbers of a step."""
        ...


class ScalarLog:
    """Hands every round's numbers to an experiment tracker; see :func:`scalars`.

    Args:
        log: such as ``mlflow.log_metrics``, or ``wandb.init(...).log``.
    """

    def __init__(self, log: Log) -> None:
        self._log = log

    def __call__(self, record: RoundRecord) -> None:
        """Hand on a round."""
        self._log(scalars(record), step=record.server_round)


class TensorBoard:
    """Writes every round's numbers to a folder for TensorBoard; see :func:`scalars`.

    Args:
        folder: made if it is missing, for its owner alone.

    Raises:
        ImportError: if the package tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "writing for TensorBoard needs its package: pip install tensorboard"
            ) from error
        self._writer: Any = SummaryWriter(str(private_folder(Path(folder))))

    def __call__(self, record: RoundRecord) -> None:
        """Write a round, at once."""
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, record.server_round)
        self._writer.flush()


def scalars(record: RoundRecord) -> dict[str, float]:
    """Return a round's numbers by name: the metrics that are single numbers, and what it took.

    Names begin with ``server/`` (evaluation on the server), ``clients/`` (on the clients),
    ``train/`` (what clients reported of their training) or ``round/``.
    """
    phases = {
        "server": record.server_metrics,
        "clients": record.client_metrics,
        "train": record.train_metrics,
        "round": {
            "seconds": record.seconds,
            "clients-ok": sum(client.status == "ok" for client in record.clients),
            "clients-lost": sum(client.status != "ok" for client in record.clients),
            "megabytes-down": sum(client.bytes_down for client in record.clients) / 1e6,
            "megabytes-up": sum(client.bytes_up for client in record.clients) / 1e6,
        },
    }
    return {
        f"{phase}/{name}": float(value)
        for phase, metrics in phases.items()
        for name, value in metrics.items()
        if isinstance(value, int | float)
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
