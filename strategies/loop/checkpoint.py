"""The server's state after a round, in one file, and back: model, strategy, results.

Of a strategy every attribute is kept that holds arrays, and every plain value that has changed
since the strategy was made: what the constructor was given stays the caller's to decide. A strategy
may take this over with methods ``state_dict`` and ``load_state_dict`` of its own. Strategies among
a strategy's attributes are saved with it.
"""

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
from fedcurv.private_files import locked

_FILE, _LOCK = "checkpoint.npz", ".checkpoint.lock"
# of the file's form: 1 had no number, and knew nothing of strategies inside others
_VERSION = 2
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


@runtime_checkable
class ToldOfCheckpoints(Protocol):
    """A strategy that must know, before the first round, that a later run may go on from it."""

    def will_be_saved(self) -> None:
        """Learn it; every call of ``state_dict`` from now on is a checkpoint."""
        ...


class Checkpoint:
    """Saves and restores one run below a folder.

    The file, and the folder if it is made, are for their owner alone. Every strategy that takes
    part, also one inside another, is told that it is going to be saved.

    Args:
        folder: made at the first save.
        strategy: as it was constructed, before it has seen a round.
    """

    def __init__(self, folder: Path, strategy: Strategy) -> None:
        self.path = folder / _FILE
        self._strategy = strategy
        self._at_first = plain_values(strategy)
        for one in _with_inner(strategy):
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
            ValueError: if the file is damaged, of another version, or of another strategy.
        """
        header, arrays = read_archive(self.path)
        expected = type(self._strategy).__name__
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
        try:
            progress = _progress(header, arrays)
            load_strategy_state(self._strategy, _unpack(header["state"], arrays))
        except Exception as error:  # whatever the rest of a damaged file makes of it
            raise ValueError(
                f"{self.path} cannot be read: {type(error).__name__}: {error}"
            ) from error
        return progress


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


def plain_values(strategy: Strategy) -> dict[str, Any]:
    """Return a strategy's attributes that are plain values, and likewise of strategies inside."""
    values: dict[str, Any] = {n: v for n, v in vars(strategy).items() if isinstance(v, _PLAIN)}
    return values | {name: plain_values(inner) for name, inner in _inner(strategy).items()}


def strategy_state(strategy: Strategy, at_first: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a strategy, and those inside, have learned since ``at_first``."""
    if hasattr(strategy, "state_dict"):
        state: dict[str, Any] = strategy.state_dict()
        return state
    changed = object()
    state = {
        name: value
        for name, value in vars(strategy).items()
        if _holds_arrays(value)
        or (isinstance(value, _PLAIN) and at_first.get(name, changed) != value)
    }
    for name, inner in _inner(strategy).items():
        state[name] = strategy_state(inner, at_first.get(name) or {})
    return state


def load_strategy_state(strategy: Strategy, state: Mapping[str, Any]) -> None:
    """Give a strategy back what ``strategy_state`` returned.

    Raises:
        ValueError: if it cannot be this strategy's.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"expected the state of {type(strategy).__name__}, got {state!r}")
    if hasattr(strategy, "load_state_dict"):
        strategy.load_state_dict(state)
        return
    inner = _inner(strategy)
    own = {name: value for name, value in state.items() if name not in inner}
    for name, value in own.items():
        _require_attribute(strategy, name, value)
    for name, one in inner.items():
        if name in state:
            load_strategy_state(one, state[name])
    vars(strategy).update(own)


def require_plain_state(state: Mapping[str, Any]) -> None:
    """Check what FedCurv saved beside arrays and the wrapped strategy's state.

    Raises:
        ValueError: if it cannot be FedCurv's.
    """
    sums_round, names = state["sums-round"], [*state["parameter-names"], *state["contributors"]]
    if type(sums_round) is not int or sums_round < 0:
        raise ValueError(f"expected the round of the sums, got {sums_round!r}")
    if not all(isinstance(text, str) for text in (state["federation"], *names)):
        raise ValueError("expected the federation, parameters and messages by their names")
    if not isinstance(state["strength"], int | float | None):
        raise ValueError(f"expected a strength, got {state['strength']!r}")


def _require_attribute(strategy: Strategy, name: str, value: Any) -> None:
    """Raise a ValueError if a value can be no attribute of this name."""
    now = vars(strategy).get(name)
    numbers = int | float
    is_same_kind = (
        now is None
        or value is None
        or isinstance(value, type(now))
        or (isinstance(value, numbers) and isinstance(now, numbers))
        or (_holds_arrays(value) and not isinstance(now, _PLAIN))
    )
    if not is_same_kind or (name not in vars(strategy) and hasattr(type(strategy), name)):
        raise ValueError(
            f"expected {name!r} of {type(strategy).__name__} to be like {str(now)[:50]!r}, got "
            f"{type(value).__name__}"
        )


def _inner(strategy: Strategy) -> dict[str, Strategy]:
    """Return the strategies among a strategy's attributes."""
    return {n: v for n, v in vars(strategy).items() if isinstance(v, Strategy) and v != strategy}


def _with_inner(strategy: Strategy) -> list[Strategy]:
    return [strategy, *(one for inner in _inner(strategy).values() for one in _with_inner(inner))]


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
