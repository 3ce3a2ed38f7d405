"""What is computed from samples, followed function by function through a forward pass."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fedcurv.per_sample.nests import Nest

Function = Callable[..., Any]

# functions by which Python gets one value
_READING_ONE = frozenset(
    ("__bool__", "__int__", "__float__", "__index__", "__complex__", "item", "is_nonzero")
)
# or several, or sizes that depend on values
_READING_MORE = frozenset(
    (
        *("__array__", "__contains__", "tolist", "numpy", "equal", "allclose"),
        *("nonzero", "argwhere", "unique", "unique_consecutive", "masked_select"),
    )
)


class Read(NamedTuple):
    """One value that Python got.

    Attributes:
        name: of the function.
        value: that it gave.
        followed: whether samples enter it.
    """

    name: str
    value: object
    followed: bool


class Calls(TorchFunctionMode):
    """What comes between a pass and the functions of torch that it calls."""

    def __torch_function__(
        self,
        func: Function,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Answer as the function."""
        return self.call(func, args, kwargs or {})

    def call(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function, and do what there is to do."""
        raise NotImplementedError


class Reading(Calls):
    """Notes every single value that Python reads.

    Attributes:
        reads: in their order; none is known to be followed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[Read] = []

    def call(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function."""
        result = func(*args, **kwargs)
        if (name := name_of(func)) in _READING_ONE:
            self.reads.append(Read(name, result, followed=False))
        return result


class Following(Calls):
    """Follows what is computed from the inputs.

    A value is mixed if it has not as many parts as there are samples, or if a mixed one enters it.

    Args:
        inputs: with the samples along their first axes.
        samples: how many there are; of one alone nothing is mixed.

    Attributes:
        shares: the first function that makes of the samples something that is not by sample, other
            than a mixed value or a read of one value.
        reads: of one value, in their order.
    """

    def __init__(self, inputs: Sequence[Tensor], samples: int) -> None:
        super().__init__()
        self.shares: str | None = None
        self.reads: list[Read] = []
        self._samples = samples
        # kept, so that no other object gets the number of one of these
        self._followed: dict[int, object] = {id(tensor): tensor for tensor in inputs}
        self._mixed: dict[int, str] = {}  # by which function

    def call(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function, and follow what it makes of samples."""
        name, nest = name_of(func), (args, kwargs)
        followed = self.shares is None and self.follows(nest)
        before = versions(nest) if followed and self._mixed else []
        result = func(*args, **kwargs)
        if self.shares is None and name in _READING_ONE:
            self.reads.append(Read(name, result, followed))
        elif followed:
            self._follow(name, args, result, self._mixing(nest), before != versions(nest))
        return result

    def mixed(self, outputs: Tensor) -> str | None:
        """Return the function that made of all samples a value that enters the outputs.

        Where the outputs are not followed, as the forward pass has gone ways that are not seen,
        that is the first one that made any.
        """
        if id(outputs) in self._followed:
            return self._mixed.get(id(outputs))
        return next(iter(self._mixed.values()), None)

    def follows(self, nest: Nest) -> bool:
        """Return whether something followed is among these."""
        return any(id(value) in self._followed for value in values_in(nest))

    def _mixing(self, nest: Nest) -> str | None:
        if not self._mixed:
            return None
        found = (self._mixed.get(id(value)) for value in values_in(nest))
        return next((name for name in found if name is not None), None)

    def _follow(
        self, name: str, args: tuple[Any, ...], result: Any, mixing: str | None, changed: bool
    ) -> None:
        if name in _READING_MORE or self._cuts(name, args):
            self.shares = name
        elif self._orders(name, args):
            self.shares = f"{name} by an order of the samples"
        elif mixing is not None and (changed or name == "__set__"):
            self.shares = mixing  # which may have reached other names of the same memory
        elif not name.startswith("new_") and not name.endswith("_like"):  # of a shape alone
            for value in values_in((result, args[:1] if name == "__setitem__" else ())):
                if isinstance(value, Tensor):
                    self._followed[id(value)] = value
                    if mixing is not None or value.numel() % self._samples:
                        self._mixed.setdefault(id(value), mixing or name)

    def _cuts(self, name: str, args: tuple[Any, ...]) -> bool:
        """Return whether parts are taken by a mask, or between numbers computed from samples."""
        if name != "__getitem__":
            return False
        parts = args[1] if isinstance(args[1], tuple) else (args[1],)
        bounds = [part for part in parts if isinstance(part, slice)]
        return _by_mask(args[1]) or (bool(bounds) and self.follows(bounds))

    def _orders(self, name: str, args: tuple[Any, ...]) -> bool:
        """Return whether samples are picked by numbers that were computed from them."""
        if name == "__getitem__":
            rows = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
        elif name == "index_select" and len(args) == 3 and args[1] == 0:
            rows = args[2]
        else:
            return False
        return isinstance(rows, Tensor) and self._followed.keys() >= {id(rows), id(args[0])}


def name_of(func: Function) -> str:
    """Return a function's name; "" if it has none."""
    return getattr(func, "__name__", "")


def values_in(nest: Nest) -> Iterator[Any]:
    """Yield all that is in a nest, which may hold slices."""
    if isinstance(nest, tuple | list):
        for item in nest:
            yield from values_in(item)
    elif isinstance(nest, Mapping):
        yield from values_in(list(nest.values()))
    elif isinstance(nest, slice):
        yield from (nest.start, nest.stop, nest.step)
    else:
        yield nest


def versions(nest: Nest) -> list[int]:
    """Return how often each tensor in a nest, or another that shares its memory, was changed."""
    tensors = (value for value in values_in(nest) if isinstance(value, Tensor))
    return [-1 if tensor.is_inference() else tensor._version for tensor in tensors]


def _by_mask(index: Nest) -> bool:
    return any(
        isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8)
        for part in values_in(index)
    )
