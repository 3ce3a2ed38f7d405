"""Files and folders for their owner alone: made private, locked, and replaced whole.

Locks are the operating system's: they end with the process that holds them, however it ends. Where
a system has none, a lock is always given.
"""

import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has another
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:  # and only Windows
    msvcrt = None  # type: ignore[assignment]

_PART = ".part"
# as versions before this one named what they had not finished
_EARLIER_PART = re.compile(r"tmp[a-z0-9_]{8}\.part")
_BUSY = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}

# a process that is forked off must not hold the locks of the one that it comes from
_locked: set[int] = set()


def private_folder(folder: Path) -> Path:
    """Return the folder, made if it is missing, as all folders above it are, for the owner alone.

    Those that exist stay as they are.

    Raises:
        OSError: if it cannot be made.
    """
    missing = [folder]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for one in reversed(missing):
        try:
            one.mkdir(mode=0o700, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(
                f"{one}: expected a folder, or none yet, got a file or a link to nowhere"
            ) from error
    return folder


def open_private(path: Path, mode: str) -> IO[bytes]:
    """Return a binary file that its owner alone may read, made if it is missing.

    Args:
        path: its folder is made if it is missing.
        mode: ``ab`` appends, ``wb`` begins anew.

    Raises:
        OSError: if it cannot be opened.
    """
    private_folder(path.parent)
    flags = os.O_APPEND if mode == "ab" else os.O_TRUNC
    # nobody may read from a pipe, whose opening would be waited for
    flags |= getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600)
    if hasattr(os, "set_blocking"):
        os.set_blocking(descriptor, True)
    file = os.fdopen(descriptor, mode)
    if hasattr(os, "fchmod") and os.fstat(descriptor).st_mode & 0o077:
        with suppress(PermissionError):  # one that was there before, and perhaps another's
            os.fchmod(descriptor, 0o600)
    return file


@contextmanager
def made_private() -> Iterator[None]:
    """Make every file that this process makes meanwhile, in any thread, for its owner alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock, and give whether it was free; nobody waits for it.

    Args:
        path: of a file that stays, and its folder, made if they are missing.

    Raises:
        OSError: if it cannot be made.
    """
    with open_private(path, "ab") as file:
        got = _lock(file.fileno())
        try:
            yield got
        finally:
            _unlock(file.fileno())


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write to, which takes the place of ``path`` once it is complete.

    What a writer of ``path`` left that was killed is removed.

    Raises:
        OSError: if it cannot be written; the old file, if any, is untouched, as after any error.
    """
    private_folder(path.parent)
    remove_leftovers(path.parent, lambda name: name.startswith(f".{path.name}."))
    descriptor, temporary = _new_part(path)
    try:
        with os.fdopen(descriptor, "wb") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if fcntl is not None:
                    # still locked: nobody takes it for a leftover before it has its name
                    os.replace(temporary, path)
            finally:
                _unlock(descriptor)
        if fcntl is None:
            os.replace(temporary, path)  # where open files cannot be renamed
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            name_file(error, path)
        raise


def name_file(error: OSError, path: Path) -> None:
    """Have an error say which file it is of: one of writing, as on a full disk, does not."""
    # without a number an error shows its own text, and with a file that no more
    if error.filename is None and error.errno is not None:
        error.filename = str(path)


def remove_leftovers(folder: Path, is_ours: Callable[[str], bool] = lambda name: True) -> None:
    """Remove the unfinished files in a folder whose writers have ended.

    Args:
        folder: where it is missing there is nothing to do.
        is_ours: whether an unfinished file of this name may be removed.
    """
    try:
        names = [n for n in os.listdir(folder) if n.endswith(_PART)]
    except OSError:
        return
    for name in names:
        if is_ours(name) or _EARLIER_PART.fullmatch(name):
            _remove_unless_in_use(folder / name)


def _new_part(path: Path) -> tuple[int, str]:
    """Return an unfinished file beside ``path``, locked, and its name."""
    while True:
        descriptor, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=_PART
        )
        if _lock(descriptor) and os.path.exists(temporary):
            return descriptor, temporary
        # somebody found it before it was locked, and removes it as a leftover
        _unlock(descriptor)
        os.close(descriptor)


def _remove_unless_in_use(path: Path) -> None:
    try:
        if fcntl is None or not path.is_file() or path.is_symlink():
            path.unlink()  # Windows refuses while it is open
            return
        descriptor = os.open(path, os.O_RDWR)
        try:
            if _lock(descriptor):
                path.unlink(missing_ok=True)
                _unlock(descriptor)
        finally:
            os.close(descriptor)
    except OSError:  # a folder, another's, or gone by now
        return


def _lock(descriptor: int) -> bool:
    """Return whether the file could be locked."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        # file systems without locks give them to everybody
        return error.errno not in _BUSY
    _locked.add(descriptor)
    return True


def _unlock(descriptor: int) -> None:
    if descriptor not in _locked:
        return
    _locked.discard(descriptor)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        elif msvcrt is not None:
            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
    except OSError:  # a file system without locks
        return


def _let_go_in_child() -> None:
    # unlocking would unlock the parent's as well, and whoever has the file open still closes it
    if _locked:
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in _locked:
            os.dup2(nothing, descriptor, inheritable=False)
        os.close(nothing)
        _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)
