"""The user's own functions and files: the configuration or a node's owner names them, no message.

In a simulation the configuration's author owns the clients too; there the names reach the clients
through the environment. On a device they are what its own node configuration says.
"""

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OWN_VARIABLE = "FEDCURV_OWN"

# where a configuration has a name, and by which key a node's configuration has it
NAMES = {
    "data.function": "dataset-function",
    "data.file": "dataset-file",
    "model.function": "model-function",
    "partition.function": "partition-function",
    "client.loss.function": "loss-function",
}
# local terms by name: client.terms.NAME in a configuration, term-NAME in a node's
_TERMS, _TERM = "client.terms", "term-"
_PATHS = (*NAMES, _TERMS)


def without_own_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration's copy in which no function or file of the user's is named."""
    stripped = copy.deepcopy(dict(config))
    for path in _PATHS:
        table, key = _place(stripped, path)
        table.pop(key, None)
    return stripped


def with_own_names(task: Mapping[str, Any], node_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's copy with the functions and files that this node names for it.

    Args:
        task: as it came in a message, which may say that there is a function, and never which.
        node_config: of the SuperNode; what it does not name is looked for in ``FEDCURV_OWN``, which
            simulations set for their clients.

    Raises:
        ValueError: if the message names one, or the node names none where one is needed.
    """
    named = copy.deepcopy(dict(task))
    for path in _PATHS:
        if (name := _value(named, path)) is not None:
            raise ValueError(
                f"task: {path} must be named by the node itself, not by a message, got {name!r:.80}"
            )
    known = _of_environment()
    for path in _needed(named):
        name = node_config.get(NAMES[path]) or known.get(path)
        if not name:
            raise ValueError(
                f"task: {path} is left to this node, which names none; add {NAMES[path]} to its "
                f"node configuration, such as --node-config \"{NAMES[path]}='...'\""
            )
        table, key = _place(named, path)
        table[key] = str(name)
    table, key = _place(named, _TERMS)
    table[key] = known.get(_TERMS, {}) | {
        key.removeprefix(_TERM): name for key, name in node_config.items() if key.startswith(_TERM)
    }
    return named


def own_names(config: Mapping[str, Any]) -> str:
    """Return the names in a configuration as ``FEDCURV_OWN`` has them.

    A file is named from the root on: clients may run in processes with another working folder.
    """
    names = {p: name for p in _PATHS if (name := _value(config, p)) is not None}
    if "data.file" in names:
        names["data.file"] = str(Path(names["data.file"]).absolute())
    return json.dumps(names)


def _needed(config: Mapping[str, Any]) -> list[str]:
    """Return the paths that a configuration must name something under."""
    needed = []
    for path in NAMES:
        section, _, key = path.rpartition(".")
        name = _value(config, f"{section}.name")
        if (name == "function" and key == "function") or (name == "arrays" and key == "file"):
            needed.append(path)
    return needed


def _of_environment() -> dict[str, Any]:
    try:
        known = json.loads(os.environ.get(OWN_VARIABLE, "{}"))
    except ValueError as error:
        raise ValueError(f"{OWN_VARIABLE}: expected a table in JSON: {error}") from error
    if not isinstance(known, dict):
        raise ValueError(f"{OWN_VARIABLE}: expected a table in JSON, got {type(known).__name__}")
    return known


def _place(config: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """Return the table in which a path's last key stands, an empty one if there is none."""
    *sections, key = path.split(".")
    table: Any = config
    for section in sections:
        table = table.get(section)
        if not isinstance(table, dict):
            return {}, key
    return table, key


def _value(config: Mapping[str, Any], path: str) -> Any:
    value: Any = config
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
