"""Note in a client's folder of which node uses it, so that no two do."""

import json
import logging
import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedcurv.private_files import locked, private_folder, replaced

logger = logging.getLogger(__name__)

OWNER, LOCK = "owner.json", "lock"

_LONGEST_NOTE = 2**20


class OwnerNote:
    """Says which nodes have used a folder in this session of the server, and which may not.

    Args:
        path: of the folder.
        directory: that it is in, for errors.
        client_id: that it is of, likewise.
    """

    def __init__(self, path: Path, directory: Path, client_id: str) -> None:
        self._path, self._directory, self._client_id = path, directory, client_id

    def claimed(self, node: str, sending: str) -> bool:
        """Return whether the lock was free; claim the folder if it was."""
        private_folder(self._path)
        for name in (LOCK, OWNER):
            remove_unless_usable(self._path / name)
        with locked(self._path / LOCK) as got:
            if not got:
                return False
            session = sending.partition("/")[0]
            owner = self._read()
            nodes, refused = owner["nodes"], owner["refused"]
            if owner["session"] != session:
                nodes, refused = [], []
            latest = nodes[-1] if nodes else node
            is_second = latest != node and owner["sending"] == sending
            if node in refused or node in nodes[:-1] or is_second:
                refused = sorted({*refused, node})
                self._write({**owner, "refused": refused})
                raise ValueError(self.shared_by(node, f"node {latest}"))
            nodes = nodes if node in nodes else [*nodes, node]
            self._write(
                {"session": session, "sending": sending, "nodes": nodes, "refused": refused}
            )
        return True

    def shared_by(self, node: str, other: str) -> str:
        """Return what to say of two that use the folder at once."""
        return (
            f"client {self._client_id}: node {node} and {other} both use this client id and the "
            f"state folder {self._directory}, but each needs its own statistics; give each node "
            "its own client-id in its node configuration, and start it again"
        )

    def _read(self) -> dict[str, Any]:
        owner: dict[str, Any] = {"session": "", "sending": "", "nodes": [], "refused": []}
        try:
            with (self._path / OWNER).open("rb") as file:
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
            self._path / OWNER,
            why,
        )
        return owner

    def _write(self, owner: Mapping[str, Any]) -> None:
        with replaced(self._path / OWNER) as file:
            file.write(json.dumps(owner).encode())


def remove_unless_usable(path: Path) -> None:
    """Remove what is no file that this user can write: a link, a pipe, another user's."""
    try:
        is_file = stat.S_ISREG(path.lstat().st_mode)
    except OSError:  # there is none, or who opens it will say why
        return
    if not (is_file and os.access(path, os.R_OK | os.W_OK)):
        logger.warning("%s is no file that can be used and counts as absent", path)
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if that can be."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
