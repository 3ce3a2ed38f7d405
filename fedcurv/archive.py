"""Files of named arrays with a header: NumPy archives, without pickles, written atomically."""

import ast
import json
import math
import os
import re
import stat
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcurv.private_files import replaced

Arrays = Mapping[str, NDArray[Any]]

_HEADER = "header"
_SUFFIX = ".npy"
# NumPy's own file format: versions 1 and 2 differ in how the length of the description is written
_MAGIC = b"\x93NUMPY"
_LENGTHS = {(1, 0): "<H", (2, 0): "<I"}
# a description has a type, an order and a shape of at most 64 axes
_LONGEST_DESCRIPTION = 4096
# numbers, and the text of the header
_TYPE = re.compile(r"[<>|=]?([fiu](1|2|4|8|16)|b1|U\d{1,10})")


def write_archive(path: Path, header: Mapping[str, Any], arrays: Arrays) -> None:
    """Write a file, through a temporary one beside it, so that a crash leaves the old or the new.

    Args:
        path: its folder is made if it is missing.
        header: anything that JSON can hold.
        arrays: of numbers, under any names but ``header``.

    Raises:
        OSError: if it cannot be written; the old file, if any, is untouched.
    """
    members: dict[str, Any] = {_HEADER: np.array(json.dumps(header)), **arrays}
    with replaced(path) as file:
        np.savez(file, **members)


def read_archive(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the header and the arrays of a file that ``write_archive`` wrote.

    No more is allocated than the file is long: members are not compressed, and say how large they
    are.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or no such file.
    """
    try:
        # a pipe or a device would be waited for
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("it is no file")
        arrays = _read_members(path)
        text = arrays.pop(_HEADER, None)
        if text is None or text.dtype.kind != "U" or text.shape != ():
            raise ValueError("it has no header")
        for name, array in arrays.items():
            if array.dtype.kind == "U":
                raise ValueError(f"{name!r} holds text, expected numbers")
        header = json.loads(str(text))
        if not isinstance(header, dict):
            raise ValueError("its header is no table")
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged file makes of the readers below
        raise ValueError(f"{path} cannot be read: {error or type(error).__name__}") from error
    return header, arrays


def _read_members(path: Path) -> dict[str, NDArray[Any]]:
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        length = os.fstat(file.fileno()).st_size
        members = archive.infolist()
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename!r} is compressed")
            if not member.filename.endswith(_SUFFIX):
                raise ValueError(f"{member.filename!r} is no array")
        if len({member.filename for member in members}) < len(members):
            raise ValueError("several arrays have the same name")
        if sum(max(member.file_size, member.compress_size) for member in members) > length:
            raise ValueError(f"its arrays are said to be larger than its {length} bytes")
        return {
            member.filename.removesuffix(_SUFFIX): _read_member(archive, member)
            for member in members
        }


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    data = np.empty(member.file_size, np.uint8)
    with archive.open(member) as file:
        view, got = data.data, 0
        while number := file.readinto(view[got:]):  # type: ignore[attr-defined]
            got += number
        if got < len(data) or file.read(1):
            raise ValueError(f"{member.filename!r} is cut off")
    return _array_in(data, member.filename)


def _array_in(data: NDArray[np.uint8], name: str) -> NDArray[Any]:
    """Return what NumPy's own file format holds, as a view."""
    begin = bytes(data[: _LONGEST_DESCRIPTION + 12])
    form = _LENGTHS.get((begin[6], begin[7])) if len(begin) > 8 else None
    if not begin.startswith(_MAGIC) or form is None:
        raise ValueError(f"{name!r} is no array")
    (length,) = struct.unpack_from(form, begin, 8)
    first = 8 + struct.calcsize(form)
    if length > min(_LONGEST_DESCRIPTION, len(begin) - first):
        raise ValueError(f"{name!r} is described at too great a length")
    described = ast.literal_eval(begin[first : first + length].decode("latin1").strip())
    if not isinstance(described, dict) or described.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError(f"{name!r} is not described as an array")
    descr, shape = described["descr"], described["shape"]
    if not isinstance(descr, str) or not _TYPE.fullmatch(descr):
        raise ValueError(f"{name!r} has the type {str(descr)[:40]!r}, expected numbers")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"{name!r} is not described as an array")
    dtype, values = np.dtype(descr), data[first + length :]
    if math.prod(shape) * dtype.itemsize != len(values):
        raise ValueError(
            f"{name!r} has {len(values)} bytes, not those of {dtype} {str(shape)[:80]}"
        )
    if dtype.itemsize == 0:  # text of no length, which no header is
        raise ValueError(f"{name!r} is empty text")
    array: NDArray[Any] = np.frombuffer(values.data, dtype)
    in_order: NDArray[Any] = (
        array.reshape(shape[::-1]).T if described["fortran_order"] is True else array.reshape(shape)
    )
    return in_order.astype(dtype.newbyteorder("="), copy=False)
