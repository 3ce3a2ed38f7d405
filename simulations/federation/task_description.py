"""The training task as it travels: JSON with names and numbers, checked before any of it is used.

Who sends it may be wrong or hostile: whatever it holds, a client says in one line what was expected
and takes no more memory than the text itself.
"""

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from flwr.app import ConfigRecord, RecordDict

from fedcurv.simulations.own import without_own_names
from fedcurv.simulations.parts.tasks import CLASSIFICATION, TASKS

TaskDescription = Mapping[str, Any]

_TASK_KEY = "fedcurv-task"
_LONGEST_TEXT = 2**20
# so deep are tables and lists in tables and lists
_DEEPEST = 4
_LARGEST_NUMBER = 2**53  # whole numbers that every reader of JSON keeps
_LONGEST_LIST = 100_000  # classes, or noisy clients
# random states are made of 1,000,003 times the seed
_LARGEST_SEED = 2**40

# where a node's data are and whether it fetches them, its owner says; the test set is the server's
_NOT_OF_THE_SERVER = ("root", "download", "test", "test_samples")
_SECTIONS = ("data", "partition", "model", "client")
_TASK = "task"
_NUMBERS = {"num_clients": (1, _LARGEST_NUMBER), "seed": (0, _LARGEST_SEED)}


def describe_task(config: TaskDescription) -> ConfigRecord:
    """Return the training configuration that tells clients their task.

    Args:
        config: the keys ``data``, ``partition``, ``model``, ``client``, ``num_clients``, ``seed``
            and ``task`` of a resolved configuration.
    """
    task = without_own_names({key: config[key] for key in (*_SECTIONS, *_NUMBERS)})
    if config[_TASK] != CLASSIFICATION.name:
        task[_TASK] = config[_TASK]
    task["data"] = {k: v for k, v in task["data"].items() if k not in _NOT_OF_THE_SERVER}
    return ConfigRecord({_TASK_KEY: json.dumps(task)})


def task_text(content: RecordDict) -> str:
    """Return the description in a message as it came.

    Raises:
        ValueError: if there is none, or it is too long.
    """
    text = content.config_records.get("config", ConfigRecord()).get(_TASK_KEY)
    if not isinstance(text, str):
        raise ValueError(
            f"expected a task under {_TASK_KEY!r} in the message's config, got "
            f"{type(text).__name__}; is the server fedcurv's own app?"
        )
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"task: expected at most {_LONGEST_TEXT:,} characters, got {len(text):,}")
    return text


def read_task(text: str) -> dict[str, Any]:
    """Return a description's tables and numbers.

    What a table holds is checked where it is used; here, that it is a table of plain values with
    finite numbers and that it says where the clients' data are.

    Raises:
        ValueError: naming the key, what was expected and what came.
    """
    try:
        task = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_twins)
    except RecursionError:
        raise ValueError("task: expected JSON of few levels, got a deeply nested one") from None
    except ValueError as error:
        raise ValueError(f"task: expected JSON: {error}") from error
    if not isinstance(task, dict):
        raise ValueError(f"task: expected a table, got {_short(task)}")
    wanted = {*_SECTIONS, *_NUMBERS}
    found = task.keys() - {_TASK}
    if found != wanted:
        raise ValueError(
            f"task: expected the keys {', '.join(sorted(wanted))}; missing: "
            f"{_listed(wanted - found)}; unknown: {_listed(found - wanted)}; do server and device "
            "run the same version?"
        )
    for key in _SECTIONS:
        if not isinstance(task[key], dict):
            raise ValueError(f"task: {key} must be a table, got {_short(task[key])}")
    for key, (low, high) in _NUMBERS.items():
        if type(task[key]) is not int or not low <= task[key] <= high:
            raise ValueError(
                f"task: {key} must be an integer from {low} to {high}, got {_short(task[key])}"
            )
    name = task.setdefault(_TASK, CLASSIFICATION.name)
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"task: task must be one of {', '.join(TASKS)}, got {_short(name)}")
    _require_plain(task, "task", 0)
    return task


def _require_plain(value: Any, where: str, depth: int) -> None:
    """Raise a ValueError for what is too deep, too long or too large."""
    if isinstance(value, dict | list):
        if depth == _DEEPEST or len(value) > _LONGEST_LIST:
            raise ValueError(f"{where}: too deep or too long for a task")
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            _require_plain(inner, f"{where}.{str(key)[:40]}", depth + 1)
    elif type(value) in (int, float) and not abs(value) <= _LARGEST_NUMBER:
        raise ValueError(f"{where}: expected a number of sensible size, got {_short(value)}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"expected finite numbers, got {name}")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError(f"expected every key once, got {_listed([key for key, _ in pairs])}")
    return table


def _listed(names: Any) -> str:
    return ", ".join(str(name)[:40] for name in sorted(names)[:5]) or "none"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a huge number"
    return text if len(text) <= 80 else f"{text[:80]}..."
