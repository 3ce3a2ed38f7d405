"""Settings as tables and legends write them."""

from collections.abc import Mapping
from typing import Any


def in_words(settings: Mapping[str, Any]) -> str:
    """Return settings as a table calls them: the last part of each key, and its value."""
    return ", ".join(f"{key.rpartition('.')[2]} {value_in_words(v)}" for key, v in settings.items())


def value_in_words(value: Any) -> str:
    """Return a value as tables and legends write it."""
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {value_in_words(item)}" for key, item in value.items()) + ")"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:g}" if is_number else str(value)
