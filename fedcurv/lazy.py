"""Sequences of tensors that are made when they are asked for, so that one is held at a time."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import overload

from torch import Tensor


class LazyTensors(Sequence[Tensor]):
    """Makes the tensor of an index anew each time."""

    @abstractmethod
    def made(self, index: int) -> Tensor:
        """Return the tensor of an index; an IndexError beyond the last."""

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        """Return the tensor of an index, or those of several."""
        if isinstance(index, slice):
            return [self.made(i) for i in range(*index.indices(len(self)))]
        return self.made(index)
