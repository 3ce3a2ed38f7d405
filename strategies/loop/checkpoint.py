"""The server's state after a round, in one file, and back: model, strategy, results."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from fedcurv.archive import read_archive, write_archive
from fedcurv.curvature import require_same_shapes, shapes_of
from fedcurv.private_files import locked
from fedcurv.strategies.loop.strategy_state import (
    learned,
    load_learned,
    name_of,
    plain_values,
    with_inner,
)

_FILE, _LOCK = "checkpoint.npz", ".checkpoint.lock"
# of the file's form: 1 had no number, and knew nothing of strategies inside others; 2 had other
# names
_VERSION = 3
_HISTORIES = (
    "train_metrics_clientapp",
    "evaluate_metrics_clientapp",
    "evaluate_metrics_serverapp",
)


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        server_round: the last round that is complete; 0 before the first.
        result: of all rounds so far; its arrays are the model.
    """

    server_round: int
    result: Result


@runtime_checkable
class ToldOfCheckpoints(Protocol):
    """A strategy that must know, before the first round, that a later run may go on from it."""

    def will_be_saved(self) -> None:
        """Learn it; every call of ``state_dict`` from now on is a checkpoint."""
        ...


@runtime_checkable
class SavesEachRound(Protocol):
    """A strategy that must remember every round, as what it released cannot be taken back.

    Attributes:
        saves_each_round: whether that is so.
    """

    saves_each_round: bool


class Checkpoint:
    """Saves and restores one run below a folder.

    The file, and the folder if it is made, are for their owner alone. Every strategy that takes
    part, also one inside another, is told that it is going to be saved.

    Args:
        folder: made at the first save.
        strategy: as it was constructed, before it has seen a round.
        every: rounds from one save to the next.

    Raises:
        ValueError: if a strategy must save more often.
    """

    def __init__(self, folder: str | os.PathLike[str], strategy: Strategy, every: int = 1) -> None:
        eager = [one for one in with_inner(strategy) if _saves_each_round(one)]
        if eager and every != 1:
            raise ValueError(
                f"expected checkpoint_every=1 with {type(eager[0]).__name__}, got {every}: a "
                "resume repeats the rounds since, and only one of their two releases of clients' "
                "data is counted; leave it out"
            )
        self._saves_each_round = bool(eager)
        self.path = Path(folder) / _FILE
        self._strategy = strategy
        self._at_first = plain_values(strategy)
        for one in with_inner(strategy):
            if isinstance(one, ToldOfCheckpoints):
                one.will_be_saved()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other servers out of the folder, for as long as this process lives at most.

        Raises:
            BlockingIOError: if another server uses it.
            OSError: if the folder cannot be written.
        """
        with locked(self.path.with_name(_LOCK)) as got:
            if not got:
                raise BlockingIOError(
                    f"another server that is running uses {self.path.parent}; wait for its end, or "
                    "choose another folder"
                )
            yield

    def save(self, progress: Progress) -> None:
        """Replace the checkpoint, atomically.

        Raises:
            OSError: if the folder cannot be written; the old checkpoint is untouched.
        """
        leaves: list[NDArray[Any]] = []
        header = {
            "version": _VERSION,
            "server-round": progress.server_round,
            "strategy": name_of(self._strategy),
            "model": _pack(progress.result.arrays, leaves),
            "state": _pack(learned(self._strategy, self._at_first), leaves),
            "histories": {
                name: {str(r): dict(m) for r, m in getattr(progress.result, name).items()}
                for name in _HISTORIES
            },
        }
        write_archive(self.path, header, {f"array-{i}": leaf for i, leaf in enumerate(leaves)})

    def save_released(self, progress: Progress) -> None:
        """Save before anybody sees the round's model, where the strategy must remember that."""
        if self._saves_each_round:
            self.save(progress)

    def restore(self, given: ArrayRecord | None = None) -> Progress:
        """Put the strategy into the state that was saved and return the rest of it.

        Args:
            given: a model, whose names and shapes the one in the file must have.

        Raises:
            FileNotFoundError: if nothing was saved.
            ValueError: if the file is damaged, of another version, another strategy's or another
                model's; the strategy is as it was.
        """
        header, arrays = read_archive(self.path)
        expected = name_of(self._strategy)
        if header.get("version") != _VERSION:
            raise ValueError(
                f"{self.path} is a checkpoint of version {str(header.get('version', 1))[:20]}, "
                f"expected {_VERSION}; end that run with the fedcurv that began it, or choose "
                "another folder"
            )
        if header.get("strategy") != expected:
            raise ValueError(
                f"{self.path} is the checkpoint of {str(header.get('strategy'))[:100]}, expected "
                f"one of {expected}; choose another folder"
            )
        with _readable(self.path):
            progress = _progress(header, arrays)
        if given is not None:
            _require_same_model(given, progress.result.arrays, self.path)
        with _readable(self.path):
            load_learned(self._strategy, _unpack(header["state"], arrays))
        return progress


def _saves_each_round(strategy: Strategy) -> bool:
    return isinstance(strategy, SavesEachRound) and strategy.saves_each_round is True


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the rest of a damaged file makes of it
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _require_same_model(given: ArrayRecord, saved: ArrayRecord, path: Path) -> None:
    try:
        require_same_shapes(shapes_of(given), shapes_of(saved), "what is given", "the file")
    except ValueError as error:
        raise ValueError(f"{path} is another model's: {error}; choose another folder") from error


def _progress(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Progress:
    server_round, model = header["server-round"], _unpack(header["model"], arrays)
    if type(server_round) is not int or server_round < 0:
        raise ValueError(f"expected a round, got {server_round!r}")
    if not isinstance(model, ArrayRecord):
        raise ValueError("expected a model")
    histories = {
        name: {int(r): MetricRecord(m) for r, m in header["histories"][name].items()}
        for name in _HISTORIES
    }
    return Progress(server_round, Result(arrays=model, **histories))


def _pack(value: Any, leaves: list[NDArray[Any]]) -> Any:
    """Return the value as JSON, in which arrays are numbers of entries in ``leaves``."""
    if isinstance(value, ArrayRecord):
        return {"record": {name: _pack(a.numpy(), leaves) for name, a in value.items()}}
    if isinstance(value, Mapping):
        return {"table": {str(name): _pack(v, leaves) for name, v in value.items()}}
    if isinstance(value, list | tuple):
        return {"list": [_pack(v, leaves) for v in value]}
    if isinstance(value, np.ndarray | np.generic):
        leaves.append(np.asarray(value))
        return {"array": len(leaves) - 1}
    return value


def _unpack(packed: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "record":
        return ArrayRecord({n: Array(_unpack(a, arrays)) for n, a in content.items()})
    if kind == "table":
        return {name: _unpack(v, arrays) for name, v in content.items()}
    if kind == "list":
        return [_unpack(v, arrays) for v in content]
    return arrays[f"array-{content}"]
