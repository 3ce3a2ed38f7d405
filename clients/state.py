"""What a client remembers between rounds: its own terms of the last sum that it may be part of.

Small statistics stay in Flower's ``Context.state``. Large ones go to the client's own disk,
because a deployed Flower client loses any state that takes more than seconds to hand back, and
says nothing.
"""

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import torch
from flwr.app import ConfigRecord, Context

from fedcurv.archive import Arrays, read_archive, write_archive
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


def store_for(
    context: Context, model_bytes: int, directory: Path | None, federation: str
) -> ContributionStore:
    """Return where a client with a model of this size keeps its contribution.

    Args:
        context: the client's own.
        model_bytes: of its trainable parameters.
        directory: keep it on disk below here; None keeps small ones in ``Context.state`` and large
            ones below ``$FEDCURV_STATE_DIR``, or ``~/.cache/fedcurv/state``.
        federation: the server's name for the training that goes on, over restarts.
    """
    if directory is None and 2 * model_bytes <= _SMALL_BYTES:
        return ContextStore(context)
    return DiskStore(directory or default_directory(), context, federation)


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
    """Keeps the contribution in one file per federation and client.

    A file that is damaged, or that belongs to another federation or client, counts as absent, and
    the log says so: a client without its contribution subtracts nothing, which is safe.
    """

    def __init__(self, directory: Path, context: Context, federation: str) -> None:
        client_id = client_id_of(context)
        self._owner = {"federation": federation, "client-id": client_id}
        # the federation's name came over the wire and the client's id may hold any character
        folder = f"federation-{hashlib.sha256(federation.encode()).hexdigest()[:16]}"
        self.path = directory / folder / f"client-{quote(client_id, safe='')}.npz"

    def load(self) -> Contribution | None:
        """Return the contribution, or None if there is none that can be trusted."""
        try:
            header, arrays = read_archive(self.path)
            return self._unpack(header, arrays)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("own statistics cannot be used and count as absent: %s", error)
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
        arrays = {}
        for index, name in enumerate(names):
            arrays[f"precision-{index}"] = curvature.precision[name].cpu().numpy()
            arrays[f"information-{index}"] = curvature.information[name].cpu().numpy()
        write_archive(self.path, header, arrays)

    def _unpack(self, header: Mapping[str, Any], arrays: Arrays) -> Contribution:
        owner = {key: header[key] for key in self._owner}
        if owner != self._owner:
            raise ValueError(f"{self.path} is the state of {owner}, expected {self._owner}")
        names = header["names"]
        return Contribution(
            int(header["server-round"]),
            str(header["message-id"]),
            Curvature(
                {n: torch.from_numpy(arrays[f"precision-{i}"]) for i, n in enumerate(names)},
                {n: torch.from_numpy(arrays[f"information-{i}"]) for i, n in enumerate(names)},
            ).check(),
        )
