"""What the values of a configuration must be, key by key, checked before anything starts."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Rule = tuple[Callable[[Any], bool], str]

_MISSING = object()
# seeds of single clients are made of it, and must fit into 64 bits
_LARGEST_SEED = 2**40


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_integer(value: Any, smallest: int = 1) -> bool:
    """Return whether a value is an integer from ``smallest`` on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= smallest


def is_list_of(value: Any, holds: Callable[[Any], bool]) -> bool:
    """Return whether a value is a list whose items all fit."""
    return isinstance(value, Sequence) and not isinstance(value, str) and all(map(holds, value))


def _share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


_TABLE: Rule = (lambda v: isinstance(v, Mapping), "a table of keys and values")
_FLAG: Rule = (lambda v: isinstance(v, bool), "true or false")
_TEXT: Rule = (lambda v: isinstance(v, str) and bool(v), "a text")
_COUNT: Rule = (is_integer, "an integer >= 1")
_SHARE: Rule = (_share, "in [0, 1]")
_POSITIVE: Rule = (lambda v: is_number(v) and v > 0, "> 0 and finite")
_NOT_NEGATIVE: Rule = (lambda v: is_number(v) and v >= 0, ">= 0 and finite")
_DECAY: Rule = (lambda v: is_number(v) and 0 <= v < 1, "in [0, 1)")

# tables come before what is in them
_RULES: dict[str, Rule] = {
    **dict.fromkeys(("data", "partition", "model", "client", "runner", "data.noise"), _TABLE),
    **dict.fromkeys(("client.stragglers", "runner.client_resources", "runner.init_args"), _TABLE),
    "seed": (
        lambda v: is_integer(v, 0) and v <= _LARGEST_SEED,
        f"an integer >= 0 (and <= {_LARGEST_SEED})",
    ),
    "num_clients": _COUNT,
    "num_rounds": _COUNT,
    "checkpoint_every": _COUNT,
    "fraction_evaluate": _SHARE,
    "round_timeout": (
        lambda v: v is None or (is_number(v) and v > 0),
        "a number of seconds > 0, or null for no limit",
    ),
    "target_accuracies": (lambda v: is_list_of(v, _share), "a list of accuracies in [0, 1]"),
    "verbose": _FLAG,
    "data.name": _TEXT,
    "data.root": _TEXT,
    "data.download": _FLAG,
    "data.train_samples": (lambda v: v is None or is_integer(v, 0), "an integer >= 1, or null"),
    "data.validation_samples": (lambda v: is_integer(v, -1), "an integer >= 0"),
    "data.noise.rate": _SHARE,
    "client.stragglers.share": _SHARE,
    "client.stragglers.epochs": (is_integer, "an integer >= 1"),
    "model.hidden": (
        lambda v: is_list_of(v, is_integer),
        "a list of layer sizes, integers >= 1, such as [200, 200]",
    ),
    "model.padding": (lambda v: is_integer(v, 0), "an integer >= 0"),
    "model.groups": (
        lambda v: is_integer(v) and 64 % v == 0,
        "a number of groups that divides 64 channels",
    ),
    "partition.alpha": _POSITIVE,
    "partition.min_samples": (lambda v: is_integer(v, 0), "an integer >= 0"),
    "partition.shards_per_client": _COUNT,
    "partition.size_ratio": (lambda v: is_number(v) and v >= 1, ">= 1 and finite"),
    "partition.classes_per_client": _COUNT,
    "partition.partitioner": _TEXT,
    "runner.client_resources.num_cpus": _POSITIVE,
    "runner.client_resources.num_gpus": _NOT_NEGATIVE,
}

# by the last part of an option's name, in a strategy or in the one that it wraps
_OF_STRATEGIES: dict[str, Rule] = {
    **dict.fromkeys(("fraction_train", "fraction_evaluate"), _SHARE),
    **dict.fromkeys(("min_train_nodes", "min_evaluate_nodes"), _COUNT),
    "min_available_nodes": _COUNT,
    **dict.fromkeys(("eta", "eta_l", "tau", "server_learning_rate"), _POSITIVE),
    **dict.fromkeys(("beta_1", "beta_2", "server_momentum"), _DECAY),
    "proximal_mu": _NOT_NEGATIVE,
    "strength": (
        lambda v: v == "auto" or isinstance(v, Mapping) or (is_number(v) and v >= 0),
        "finite and >= 0, or auto",
    ),
    "max_precision": (
        lambda v: isinstance(v, int | float) and not isinstance(v, bool) and v > 0,
        "a number > 0; .inf for no bound",
    ),
}


def check_values(settings: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the first key whose value cannot be meant."""
    for path, (holds, expected) in _RULES.items():
        value = _value(settings, path)
        if value is not _MISSING and not holds(value):
            raise ValueError(f"{path} must be {expected}, got {value!r}")


def check_strategy(path: str, options: Any, num_clients: int) -> None:
    """Raise a ValueError that names the first option of a strategy that cannot be meant.

    Args:
        path: of the strategy in the configuration.
        options: with ``_target_``.
        num_clients: more nodes than that are never connected.
    """
    if not isinstance(options, Mapping) or not isinstance(options.get("_target_"), str):
        raise ValueError(f"{path} must be a table with _target_ and options, got {options!r}")
    for name, value in options.items():
        if name == "strategy":
            check_strategy(f"{path}.{name}", value, num_clients)
        elif name in _OF_STRATEGIES:
            holds, expected = _OF_STRATEGIES[name]
            if not holds(value):
                raise ValueError(f"{path}: {name} must be {expected}, got {value!r}")
            if name.endswith("_nodes") and value > num_clients:
                raise ValueError(
                    f"{path}: {name} must be <= num_clients={num_clients}, got {value!r}; the run "
                    "would wait for nodes that never connect"
                )


def _value(settings: Mapping[str, Any], path: str) -> Any:
    value: Any = settings
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value
