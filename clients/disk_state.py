"""A client's own folder on disk: one file for each contribution, and who uses the folder."""

import hashlib
import json
import logging
import os
import shutil
import stat
import struct
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote
from zipfile import BadZipFile

import torch

from fedcurv.archive import Arrays, read_archive, write_archive
from fedcurv.clients.old_states import remove_old_states
from fedcurv.curvature import Curvature
from fedcurv.private_files import locked, private_folder, remove_leftovers, replaced

logger = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT_VERSION = 3

_OWNER, _LOCK = "owner.json", "lock"
# of the earlier round that is kept: more than one only if it was repeated
_MOST_KEPT = 8
# a claim takes milliseconds: whoever holds the lock for longer is no claim
_LONGEST_CLAIM_S = 10.0
_LONGEST_NAME = 100
_LONGEST_NOTE = 2**20
# what a damaged file makes of its reader; a lack of memory, say, is no damage
_DAMAGE = (
    *(BadZipFile, EOFError, KeyError, NotImplementedError, SyntaxError, TypeError, ValueError),
    struct.error,
)


class DiskFolder:
    """The files of one client in one federation.

    Args:
        directory: for all federations.
        client_id: any text.
        federation: the server's name for the training that goes on, over restarts.

    Attributes:
        path: of the folder, which is made when something is written.
    """

    def __init__(self, directory: Path, client_id: str, federation: str) -> None:
        self._directory, self._client_id = directory, client_id
        self._owner = {"federation": federation, "client-id": client_id}
        # the federation's name came over the wire and the client's id may hold any character
        self._federation_folder = directory / f"federation-{_hashed(federation)}"
        name = quote(client_id, safe="")
        if len(name) > _LONGEST_NAME:
            name = f"{name[:_LONGEST_NAME]}-{_hashed(client_id)}"
        self.path = self._federation_folder / f"client-{name}"

    def file(self, server_round: int, message_id: str) -> Path:
        """Return where the contribution to this round, in answer to this message, is kept."""
        return self.path / f"{_prefix(server_round)}{_hashed(message_id)}.npz"

    def claim(self, node: str, sending: str) -> None:
        """Note that a node uses the folder in this sending of a round, the only one that does.

        A node that was started anew under another node id takes over, for good: the one before
        it, if it shows up again, is refused, and so is a second node in one sending.

        Args:
            node: its id.
            sending: the server's name for it: the server's own, a slash, and a number; empty where
                the server does not say, and then nothing is noted.

        Raises:
            ValueError: if it is not the only one.
            OSError: if the folder cannot be written.
        """
        if not sending:
            return
        deadline = time.monotonic() + _LONGEST_CLAIM_S
        while not self._healing(lambda: self._claimed(node, sending)):
            if time.monotonic() > deadline:
                raise ValueError(self._shared_by(node, "another process"))
            time.sleep(0.05)

    def read(
        self, server_round: int, contributors: Collection[str]
    ) -> tuple[str, Curvature] | None:
        """Return the contribution to a round that answers one of these messages, and which one.

        What is damaged, or of the wrong kind, is told and removed, so that it is told once.
        """
        try:
            self._forget_earlier_version()
            remove_leftovers(self.path)
            there = {
                p.name for p in self.path.iterdir() if p.name.startswith(_prefix(server_round))
            }
            matching = [m for m in contributors if self.file(server_round, m).name in there]
            if not matching:
                if there:
                    logger.info("the reply of round %d is not in the sum", server_round)
                return None
            path = self.file(server_round, matching[0])
            return matching[0], self._unpack(path, *read_archive(path), server_round, matching[0])
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("own statistics cannot be used and count as absent: %s", error)
            if isinstance(error, OSError):
                self._removed_obstacles()
            elif error.__cause__ is None or isinstance(error.__cause__, _DAMAGE):
                _remove(path)
            return None

    def write(
        self, server_round: int, message_id: str, curvature: Curvature, kept_round: int | None
    ) -> None:
        """Write a contribution and remove all others but those of the round that is kept.

        What is in the way, a folder in the place of a file or the reverse, is removed.

        Raises:
            OSError: if it cannot be written; what was there before still is.
            ValueError: if a bound in the environment is no number.
        """
        names = list(curvature.precision)
        header = {
            "version": FORMAT_VERSION,
            **self._owner,
            "server-round": server_round,
            "message-id": message_id,
            "names": names,
        }
        arrays = {}
        for index, name in enumerate(names):
            arrays[f"precision-{index}"] = curvature.precision[name].cpu().numpy()
            arrays[f"weighted-parameters-{index}"] = (
                curvature.weighted_parameters[name].cpu().numpy()
            )
        path = self.file(server_round, message_id)
        self._healing(lambda: write_archive(path, header, arrays))
        for folder in (self.path, self._federation_folder):
            with suppress(OSError):
                folder.chmod(0o700)
        remove_leftovers(self.path)
        self._forget_others(path, kept_round)
        remove_old_states(self._directory, self._federation_folder)

    def _unpack(
        self,
        path: Path,
        header: Mapping[str, Any],
        arrays: Arrays,
        server_round: int,
        message_id: str,
    ) -> Curvature:
        expected = {
            "version": FORMAT_VERSION,
            **self._owner,
            "server-round": server_round,
            "message-id": message_id,
        }
        got = {key: header.get(key) for key in expected}
        if got != expected:
            raise ValueError(f"{path} is the state of {str(got)[:300]}, expected {expected}")
        names = header.get("names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path} cannot be read: it has no names")
        try:
            parts = [
                {n: torch.from_numpy(arrays[f"{kind}-{i}"]) for i, n in enumerate(names)}
                for kind in ("precision", "weighted-parameters")
            ]
            return Curvature(*parts).check()
        except Exception as error:  # arrays that are missing, or of types that torch has not
            raise ValueError(f"{path} cannot be read: {error}") from error

    def _claimed(self, node: str, sending: str) -> bool:
        """Return whether the lock was free; claim the folder if it was."""
        private_folder(self.path)
        for name in (_LOCK, _OWNER):
            _remove_unless_usable(self.path / name)
        with locked(self.path / _LOCK) as got:
            if not got:
                return False
            session = sending.partition("/")[0]
            owner = self._read_owner()
            nodes, refused = owner["nodes"], owner["refused"]
            if owner["session"] != session:
                nodes, refused = [], []
            latest = nodes[-1] if nodes else node
            is_second = latest != node and owner["sending"] == sending
            if node in refused or node in nodes[:-1] or is_second:
                refused = sorted({*refused, node})
                self._write_owner({**owner, "refused": refused})
                raise ValueError(self._shared_by(node, f"node {latest}"))
            nodes = nodes if node in nodes else [*nodes, node]
            self._write_owner(
                {"session": session, "sending": sending, "nodes": nodes, "refused": refused}
            )
        return True

    def _shared_by(self, node: str, other: str) -> str:
        return (
            f"client {self._client_id}: node {node} and {other} both use this client id and the "
            f"state folder {self._directory}, but each needs its own statistics; give each node "
            "its own client-id in its node configuration, and start it again"
        )

    def _read_owner(self) -> dict[str, Any]:
        owner: dict[str, Any] = {"session": "", "sending": "", "nodes": [], "refused": []}
        try:
            with (self.path / _OWNER).open("rb") as file:
                found = json.loads(file.read(_LONGEST_NOTE))
            if all(type(found[key]) is type(value) for key, value in owner.items()):
                return {key: found[key] for key in owner}
            why = "it says something else"
        except FileNotFoundError:
            return owner
        except Exception as error:  # whatever a damaged file makes of the reader
            why = str(error) or type(error).__name__
        logger.warning(
            "%s, of who uses the folder, cannot be used and counts as absent: %.200s",
            self.path / _OWNER,
            why,
        )
        return owner

    def _write_owner(self, owner: Mapping[str, Any]) -> None:
        with replaced(self.path / _OWNER) as file:
            file.write(json.dumps(owner).encode())

    def _healing(self, write: Callable[[], T]) -> T:
        """Return what ``write`` does, once more if something of the wrong kind was in its way."""
        try:
            return write()
        except OSError:
            if not self._removed_obstacles():
                raise
            return write()

    def _removed_obstacles(self) -> bool:
        removed = False
        with suppress(OSError):
            for folder in (self._federation_folder, self.path):
                if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                    folder.unlink()
                    removed = True
            for path in self.path.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                    removed = True
        return removed

    def _forget_others(self, latest: Path, kept_round: int | None) -> None:
        kept = {latest.name, _OWNER, _LOCK}
        if kept_round:
            earlier = [p for p in self.path.iterdir() if p.name.startswith(_prefix(kept_round))]
            earlier.sort(key=lambda p: p.stat().st_mtime_ns)
            kept |= {p.name for p in earlier[-_MOST_KEPT:]}
        for path in self.path.iterdir():
            if path.name not in kept and not path.name.endswith(".part"):
                _remove(path)

    def _forget_earlier_version(self) -> None:
        path = self.path.with_name(f"{self.path.name}.npz")
        if path.is_file():
            logger.warning("%s is of an earlier version of fedcurv and counts as absent", path)
            _remove(path)


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _prefix(server_round: int) -> str:
    return f"round-{server_round}-"


def _remove_unless_usable(path: Path) -> None:
    """Remove what is no file that this user can write: a link, a pipe, another user's."""
    try:
        is_file = stat.S_ISREG(path.lstat().st_mode)
    except OSError:  # there is none, or who opens it will say why
        return
    if not (is_file and os.access(path, os.R_OK | os.W_OK)):
        logger.warning("%s is no file that can be used and counts as absent", path)
        _remove(path)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
