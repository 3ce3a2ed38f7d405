"""Saved simulations, to go on with: finished rounds, the server's state, and the clients'."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from fedcurv.archive import read_archive, write_archive
from fedcurv.private_files import replaced
from fedcurv.simulations.reports.history import History
from fedcurv.simulations.runners.local import LocalGrid
from fedcurv.strategies import JsonLines
from fedcurv.strategies.flower_private import packed_records, unpacked_records
from fedcurv.strategies.loop.rounds import RoundRecord

CHECKPOINT_FILE = "checkpoint.npz"
_FOLDER = "unfinished"
_ROUNDS, _ENDED, _CLIENTS = "rounds.jsonl", "ended.txt", "clients-{}.npz"


def folder_of_progress(folder: Path) -> Path:
    """Return where an output folder keeps what an unfinished run needs to go on."""
    return folder / _FOLDER


class SavedStrategy:
    """What is kept of one strategy's run; removed with the whole folder when all have ended.

    Args:
        folder: of the simulation's output.
        name: of the strategy.
        every: rounds from one checkpoint of the server to the next.
    """

    def __init__(self, folder: Path, name: str, every: int = 1) -> None:
        self.name, self._every = name, every
        self.folder = folder_of_progress(folder) / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lines = JsonLines(self.folder / _ROUNDS)

    def history(self) -> History:
        """Return the rounds so far; all of them, if the run has ended."""
        history = History(self.name)
        if (self.folder / _ROUNDS).exists():
            history.rounds = [_with_nan(r) for r in JsonLines.read(self.folder / _ROUNDS)]
        if self.has_ended():
            history.failure = (self.folder / _ENDED).read_text(encoding="utf-8")
        return history

    def has_ended(self) -> bool:
        """Return whether the run has come to its end, or to one before it."""
        return (self.folder / _ENDED).exists()

    def saved_round(self) -> int | None:
        """Return the last round whose state is saved, or None if a run must begin anew.

        A checkpoint whose round was not noted any more, because the process was killed in between,
        is removed: what came of that round is not known.
        """
        checkpoint = self.folder / CHECKPOINT_FILE
        if not checkpoint.exists():
            return None
        server_round = int(read_archive(checkpoint)[0]["server-round"])
        if server_round in [record.server_round for record in self.history().rounds]:
            return server_round
        checkpoint.unlink()
        return None

    def note(self, record: RoundRecord) -> None:
        """Add a round."""
        self._lines(record)

    def end(self, failure: str) -> None:
        """Note that nothing more is to be done, and forget what would be needed to go on."""
        with replaced(self.folder / _ENDED) as file:
            file.write(failure.encode())
        for path in self.folder.glob("*.npz"):
            path.unlink()

    def save_clients(self, grid: Grid, server_round: int) -> None:
        """Save every client's state after a round, before the server's state is saved, if it is.

        That of the checkpoint before stays until the next one: the server may be killed before it
        has saved its own.
        """
        if not isinstance(grid, LocalGrid) or server_round % self._every:
            return
        states = {
            str(node_id): np.frombuffer(packed_records(context.state), dtype=np.uint8)
            for node_id, context in grid.contexts.items()
            if context.state
        }
        if states:
            write_archive(self._clients(server_round), {}, states)
        for path in self.folder.glob(_CLIENTS.format("*")):
            if path not in (self._clients(server_round), self._clients(server_round - self._every)):
                path.unlink()

    def restore_clients(self, grid: Grid) -> None:
        """Give the clients back what they knew after the last saved round."""
        server_round = self.saved_round()
        if server_round is None or not isinstance(grid, LocalGrid):
            return
        if not self._clients(server_round).exists():
            return  # they had nothing to remember
        _, states = read_archive(self._clients(server_round))
        for node_id, packed in states.items():
            grid.contexts[int(node_id)].state = unpacked_records(packed.tobytes())

    def _clients(self, server_round: int) -> Path:
        return self.folder / _CLIENTS.format(server_round)


def forget(folder: Path) -> None:
    """Remove what an unfinished run needs to go on."""
    shutil.rmtree(folder_of_progress(folder), ignore_errors=True)


def _with_nan(record: RoundRecord) -> RoundRecord:
    """Return a record with NaN where a line of JSON had no word for it."""
    return replace(
        record,
        clients=[replace(client, metrics=_numbers(client.metrics)) for client in record.clients],
        train_metrics=_numbers(record.train_metrics),
        client_metrics=_numbers(record.client_metrics),
        server_metrics=_numbers(record.server_metrics),
    )


def _numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in metrics.items()}
