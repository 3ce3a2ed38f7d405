"""Classes of torch's that a configuration names, with options that are numbers.

A name is looked up among the classes that torch has, so that a message can make nobody import code.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

# a class by its name, or its name and options: {"name": "AdamW", "eps": 1e-6}
Named = str | Mapping[str, Any]

_LONGEST_LIST = 10_000


@dataclass(frozen=True)
class Choice:
    """One of torch's classes, and the options that it is to be made with.

    Attributes:
        cls: the class.
        options: checked to be its own, and to be numbers; lists are tuples.
        known: every option that may be given.
    """

    cls: type[Any]
    options: Mapping[str, Any]
    known: tuple[str, ...]


class Classes:
    """The classes of a module that can be named.

    Args:
        module: of torch.
        base: whose subclasses they are.
        refused: by a class's name, why it cannot be used.
        withheld: options that are not to be given.
        added: options that we have beside torch's.
    """

    def __init__(
        self,
        module: ModuleType,
        base: type[Any],
        *,
        refused: Mapping[str, str],
        withheld: frozenset[str],
        added: tuple[str, ...] = (),
    ) -> None:
        self._refused, self._withheld, self._added = refused, withheld, added
        self._by_name = {
            name.lower(): found
            for name, found in vars(module).items()
            if isinstance(found, type)
            and issubclass(found, base)
            and found is not base
            and not name.startswith("_")
        }

    def names(self) -> list[str]:
        """Return the names of the classes that can be used."""
        return [c.__name__ for c in self._by_name.values() if c.__name__ not in self._refused]

    def choose(self, named: Any) -> Choice:
        """Return the class that is named, upper and lower case alike, with its options.

        Raises:
            ValueError: in one line, without the place where it was named, if there is no such class
                or option, or an option is no number.
        """
        table = {"name": named} if isinstance(named, str) else named
        if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
            raise ValueError(f"expected a name, or a table of name and options, got {named!r:.80}")
        name = table["name"]
        cls = self._by_name.get(name.lower())
        if cls is None:
            raise ValueError(f"expected one of {', '.join(self.names())}, got {name!r:.80}")
        if (why := self._refused.get(cls.__name__)) is not None:
            raise ValueError(f"{cls.__name__} cannot be used: {why}")
        options = {str(key): value for key, value in table.items() if key != "name"}
        known = (*(o for o in inspect.signature(cls).parameters if self._may_be(o)), *self._added)
        if unknown := sorted(options.keys() - set(known)):
            raise ValueError(
                f"{cls.__name__} takes {', '.join(known) or 'no options'}; got {unknown[0]!r:.80}"
            )
        checked = {key: _numbers(key, value) for key, value in options.items()}
        return Choice(cls, checked, known)

    def _may_be(self, option: str) -> bool:
        return option not in self._withheld


def _numbers(what: str, value: Any) -> Any:
    """Return a number, a flag or None as it is, and a list of these as a tuple."""
    if isinstance(value, list | tuple) and len(value) <= _LONGEST_LIST:
        return tuple(_numbers(what, item) for item in value)
    if value is None or (isinstance(value, int | float) and math.isfinite(value)):
        return value
    raise ValueError(
        f"{what} must be a finite number, true, false, null, or a list of these, got {value!r:.80}"
    )
