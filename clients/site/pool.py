"""A site's worker processes, kept alive between federated rounds.

A deployed ClientApp is a new process for every message, so the workers belong to a host process of
their own, which is found again by a folder. It serves one job at a time, on loopback, to whoever
can read that folder, and ends itself when it is idle for long.
"""

import contextlib
import json
import os
import pickle
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import IO, Any

import fedcurv.lasgd  # noqa: F401  # says what is missing where torch has no torch.distributed

try:
    import fcntl
except ImportError as error:
    raise ImportError(
        "a site's workers need file locks (fcntl), which this system lacks; train with "
        "trainer=local there"
    ) from error

import torch
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

_NAP_S = 0.05
START_S = 120.0
# eleven days; the system's waits end at twice that
_LONGEST_S = 1e6
ADDRESS_FILE = "address.json"


@dataclass(frozen=True)
class Place:
    """Where a worker stands in a job.

    Attributes:
        rank: of this worker in the job.
        size: workers in the job.
        device: for torch.
        port: of the job's store, on loopback.
        job: its number; names its part of the store.
    """

    rank: int
    size: int
    device: str
    port: int
    job: int

    def store(self) -> Any:
        """Return a client of the job's store."""
        server = TCPStore("127.0.0.1", self.port, is_master=False, timeout=timedelta(seconds=60))
        return store_of_job(server, self.job)


def store_of_job(server: Any, job: int) -> Any:
    """Return a job's part of the site's store."""
    return PrefixStore(f"job/{job}", server)


@dataclass(frozen=True)
class Outcome:
    """What one worker made of a job.

    Attributes:
        rank: of the worker.
        value: what the job returned.
        error: the traceback or the end of the process; None if the job returned.
    """

    rank: int
    value: Any
    error: str | None


class SiteFailed(RuntimeError):
    """No worker has done its job."""


