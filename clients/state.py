"""What a client remembers between rounds: its own terms of the last sum that it may be part of.

Small statistics stay in Flower's ``Context.state``. Large ones go to the client's own disk,
because a deployed Flower client loses any state that takes more than seconds to hand back, and
says nothing.
"""

import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
import torch
from flwr.app import ConfigRecord, Context

from fedcurv.curvature import Curvature
from fedcurv.strategies.records import client_id_of, pack_tensors, unpack_tensors

logger = logging.getLogger(__name__)

STATE_DIRECTORY_VARIABLE = "FEDCURV_STATE_DIR"

# the largest pair (P, Q) that is left to Context.state
_SMALL_BYTES = 16 * 2**20

_CONFIG = "fedcurv.own"
_PRECISION = "fedcurv.own.precision"
_INFORMATION = "fedcurv.own.information"


@dataclass(frozen=True)
class Contribution:
    """What a client sent: its terms, the round, and the id of the message that it answered."""

    server_round: int
    message_id: str
    curvature: Curvature


class ContributionStore(Protocol):
    """Keeps one contribution, the latest."""

    def load(self) -> Contribution | None:
        """Return it, or None if there is none that can be trusted."""
        ...

    def save(self, contribution: Contribution) -> None:
        """Replace it."""
        ...


def store_for(context: Context, model_bytes: int, directory: Path | None) -> ContributionStore:
    """Return where a client with a model of this size keeps its contribution.

    Args:
        context: the client's own.
        model_bytes: of its trainable parameters.
        directory: keep it on disk below here; None keeps small ones in ``Context.state`` and large
            ones below ``$FEDCURV_STATE_DIR``, or ``~/.cache/fedcurv/state``.
    """
    if directory is None and 2 * model_bytes <= _SMALL_BYTES:
        return ContextStore(context)
    return DiskStore(directory or default_directory(), context)


def default_directory() -> Path:
    """Return the folder for state files: ``$FEDCURV_STATE_DIR``, or ``~/.cache/fedcurv/state``."""
    configured = os.environ.get(STATE_DIRECTORY_VARIABLE)
    return Path(configured) if configured else Path.home() / ".cache" / "fedcurv" / "state"


class ContextStore:
    """Keeps the contribution in Flower's ``Context.state``."""

    def __init__(self, context: Context) -> None:
        self._state = context.state

    def load(self) -> Contribution | None:
        """Return the contribution, or None if there is none."""
        config = self._state.config_records.get(_CONFIG)
        if config is None:
            return None
        return Contribution(
            int(config["server-round"]),  # type: ignore[arg-type]
            str(config["message-id"]),
            Curvature(
                unpack_tensors(self._state.array_records[_PRECISION]),
                unpack_tensors(self._state.array_records[_INFORMATION]),
            ),
        )

    def save(self, contribution: Contribution) -> None:
        """Replace the contribution."""
        self._state[_PRECISION] = pack_tensors(contribution.curvature.precision)
        self._state[_INFORMATION] = pack_tensors(contribution.curvature.information)
        self._state[_CONFIG] = ConfigRecord(
            {"server-round": contribution.server_round, "message-id": contribution.message_id}
        )


class DiskStore:
    """Keeps the contribution in one file per run and client.

    Written to a temporary file and moved into place, so that a crash leaves the old one or the new
    one. A file that is damaged, or that belongs to another run or client, counts as absent, and the
    log says so: a client without its contribution subtracts nothing, which is safe.
    """

    def __init__(self, directory: Path, context: Context) -> None:
        client_id = client_id_of(context)
        self._owner = {"run-id": context.run_id, "client-id": client_id}
        # the id is the node's own, but may hold any character
        name = f"client-{quote(client_id, safe='')}.npz"
        self.path = directory / f"run-{context.run_id}" / name

    def load(self) -> Contribution | None:
        """Return the contribution, or None if there is none that can be trusted."""
        try:
            # np.load reads pickles only when told to; each member of the archive has a checksum
            with np.load(self.path, allow_pickle=False) as archive:
                return self._read(archive)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            logger.warning(
                "own statistics in %s cannot be used and count as absent: %s", self.path, error
            )
            return None

    def save(self, contribution: Contribution) -> None:
        """Replace the contribution.

        Raises:
            OSError: if the folder cannot be written; the old file, if any, is untouched.
        """
        curvature = contribution.curvature
        names = list(curvature.precision)
        header = {
            **self._owner,
            "server-round": contribution.server_round,
            "message-id": contribution.message_id,
            "names": names,
        }
        members: dict[str, Any] = {"header": np.array(json.dumps(header))}
        for index, name in enumerate(names):
            members[f"precision-{index}"] = curvature.precision[name].detach().cpu().numpy()
            members[f"information-{index}"] = curvature.information[name].detach().cpu().numpy()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=self.path.parent, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.savez(file, **members)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _read(self, archive: Mapping[str, Any]) -> Contribution:
        header = json.loads(str(archive["header"]))
        owner = {key: header[key] for key in self._owner}
        if owner != self._owner:
            raise ValueError(f"expected the state of {self._owner}, got that of {owner}")
        names = header["names"]
        return Contribution(
            int(header["server-round"]),
            str(header["message-id"]),
            Curvature(
                {n: torch.from_numpy(archive[f"precision-{i}"]) for i, n in enumerate(names)},
                {n: torch.from_numpy(archive[f"information-{i}"]) for i, n in enumerate(names)},
            ).check(),
        )
