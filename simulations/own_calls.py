"""The user's own functions and classes: found by name, and called so that chance has no say."""

import difflib
import importlib
import importlib.util
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fedcurv.errors import in_one_line
from fedcurv.global_state import seeded
from fedcurv.simulations.console.telling import tell_once

# of what is to be the same in every process and for every seed of a configuration
SAME = 0

# by name, a module's specification, which is another after a reload, and its file's state
_as_imported: dict[str, tuple[object, object]] = {}
# by name, a function as it was met last, and how many there were before it
_as_met: dict[str, tuple[object, int]] = {}


def call_own(path: str, name: str, seed: int | None, /, *arguments: Any, **options: Any) -> Any:
    """Return what a user's function returns.

    Args:
        path: where the configuration names it, for messages.
        name: ``module:function``.
        seed: of the global random states of torch, NumPy and Python meanwhile, which are put back;
            None leaves them to the caller.
        *arguments: for it.
        **options: for it.

    Raises:
        ValueError: in one line, if it cannot be found, or for whatever it raises.
    """
    function = own_function(path, name)
    try:
        if seed is None:
            return function(*arguments, **options)
        with _all_seeded(seed):
            return function(*arguments, **options)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path}={name} raised {in_one_line(error)}") from error


@contextmanager
def _all_seeded(seed: int) -> Iterator[None]:
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with seeded(seed):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def own_options(path: str, *tables: Any) -> dict[str, Any]:
    """Return the options for a user's function.

    Args:
        path: where the configuration names the function, for messages.
        *tables: options by name, or None for none; no name may stand in two of them.

    Raises:
        ValueError: in one line, for what is no such table, or a name that is given twice.
    """
    options: dict[str, Any] = {}
    place = f"{path.rpartition('.')[0]}.options"
    for table in tables:
        is_table = isinstance(table, Mapping | None)
        if not is_table or not all(isinstance(name, str) for name in table or ()):
            raise ValueError(f"{place}: expected a table of options by name, got {table!r:.80}")
        for name in table or ():
            if name in options:
                raise ValueError(
                    f"{place}: the function of {path} is given {name!r} already; leave it out there"
                )
        options |= dict(table or {})
    return options


def own_function(path: str, name: str) -> Callable[..., Any]:
    """Return a function of the user's.

    Args:
        path: where the configuration names it, for messages.
        name: ``module:function``.

    Raises:
        ValueError: in one line, if it cannot be found.
    """
    module, _, function = str(name).partition(":")
    if not module or not function:
        raise ValueError(f"{path} must be module:function, got {name!r}")
    found = getattr(_imported(path, name, module), function, None)
    if not callable(found):
        raise ValueError(f"{path}={name}: {module} has no function {function!r}")
    own: Callable[..., Any] = found
    return own


def dotted_object(path: str, name: Any) -> Any:
    """Return a class or a function of anybody's, as a ``_target_`` names it.

    Args:
        path: where the configuration names it, for messages.
        name: ``package.module.Class``.

    Raises:
        ValueError: in one line, if it cannot be found.
    """
    parts = name.split(".") if isinstance(name, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ValueError(f"{path} must be package.module.Class, got {name!r:.80}")
    found, place = _imported(path, name, parts[0]), parts[0]
    for part in parts[1:]:
        inner = f"{place}.{part}"
        is_package = isinstance(found, ModuleType) and hasattr(found, "__path__")
        if not hasattr(found, part) and is_package and importlib.util.find_spec(inner):
            _imported(path, name, inner)
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1)
            hint = f"is {near[0]!r} meant?" if near else "look for it there"
            raise ValueError(f"{path}={name}: {place} has no {part!r}; {hint}")
        found, place = getattr(found, part), inner
    return found


def version_of(path: str, name: str) -> tuple[object, ...]:
    """Return what changes with what a name stands for: its function, that one's file, or a file.

    A function is another after a reload.

    Args:
        path: where the configuration names it, for messages; of a file if it ends in ``file``.
        name: ``module:function``, or a file.

    Raises:
        ValueError: if there is no such function.
    """
    if path.endswith("file"):
        return (_state_of(name),)
    function = own_function(path, name)
    known, number = _as_met.get(name, (function, 0))
    if known is not function:
        number += 1
    _as_met[name] = (function, number)
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:  # it is no plain function
        file = None
    return number, _state_of(file)


def _state_of(file: str | None) -> tuple[int, int] | None:
    """Return when a file was changed last, and its size; None where there is none."""
    try:
        state = Path(file or "").stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size


def _imported(path: str, name: str, module: str) -> ModuleType:
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever its code raises
        raise ValueError(
            f"{path}={name}: {module} cannot be imported ({in_one_line(error)}); start where it "
            "lies, or install it"
        ) from error
    file, spec = getattr(found, "__file__", None), getattr(found, "__spec__", None)
    state = _state_of(file)
    before, as_imported = _as_imported.get(module, (None, None))
    if before is not spec or spec is None:
        _as_imported[module] = (spec, state)
    elif as_imported != state:
        tell_once(
            f"{path}={name}: {file} has changed since this process imported it, and is used as it "
            "was then; start anew, or reload it by importlib"
        )
    return found
