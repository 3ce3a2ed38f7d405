"""Files of named arrays with a header: NumPy archives, without pickles, written atomically."""

import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

_HEADER = "header"


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


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write to, which takes the place of ``path`` once it is complete.

    Raises:
        OSError: if it cannot be written; the old file, if any, is untouched, as after any error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_archive(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the header and the arrays of a file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or no such file.
    """
    try:
        # pickles are refused, and every member of the archive has a checksum
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(str(arrays.pop(_HEADER)))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path} cannot be read: its header is no table")
    return header, arrays
