"""What an experiment's description plans: which methods, and which of their settings."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from fedcurv.simulations.experiments.runs import Settings
from fedcurv.simulations.experiments.tuning import check_more_trials
from fedcurv.simulations.parts.metrics import ACCURACY, Metric
from fedcurv.simulations.rules import TOP, is_integer, is_list_of, is_number, require_distinct

# a line for each method in each cell, with rounds to targets; or for each method, a column a cell
TABLES = ("rounds", "last")

_KEYS = (
    *("against", "cells", "methods", "more_trials", "only", "seeds", "table", "target"),
    "tuning_seeds",
)
_KEYS_OF_METHOD = ("strategy", "set", "grid")


def check_experiment(experiment: Settings, metric: Metric = ACCURACY) -> None:
    """Raise a ValueError that names what an experiment's description lacks or cannot mean."""
    if misplaced := [str(key) for key in experiment if key in TOP and key not in _KEYS]:
        raise ValueError(
            f"experiment.{misplaced[0]}: {misplaced[0]} belongs to the top level; is "
            "`# @package _global_` the first line of the experiment's file? Without it all of the "
            "file's keys stand below experiment"
        )
    _require_known("experiment", experiment, _KEYS)
    _check_seeds("seeds", experiment.get("seeds"))
    target: Any = experiment.get("target")
    if not is_number(target) or (metric.is_share and not 0 < target <= 1):
        wanted = "an accuracy in (0, 1]" if metric.is_share else f"a number, a {metric.label}"
        raise ValueError(f"experiment.target must be {wanted}, got {target!r}")
    if (table := experiment.get("table", TABLES[0])) not in TABLES:
        raise ValueError(f"experiment.table must be {' or '.join(TABLES)}, got {table!r}")
    cells, methods = experiment.get("cells"), experiment.get("methods")
    if not is_list_of(cells, lambda cell: isinstance(cell, Mapping)) or not cells:
        raise ValueError(
            "experiment.cells: expected at least one table of keys and values, such as "
            f"{{client.epochs: 5}}, got {cells!r}"
        )
    require_distinct("experiment.cells", cells)
    if not isinstance(methods, Mapping) or not methods:
        raise ValueError(f"experiment.methods: expected at least one, got {methods!r}")
    for name, method in methods.items():
        grid = method.get("grid", {}) if isinstance(method, Mapping) else None
        if not isinstance(grid, Mapping) or "strategy" not in method:
            raise ValueError(
                f"experiment.methods.{name}: expected strategy, and grid where it is tuned, got "
                f"{method!r}"
            )
        _require_known(f"experiment.methods.{name}", method, _KEYS_OF_METHOD)
        if not isinstance(method.get("set") or {}, Mapping):
            raise ValueError(
                f"experiment.methods.{name}.set: expected a table of keys and values, got "
                f"{method['set']!r}"
            )
        for key, values in grid.items():
            if not is_list_of(values, lambda value: True) or not values:
                raise ValueError(
                    f"experiment.methods.{name}.grid.{key}: expected a list of values, got "
                    f"{values!r}"
                )
            require_distinct(f"experiment.methods.{name}.grid.{key}", values)
    check_budgets(methods)
    against = experiment.get("against")
    if against is not None and against not in list(methods):
        raise ValueError(
            f"experiment.against must name one of {', '.join(map(str, methods))}, got {against!r}"
        )
    if against is not None and len(methods) == 1:
        raise ValueError(
            f"experiment.against: expected other methods to set beside {against}, got that alone"
        )
    check_more_trials(experiment.get("more_trials", 0), methods)
    seeds = experiment.get("tuning_seeds")
    are_fixed = all(len(points) == 1 for points in grids(methods).values())
    if not (are_fixed and (seeds is None or seeds == [])):
        _check_seeds("tuning_seeds", seeds)


def _require_known(place: str, given: Mapping[Any, Any], known: Sequence[str]) -> None:
    """Raise a ValueError for a key that nothing reads, such as one that is misspelt."""
    if unknown := [str(key) for key in given if key not in known]:
        raise ValueError(
            f"{place} has no key {', '.join(unknown)}; its keys are {', '.join(known)}"
        )


def _check_seeds(key: str, seeds: Any) -> None:
    if not is_list_of(seeds, lambda seed: is_integer(seed, 0)) or not seeds:
        raise ValueError(
            f"experiment.{key}: expected at least one seed, integers >= 0, got {seeds!r}"
        )
    require_distinct(f"experiment.{key}", seeds)


def require_effective(words: Sequence[str], experiment: Settings) -> None:
    """Raise a ValueError if the command line sets what the experiment itself sets for every run.

    Args:
        words: of the command line.
        experiment: its description, checked.
    """
    methods = [
        {*(method.get("set") or {}), *method.get("grid", {})}
        for method in experiment["methods"].values()
    ]
    places = {
        "cells": set.intersection(*map(set, experiment["cells"])),
        "methods": set.intersection(*methods),
    }
    for word in words:
        key = word.partition("=")[0].lstrip("+")
        for place, keys in places.items():
            if key in keys:
                raise ValueError(
                    f"{word} would change nothing: experiment.{place} set {key} for every run; "
                    f"change it there, as experiment.{place}=..., or in an experiment of your own"
                )


def grids(methods: Settings) -> dict[str, list[Settings]]:
    """Return every method's points: all combinations of its grid's values, one without a grid."""
    return {
        name: [
            dict(zip(method.get("grid", {}), values, strict=True))
            for values in itertools.product(*method.get("grid", {}).values())
        ]
        for name, method in methods.items()
    }


def chosen(methods: Settings, only: Any) -> Settings:
    """Return the methods with these names; all of them for None.

    Raises:
        ValueError: for none, or a name that none has.
    """
    if only is None:
        return methods
    if not is_list_of(only, lambda name: isinstance(name, str) and name in methods) or not only:
        raise ValueError(f"experiment.only must name some of {', '.join(methods)}, got {only!r}")
    return {name: method for name, method in methods.items() if name in only}


def check_budgets(methods: Settings) -> None:
    """Raise a ValueError unless all methods have the same number of trials."""
    sizes = {name: len(points) for name, points in grids(methods).items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(
            "experiment.methods: expected the same number of trials for every method, as a method "
            f"that is tuned more looks better than it is, got {sizes}"
        )
