"""A client's own folder on disk: one file for each of its states, and who uses the folder."""

import hashlib
import logging
import shutil
import struct
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote
from zipfile import BadZipFile

import torch
from torch import Tensor

from fedcurv.archive import Arrays, read_archive, write_archive
from fedcurv.clients.folder_owner import LOCK, OWNER, OwnerNote, remove
from fedcurv.clients.old_states import remove_old_states
from fedcurv.private_files import remove_leftovers

logger = logging.getLogger(__name__)

T = TypeVar("T")

# a state's tables of tensors, by the name of the part and of the parameter
Parts = Mapping[str, Mapping[str, Tensor]]

FORMAT_VERSION = 3

# of the earlier round that is kept: more than one only if it was repeated
_MOST_KEPT = 8
# a claim takes milliseconds: whoever holds the lock for longer is no claim
_LONGEST_CLAIM_S = 10.0
_LONGEST_NAME = 100
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
        parts: names of the tables of tensors that a state is made of, all of the same names.

    Attributes:
        path: of the folder, which is made when something is written.
    """

    def __init__(
        self, directory: Path, client_id: str, federation: str, parts: Sequence[str]
    ) -> None:
        self._directory, self._client_id, self._parts = directory, client_id, parts
        self._owner = {"federation": federation, "client-id": client_id}
        # the federation's name came over the wire and the client's id may hold any character
        self._federation_folder = directory / f"federation-{_hashed(federation)}"
        name = quote(client_id, safe="")
        if len(name) > _LONGEST_NAME:
            name = f"{name[:_LONGEST_NAME]}-{_hashed(client_id)}"
        self.path = self._federation_folder / f"client-{name}"
        self._note = OwnerNote(self.path, directory, client_id)

    def file(self, server_round: int, message_id: str) -> Path:
        """Return where the state after the answer to this message of this round is kept."""
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
        while not self._healing(lambda: self._note.claimed(node, sending)):
            if time.monotonic() > deadline:
                raise ValueError(self._note.shared_by(node, "another process"))
            time.sleep(0.05)

    def read(
        self, server_round: int, message_ids: Collection[str], make: Callable[[Parts], T]
    ) -> tuple[str, T] | None:
        """Return what is made of a state, after the answer to one of these messages, and which.

        What is damaged, or of the wrong kind, is told and removed, so that it is told once.

        Args:
            server_round: that the messages belonged to.
            message_ids: of which one may be there.
            make: of the state's parts; whatever it raises says that they are of the wrong kind.
        """
        try:
            self._forget_earlier_version()
            remove_leftovers(self.path)
            there = {
                p.name for p in self.path.iterdir() if p.name.startswith(_prefix(server_round))
            }
            matching = [m for m in message_ids if self.file(server_round, m).name in there]
            if not matching:
                if there:
                    logger.info("the reply of round %d is not in the sum", server_round)
                return None
            path = self.file(server_round, matching[0])
            found = read_archive(path)
            return matching[0], self._unpack(path, *found, server_round, matching[0], make)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("own statistics cannot be used and count as absent: %s", error)
            if isinstance(error, OSError):
                self._removed_obstacles()
            elif error.__cause__ is None or isinstance(error.__cause__, _DAMAGE):
                remove(path)
            return None

    def write(
        self,
        server_round: int,
        message_id: str,
        parts: Parts,
        *,
        kept_round: int | None = None,
        kept: Collection[tuple[int, str]] = (),
    ) -> None:
        """Write a state and remove all others but those that are kept.

        What is in the way, a folder in the place of a file or the reverse, is removed.

        Args:
            server_round: that it is of.
            message_id: after the answer to which message.
            parts: that it is made of.
            kept_round: whose states are kept.
            kept: rounds and message ids of states that are kept.

        Raises:
            OSError: if it cannot be written; what was there before still is.
            ValueError: if a bound in the environment is no number.
        """
        names = list(parts[self._parts[0]])
        header = {
            "version": FORMAT_VERSION,
            **self._owner,
            "server-round": server_round,
            "message-id": message_id,
            "names": names,
        }
        arrays = {}
        for index, name in enumerate(names):
            for part in self._parts:
                arrays[f"{part}-{index}"] = parts[part][name].cpu().numpy()
        path = self.file(server_round, message_id)
        self._healing(lambda: write_archive(path, header, arrays))
        for folder in (self.path, self._federation_folder):
            with suppress(OSError):
                folder.chmod(0o700)
        remove_leftovers(self.path)
        exact = {self.file(*state).name for state in kept}
        self._forget_others({path.name, *exact, *self._names_of_round(kept_round)})
        remove_old_states(self._directory, self._federation_folder)

    def _unpack(
        self,
        path: Path,
        header: Mapping[str, Any],
        arrays: Arrays,
        server_round: int,
        message_id: str,
        make: Callable[[Parts], T],
    ) -> T:
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
            parts = {
                part: {n: torch.from_numpy(arrays[f"{part}-{i}"]) for i, n in enumerate(names)}
                for part in self._parts
            }
            return make(parts)
        except Exception as error:  # arrays that are missing, or of types that torch has not
            raise ValueError(f"{path} cannot be read: {error}") from error

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

    def _names_of_round(self, kept_round: int | None) -> list[str]:
        if not kept_round:
            return []
        earlier = [p for p in self.path.iterdir() if p.name.startswith(_prefix(kept_round))]
        earlier.sort(key=lambda p: p.stat().st_mtime_ns)
        return [p.name for p in earlier[-_MOST_KEPT:]]

    def _forget_others(self, kept: Collection[str]) -> None:
        for path in self.path.iterdir():
            if path.name not in (*kept, OWNER, LOCK) and not path.name.endswith(".part"):
                remove(path)

    def _forget_earlier_version(self) -> None:
        path = self.path.with_name(f"{self.path.name}.npz")
        if path.is_file():
            logger.warning("%s is of an earlier version of fedcurv and counts as absent", path)
            remove(path)


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _prefix(server_round: int) -> str:
    return f"round-{server_round}-"
