"""What the values of a configuration must be, key by key, checked before anything starts."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from fedcurv.likelihoods import FisherKind

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


def require_distinct(path: str, values: Sequence[Any]) -> None:
    """Raise a ValueError if a value stands in a list twice: its mean would count it twice."""
    twice = next((value for index, value in enumerate(values) if value in values[:index]), None)
    if twice is not None:
        raise ValueError(f"{path}: expected each once, got {twice!r} twice")


def _share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _is_described(value: Any) -> bool:
    """Return whether a value is a table that names what is to be made of it."""
    return isinstance(value, Mapping) and isinstance(value.get("_target_"), str)


_TABLE: Rule = (lambda v: isinstance(v, Mapping), "a table of keys and values")
_FLAG: Rule = (lambda v: isinstance(v, bool), "true or false")
_TEXT: Rule = (lambda v: isinstance(v, str) and bool(v), "a text")
_TEXT_OR_NONE: Rule = (lambda v: v is None or (isinstance(v, str) and bool(v)), "a text, or null")
_COUNT: Rule = (is_integer, "an integer >= 1")
_SHARE: Rule = (_share, "in [0, 1]")
_POSITIVE: Rule = (lambda v: is_number(v) and v > 0, "> 0 and finite")
_NOT_NEGATIVE: Rule = (lambda v: is_number(v) and v >= 0, ">= 0 and finite")
_DECAY: Rule = (lambda v: is_number(v) and 0 <= v < 1, "in [0, 1)")

# tables come before what is in them
_RULES: dict[str, Rule] = {
    **dict.fromkeys(("strategy", "data", "partition", "model", "client", "runner"), _TABLE),
    **dict.fromkeys(("data.noise", "data.test", "client.stragglers"), _TABLE),
    **dict.fromkeys(("runner.client_resources", "runner.init_args"), _TABLE),
    **dict.fromkeys(("experiment", "metric"), _TABLE),
    **dict.fromkeys(("data.options", "model.options", "partition.options"), _TABLE),
    "client.terms": _TABLE,
    **dict.fromkeys(("data.standardise", "data.channels_last", "model.every_position"), _FLAG),
    **dict.fromkeys(("data.file", "data.function"), _TEXT),
    **dict.fromkeys(("model.function", "partition.function"), _TEXT),
    **dict.fromkeys(("model.width", "model.heads", "model.layers", "model.embedding"), _COUNT),
    "seed": (
        lambda v: is_integer(v, 0) and v <= _LARGEST_SEED,
        f"an integer >= 0 (and <= {_LARGEST_SEED})",
    ),
    "task": _TEXT,
    "num_clients": _COUNT,
    "num_rounds": _COUNT,
    "checkpoint_every": _COUNT,
    "fraction_evaluate": _SHARE,
    "round_timeout": (
        lambda v: v is None or (is_number(v) and v > 0),
        "a number of seconds > 0, or null for no limit",
    ),
    "metric.function": _TEXT_OR_NONE,
    "metric.higher_is_better": _FLAG,
    "metric.targets": (lambda v: is_list_of(v, is_number), "a list of numbers"),
    "target_accuracies": (lambda v: is_list_of(v, _share), "a list of accuracies in [0, 1]"),
    "verbose": _FLAG,
    "resume": (
        lambda v: v is None or (isinstance(v, str) and bool(v)) or is_integer(v, 0),
        "the folder of an interrupted simulation, or null",
    ),
    **dict.fromkeys(("data.name", "partition.name", "model.name", "runner.name"), _TEXT),
    **dict.fromkeys(("data.test.folder", "data.test.csv", "data.test.function"), _TEXT_OR_NONE),
    "data.root": _TEXT,
    "data.download": _FLAG,
    "data.train_samples": (lambda v: v is None or is_integer(v, 0), "an integer >= 1, or null"),
    "data.test_samples": (lambda v: v is None or is_integer(v), "an integer >= 1, or null"),
    "data.validation_samples": (lambda v: is_integer(v, -1), "an integer >= 0"),
    "data.noise.rate": (lambda v: v is None or _share(v), "in [0, 1], or null for 0.4"),
    "data.noise.labels": _TEXT_OR_NONE,
    "data.noise.validation": _FLAG,
    "data.feature_noise": _NOT_NEGATIVE,
    "client.stragglers.share": _SHARE,
    "client.fisher_kind": (
        lambda v: v in ("auto", *get_args(FisherKind)),
        "auto, exact, signed, sampled or empirical",
    ),
    "client.stragglers.epochs": (is_integer, "an integer >= 1"),
    "model.hidden": (
        lambda v: is_list_of(v, is_integer),
        "a list of layer sizes, integers >= 1, such as [200, 200]",
    ),
    "model.depth": (
        lambda v: is_integer(v, 8) and v % 6 == 2,
        "an integer 6n + 2 >= 8, such as 8, 14 or 20",
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
    **dict.fromkeys(("min_available_nodes", "num_clients"), _COUNT),
    **dict.fromkeys(("eta", "eta_l", "tau", "server_learning_rate"), _POSITIVE),
    **dict.fromkeys(("beta_1", "beta_2", "server_momentum"), _DECAY),
    "proximal_mu": _NOT_NEGATIVE,
    "strength": (
        lambda v: v == "auto" or _is_described(v) or (is_number(v) and v >= 0),
        "finite and >= 0, or auto",
    ),
    "bits": (lambda v: is_integer(v) and v in (4, 8, 32), "4, 8 or 32"),
    "secure_sums": (lambda v: isinstance(v, bool), "true or false"),
    "smallest_group": (lambda v: is_integer(v) and v >= 2, "a whole number >= 2"),
    "neighbours": (lambda v: is_integer(v) and v >= 2, "a whole number >= 2"),
    "threshold": (lambda v: is_number(v) and 0.5 < v <= 1, "above 1/2 and at most 1"),
    "stage_timeout": (lambda v: is_number(v) and v > 0, "a number of seconds > 0"),
    "max_precision": (
        lambda v: isinstance(v, int | float) and not isinstance(v, bool) and v > 0,
        "a number > 0; .inf for no bound",
    ),
}


# what every configuration has, unless it was taken out
_REQUIRED = (
    *("seed", "num_clients", "num_rounds", "fraction_train", "fraction_evaluate", "round_timeout"),
    *("target_accuracies", "verbose", "data", "partition", "model", "client", "runner"),
    *("data.name", "partition.name", "model.name", "runner.name"),
    *("data.train_samples", "data.validation_samples", "data.evaluate_on", "data.noise"),
    *("data.noise.kind", "data.noise.rate", "data.noise.clients", "client.loss", "client.device"),
    *("client.stragglers", "client.stragglers.share", "client.stragglers.epochs"),
    *("client.lr", "client.epochs", "client.batch_size"),
)


# what is read at the top level; a configuration may have names of its own there, to refer to
TOP = (
    *(path for path in _REQUIRED if "." not in path),
    *("strategy", "experiment", "checkpoint_every", "resume", "task", "metric"),
)


# and what these parts of it need beside that, by their names
_REQUIRED_BY_NAME: dict[str, dict[str, tuple[str, ...]]] = {
    "data": {
        "device": ("shape", "classes", "mean", "deviation", "label", "test"),
        "arrays": ("file", "standardise", "channels_last"),
        "function": ("function", "options", "standardise", "channels_last"),
        "": ("root", "download"),
    },
    "model": {"function": ("function", "options"), "": ()},
    "partition": {"function": ("function", "options"), "": ()},
    "runner": {"ray": ("client_resources", "init_args"), "": ()},
}

# whatever else stands there, put in by +key=value, would do nothing; other tables are looked at
# where they are used
_KNOWN = {
    "data": {
        *("name", "root", "download", "train_samples", "validation_samples", "evaluate_on"),
        *(
            "test_samples",
            "noise",
            "feature_noise",
            "shape",
            "classes",
            "mean",
            "deviation",
            "label",
            "test",
        ),
        *("file", "function", "options", "standardise", "channels_last"),
    },
    "data.noise": {"kind", "rate", "labels", "clients", "validation"},
    "metric": {"function", "higher_is_better", "targets"},
    "data.test": {"folder", "csv", "function"},
    "client.stragglers": {"share", "epochs"},
    "runner": {"name", "client_resources", "init_args"},
}


def check_values(settings: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the first key whose value is missing or cannot be meant."""
    _require_no_near_miss(settings)
    tables = [key for key, rule in _RULES.items() if rule is _TABLE]
    for path in tables:
        value = _value(settings, path)
        if value is not _MISSING and not isinstance(value, Mapping):
            raise ValueError(f"{path} must be a table of keys and values, got {value!r}")
    for path in _REQUIRED:
        if _value(settings, path) is _MISSING:
            raise ValueError(f"{path} must be given")
    for group, of_name in _REQUIRED_BY_NAME.items():
        name = settings[group]["name"]
        for key in of_name.get(name if isinstance(name, str) else "", of_name[""]):
            if key not in settings[group]:
                raise ValueError(
                    f"{group}.{key} must be given; use {group}={name} for its defaults"
                )
    for path, known in _KNOWN.items():
        table = _value(settings, path)
        if table is not _MISSING and (unknown := sorted(map(str, set(table) - known))):
            raise ValueError(
                f"unknown name {path + '.' + unknown[0]!r}; known here: {', '.join(sorted(known))}"
            )
    for path, (holds, expected) in _RULES.items():
        value = _value(settings, path)
        if value is not _MISSING and not holds(value):
            raise ValueError(f"{path} must be {expected}, got {value!r}")


def _require_no_near_miss(settings: Mapping[str, Any]) -> None:
    """Refuse a name of the top level that is nearly one that is read; others are the user's own."""
    for name in map(str, settings):
        near = [] if name in TOP else difflib.get_close_matches(name, TOP, n=1, cutoff=0.8)
        if near:
            raise ValueError(f"unknown name {name!r}; is {near[0]!r} meant?")


def check_strategy(path: str, options: Any, num_clients: int) -> None:
    """Raise a ValueError that names the first option of a strategy that cannot be meant.

    Args:
        path: of the strategy in the configuration.
        options: with ``_target_``.
        num_clients: more nodes than that are never connected.
    """
    if not _is_described(options):
        raise ValueError(f"{path} must be a table with _target_ and options, got {options!r}")
    for name, value in options.items():
        if name == "strategy":
            check_strategy(f"{path}.{name}", value, num_clients)
        elif name == "smallest_group" and is_integer(value) and value > num_clients:
            raise ValueError(
                f"{path}: smallest_group must be <= num_clients={num_clients}, got {value!r}; no "
                "round would have so many"
            )
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
