"""The server's state after a round, in one file, and back: model, strategy, results.

Of a strategy every attribute is kept that holds arrays, and every plain value that has changed
since the strategy was made: what the constructor was given stays the caller's to decide. A strategy
may take this over with methods ``state_dict`` and ``load_state_dict`` of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from fedcurv.archive import read_archive, write_archive

_FILE = "checkpoint.npz"
_HISTORIES = (
    "train_metrics_clientapp",
    "evaluate_metrics_clientapp",
    "evaluate_metrics_serverapp",
)
_PLAIN = (bool, int, float, str, type(None))


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        server_round: the last round that is complete; 0 before the first.
        result: of all rounds so far; its arrays are the model.
    """

    server_round: int
    result: Result


class Checkpoint:
    """Saves and restores one run below a folder.

    Args:
        folder: made at the first save.
        strategy: as it was constructed, before it has seen a round.
    """

    def __init__(self, folder: Path, strategy: Strategy) -> None:
        self.path = folder / _FILE
        self._strategy = strategy
        self._at_first = plain_values(strategy)

    def save(self, progress: Progress) -> None:
        """Replace the checkpoint, atomically.

        Raises:
            OSError: if the folder cannot be written; the old checkpoint is untouched.
        """
        leaves: list[NDArray[Any]] = []
        header = {
            "server-round": progress.server_round,
            "strategy": type(self._strategy).__name__,
            "model": _pack(progress.result.arrays, leaves),
            "state": _pack(strategy_state(self._strategy, self._at_first), leaves),
            "histories": {
                name: {str(r): dict(m) for r, m in getattr(progress.result, name).items()}
                for name in _HISTORIES
            },
        }
        write_archive(self.path, header, {f"array-{i}": leaf for i, leaf in enumerate(leaves)})

    def restore(self) -> Progress:
        """Put the strategy into the state that was saved and return the rest of it.

        Raises:
            FileNotFoundError: if nothing was saved.
            ValueError: if the file is damaged, or of another strategy.
        """
        header, arrays = read_archive(self.path)
        if header["strategy"] != type(self._strategy).__name__:
            raise ValueError(
                f"{self.path} is the checkpoint of {header['strategy']}, expected one of "
                f"{type(self._strategy).__name__}; choose another folder"
            )
        model = _unpack(header["model"], arrays)
        load_strategy_state(self._strategy, _unpack(header["state"], arrays))
        histories = {
            name: {int(r): MetricRecord(m) for r, m in history.items()}
            for name, history in header["histories"].items()
        }
        return Progress(int(header["server-round"]), Result(arrays=model, **histories))


def plain_values(strategy: Strategy) -> dict[str, Any]:
    """Return a strategy's attributes that are plain values."""
    return {name: v for name, v in vars(strategy).items() if isinstance(v, _PLAIN)}


def strategy_state(strategy: Strategy, at_first: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a strategy has learned since ``at_first``."""
    if hasattr(strategy, "state_dict"):
        state: dict[str, Any] = strategy.state_dict()
        return state
    changed = object()
    return {
        name: value
        for name, value in vars(strategy).items()
        if _holds_arrays(value)
        or (isinstance(value, _PLAIN) and at_first.get(name, changed) != value)
    }


def load_strategy_state(strategy: Strategy, state: Mapping[str, Any]) -> None:
    """Give a strategy back what ``strategy_state`` returned."""
    if hasattr(strategy, "load_state_dict"):
        strategy.load_state_dict(state)
    else:
        vars(strategy).update(state)


def _holds_arrays(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(_holds_arrays(v) for v in value.values())
    if isinstance(value, list | tuple):
        return bool(value) and all(_holds_arrays(v) for v in value)
    return isinstance(value, np.ndarray | ArrayRecord | Array)


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
