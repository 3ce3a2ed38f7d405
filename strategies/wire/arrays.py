"""Arrays as Flower packs them, and back: of the types that torch has, and of the size they tell.

What comes from elsewhere is checked before anything is allocated for it: an array is a view of the
bytes that came, or a ValueError with its name.
"""

import math
import warnings
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

# how Flower packs arrays: in NumPy's file format, whose first version has all plain arrays
_NUMPY_FORMAT = "numpy.ndarray"
_MAGIC = np.lib.format.magic(1, 0)
# NumPy's headers of plain arrays have 118 bytes; all that are read are remembered
_LONGEST_HEADER = 1024

# by kind and bytes, what both NumPy and torch have
_TYPES = {"f2", "f4", "f8", "c8", "c16", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class ArrayInPlace(Array):
    """An array whose numbers are read where they lie and cannot be written to."""

    def numpy(self) -> NDArray[Any]:
        """Return the numbers without a copy."""
        return read_array("in place", self)


def pack_tensors(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return the tensors as one record, in float32 unless they are of a wider type."""
    return ArrayRecord({name: Array(_for_numpy(tensor)) for name, tensor in tensors.items()})


def unpack_tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """Return the record's arrays as tensors that share its memory: read them, do not write.

    Raises:
        ValueError: if an array cannot be read as numbers; pickles are never loaded.
    """
    with warnings.catch_warnings():
        # they are not written to, so that torch needs not warn of it
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {name: torch.from_numpy(read_array(name, array)) for name, array in record.items()}


def unpack_floats(record: ArrayRecord) -> dict[str, Tensor]:
    """Return the record's arrays as ``unpack_tensors`` does; statistics are real numbers.

    Raises:
        ValueError: also if one has another type.
    """
    tensors = unpack_tensors(record)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"array {name!r}: expected floating-point numbers, got {tensor.dtype}")
    return tensors


def read_array(name: str, array: Array) -> NDArray[Any]:
    """Return an array's numbers without a copy.

    Raises:
        ValueError: if it is no array of numbers, or not the one that it says it is.
    """
    try:
        values = _view(array)
        told = tuple(array.shape)
    except Exception as error:  # the bytes are a stranger's, and NumPy's reader promises nothing
        raise ValueError(f"array {name!r} cannot be read: {reason_of(error)}") from error
    if values.shape != told:
        raise ValueError(
            f"array {name!r}: expected the shape {told} that it is said to have, got {values.shape}"
        )
    return values


def reason_of(error: BaseException) -> str:
    """Return an error in one line: its text, after its type where that is not ValueError."""
    text = " ".join(str(error).split())[:500]
    kind = type(error).__name__
    return text if type(error) is ValueError and text else f"{kind}: {text}" if text else kind


def _view(array: Array) -> NDArray[Any]:
    """Return what NumPy's own file format holds, as a view of the bytes."""
    if array.stype != _NUMPY_FORMAT:
        raise ValueError(f"expected the format {_NUMPY_FORMAT!r}, got {array.stype!r}")
    data = array.data
    shape, is_fortran_order, dtype, begin = _header(data[: _header_length(data)])
    number = math.prod(shape)
    if number * dtype.itemsize != len(data) - begin:
        raise ValueError(
            f"expected {number * dtype.itemsize} bytes for the shape {shape} of {dtype}, got "
            f"{len(data) - begin}"
        )
    values = np.frombuffer(data, dtype, number, begin) if number else np.empty(0, dtype)
    values = values.reshape(shape, order="F" if is_fortran_order else "C")
    if dtype.kind == "b" and values.size and values.view(np.uint8).max() > 1:
        raise ValueError("expected 0 or 1 for a truth value")
    return values.astype(dtype.newbyteorder("="), copy=False)


def _header_length(data: bytes) -> int:
    """Return where the numbers begin in NumPy's own file format, version 1."""
    if data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it does not begin as a plain array does")
    length = len(_MAGIC) + 2 + int.from_bytes(data[len(_MAGIC) : len(_MAGIC) + 2], "little")
    if not len(_MAGIC) + 2 < length <= min(_LONGEST_HEADER, len(data)):
        raise ValueError(f"its header is cut short, or of more than {_LONGEST_HEADER} bytes")
    return length


@lru_cache(maxsize=4096)  # all clients' arrays have the same few headers, which are slow to read
def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    file = BytesIO(data)
    np.lib.format.read_magic(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd spellings, which are read all the same
        shape, is_fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.str[1:] not in _TYPES:
        raise ValueError(f"expected numbers of a type that torch has, got dtype {dtype}")
    if any(size < 0 for size in shape):
        raise ValueError(f"expected sizes >= 0, got the shape {shape}")
    return shape, is_fortran_order, dtype, file.tell()


def _for_numpy(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    numbers: NDArray[Any] = tensor.numpy()
    return numbers