class SitePool:
    """The workers of a folder; the first who asks starts them.

    Args:
        folder: made if it is missing, for this user alone. What listens there is trusted with code,
            so one that another owns, that others may enter or that is a link is refused.
        devices: one for each worker, such as ``["cuda:0", "cuda:1"]`` or ``["cpu"] * 4``.
        idle_s: after which the workers end, > 0.
        patience_s: for workers that are silent after another has done its job; then they are
            replaced; > 0.

    Raises:
        ValueError: for devices that torch cannot know or none, times out of range, or if the
            folder's workers have other devices.
        PermissionError: for a folder that is not this user's alone.
        SiteFailed: if the workers do not start.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        devices: Sequence[str],
        *,
        idle_s: float = 900.0,
        patience_s: float = 120.0,
    ) -> None:
        _check(devices, idle_s, patience_s)
        self._folder = Path(folder)
        self._settings = {"devices": list(devices), "idle_s": idle_s, "patience_s": patience_s}
        with contextlib.suppress(FileExistsError):
            self._folder.mkdir(mode=0o700, parents=True)
        require_private(self._folder)
        with self._alone():
            if not self._answers():
                self._start()
        address = self._address() or {}
        if address.get("devices") != list(devices):
            raise ValueError(
                f"expected workers on {', '.join(devices)} in {folder}, but those that run there "
                f"have {address.get('devices')}; close them, or take another folder"
            )

    def run(self, job: Callable[..., Any], *arguments: Any) -> list[Outcome]:
        """Let every worker do ``job(place, *arguments)``.

        Args:
            job: a function of an importable module.
            *arguments: pickled.

        Returns:
            the outcomes, in the order of ranks.

        Raises:
            SiteFailed: if all have failed; says why.
        """
        with self._connection() as connection:
            connection.send_bytes(b"run" + pickle.dumps((job, arguments)))
            try:
                answers = pickle.loads(connection.recv_bytes())
            except (EOFError, OSError) as error:
                raise SiteFailed(f"the workers' host has ended; see {self._log}") from error
        outcomes = [
            Outcome(rank, pickle.loads(value) if error is None else None, error)
            for rank, (value, error) in enumerate(answers)
        ]
        if all(outcome.error for outcome in outcomes):
            raise SiteFailed(f"no worker has done its job; the first says: {outcomes[0].error}")
        return outcomes

    def close(self) -> None:
        """End the workers."""
        address = self._address()
        if address is None:
            return
        with self._connection() as connection:
            connection.send_bytes(b"end")
        deadline = time.monotonic() + START_S
        while _is_alive(address["pid"]) and time.monotonic() < deadline:
            time.sleep(_NAP_S)

    @property
    def _log(self) -> Path:
        return self._folder / "host.log"

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with _private(self._folder / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _start(self) -> None:
        (self._folder / ADDRESS_FILE).unlink(missing_ok=True)
        with _private(self._log) as log:
            host = subprocess.Popen(
                [
                    sys.executable,
                    *("-m", "fedcurv.clients.site.host"),
                    str(self._folder),
                    json.dumps(self._settings),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while self._address() is None:
            if host.poll() is not None or time.monotonic() > deadline:
                raise SiteFailed(f"the workers' host did not start; see {self._log}")
            time.sleep(_NAP_S)

    def _address(self) -> dict[str, Any] | None:
        require_private(self._folder)
        file = self._folder / ADDRESS_FILE
        try:
            if (owner := file.lstat().st_uid) != os.geteuid():
                raise PermissionError(
                    f"expected {file} to be of user {os.geteuid()}, got one of user {owner}, whose "
                    "code it could run in this process; remove it, or take another folder"
                )
            address: dict[str, Any] = json.loads(file.read_text())
            bytes.fromhex(address["key"])
            return address if _is_alive(int(address["pid"])) else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None  # half-written, or not ours

    def _answers(self) -> bool:
        """Return whether a host listens; a killed one's number may be another process's."""
        address = self._address()
        if address is None:
            return False
        try:
            socket.create_connection(("127.0.0.1", address["port"]), timeout=1.0).close()
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # it is busy
        return True

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Connection]:
        address = self._address()
        if address is None:
            raise SiteFailed(f"the workers of {self._folder} have ended; make the pool anew")
        key = bytes.fromhex(address["key"])
        with Client(("127.0.0.1", address["port"]), authkey=key) as connection:
            yield connection


def _check(devices: Sequence[str], idle_s: float, patience_s: float) -> None:
    if isinstance(devices, str) or not (devices and all(map(_is_device, devices))):
        raise ValueError(
            f'devices must be a list with one of torch\'s for each worker, such as ["cpu", "cpu"], '
            f"got {devices!r}"
        )
    for name, value in (("idle_s", idle_s), ("patience_s", patience_s)):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and 0 < value <= _LONGEST_S):
            raise ValueError(f"{name} must be a number > 0 and <= {_LONGEST_S:g}, got {value!r}")


def _is_device(name: object) -> bool:
    if not isinstance(name, str):
        return False
    try:
        torch.device(name)
    except RuntimeError:
        return False
    return True


def require_private(folder: Path) -> None:
    """Raise a PermissionError unless a folder is this user's, for this user alone, and no link."""
    found, own = folder.lstat(), os.geteuid()
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISLNK(found.st_mode):
        what = "a link"
    elif not stat.S_ISDIR(found.st_mode):
        what = "no folder"
    elif found.st_uid != own:
        what = f"a folder of user {found.st_uid}"
    elif mode & 0o077:
        what = f"one with the mode {mode:04o}"
    else:
        return
    raise PermissionError(
        f"expected {folder} to be a folder of user {own} with the mode 0700, got {what}; others "
        "could run code in this process by it: remove it, or take another folder (for the "
        "ready-made client set TMPDIR to one of your own)"
    )


def _private(path: Path) -> IO[str]:
    """Open a file to be written anew, for this user alone."""
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w")


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # one that this process has started, and that has ended
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False  # or another user's, which has the number of one that has ended
    return True
