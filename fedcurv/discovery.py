"""Modules that register what they hold as they are imported: all of a folder's."""

import importlib
import pkgutil
from collections.abc import Iterable, MutableMapping
from typing import Any


def import_all(package: str, path: Iterable[str]) -> None:
    """Import every module of a package.

    Args:
        package: its name.
        path: its ``__path__``.
    """
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")


def enter(table: MutableMapping[str, Any], kind: str, name: str, made: object) -> None:
    """Enter into a table what a file registers; the same place may do so again, as in a reload.

    Args:
        table: by name.
        kind: of its entries, for the message.
        name: of the entry.
        made: the entry.

    Raises:
        ValueError: if another place has registered that name.
    """
    places = [_place(one) for one in (table.get(name, made), made)]
    if places[0] != places[1]:
        raise ValueError(
            f"the {kind} {name!r} is registered by {places[0]} and by {places[1]}; give one of "
            "them another name"
        )
    table[name] = made


def _place(made: object) -> str:
    of_class = type(made)
    module = getattr(made, "__module__", of_class.__module__)
    return f"{module}.{getattr(made, '__qualname__', of_class.__qualname__)}"
