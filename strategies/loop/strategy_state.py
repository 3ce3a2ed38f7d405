"""State that a strategy has learned since it was made, as values that can be saved, and back.

Every attribute is kept that holds arrays, and every plain value that has changed since the strategy
was made: what the constructor was given stays the caller's to decide. A strategy may take this over
with methods ``state_dict`` and ``load_state_dict`` of its own. Strategies among a strategy's
attributes are saved with it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

_PLAIN = (bool, int, float, str, type(None))


def plain_values(strategy: Strategy) -> dict[str, Any]:
    """Return a strategy's attributes that are plain values, and likewise of strategies inside."""
    values: dict[str, Any] = {n: v for n, v in vars(strategy).items() if isinstance(v, _PLAIN)}
    return values | {name: plain_values(inner) for name, inner in _inner(strategy).items()}


def learned(strategy: Strategy, at_first: Mapping[str, Any]) -> dict[str, Any]:
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
        state[name] = learned(inner, at_first.get(name) or {})
    return state


def load_learned(strategy: Strategy, state: Mapping[str, Any]) -> None:
    """Give a strategy back what ``learned`` returned.

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
            load_learned(one, state[name])
    vars(strategy).update(own)


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


def with_inner(strategy: Strategy) -> list[Strategy]:
    """Return a strategy and all that are inside it, each once."""
    found: list[Strategy] = []

    def visit(one: Strategy) -> None:
        if all(one is not other for other in found):  # an inner one may know what is around it
            found.append(one)
            for inner in _inner(one).values():
                visit(inner)

    visit(strategy)
    return found


def name_of(strategy: Strategy) -> str:
    """Return a strategy's name, with those of the strategies inside it."""
    return " around ".join(type(one).__name__ for one in with_inner(strategy))


def _holds_arrays(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(_holds_arrays(v) for v in value.values())
    if isinstance(value, list | tuple):
        return bool(value) and all(_holds_arrays(v) for v in value)
    return isinstance(value, np.ndarray | ArrayRecord | Array)
