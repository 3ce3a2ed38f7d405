"""Constants of a training: frozen parameters, and tables of integers."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fedcurv.lasgd.checksum import checksum
from fedcurv.lasgd.counts import is_count

_REMEDY = (
    "keep it as it is within the with block, or keep what is to follow the training outside of the "
    "model"
)


class Constants:
    """Tensors that no round sums, and that must therefore be the same at all workers to the end.

    Args:
        parameters: of the model.
        buffers: of the model that are watched.
        trained: the parameters that are summed.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        trained: Iterable[Tensor],
    ) -> None:
        # kept, so that no other parameter gets the id of one of them
        self._trained = {id(p): p for p in trained}
        now = self._among(parameters, buffers)
        self._values = {name: _value(tensor) for name, tensor in now.items()}
        self._marks = {name: _mark(tensor) for name, tensor in now.items()}

    def change(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        *,
        to_the_last_bit: bool,
    ) -> str | None:
        """Return what has changed; None if nothing has.

        Args:
            parameters: as they are now.
            buffers: as they are now.
            to_the_last_bit: read all values; else only those of tensors of which torch knows that
                they have been written, which takes microseconds, and misses writes to ``.data``.
        """
        now = self._among(parameters, buffers)
        if now.keys() != self._values.keys():
            name = next(iter(now.keys() ^ self._values.keys()))
            how = "come to" if name in now else "gone from"
            return f"{name!r}, which is not trained, has {how} the model; {_REMEDY}"
        for name, tensor in now.items():
            mark = _mark(tensor)
            if to_the_last_bit or mark != self._marks[name]:
                if _value(tensor) != self._values[name]:
                    what = "frozen" if name in parameters else "a table of integers"
                    return f"{name!r} was {what} as LASGD began and has been changed; {_REMEDY}"
                self._marks[name] = mark
        return None

    def _among(
        self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        found = {name: p for name, p in parameters.items() if id(p) not in self._trained}
        return {**found, **{name: b for name, b in buffers.items() if is_table(b)}}


def is_table(buffer: Tensor) -> bool:
    """Whether a buffer is of integers that decide what a model computes, such as an order."""
    return not buffer.is_floating_point() and not is_count(buffer)


def _value(tensor: Tensor) -> tuple[torch.dtype, torch.Size, int]:
    return tensor.dtype, tensor.shape, checksum(tensor)


def _mark(tensor: Tensor) -> tuple[int, int]:
    """Return what another tensor in its place, or a write that torch sees, changes."""
    version = -1 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version
