"""Tables of what was found out last."""

from collections.abc import Hashable
from typing import TypeVar

Value = TypeVar("Value")


def remember(table: dict[Hashable, Value], key: Hashable, value: Value, most: int) -> Value:
    """Put a value into a table, in the place of the oldest where it has ``most``; return it."""
    while len(table) >= most:
        table.pop(next(iter(table)))
    table[key] = value
    return value
