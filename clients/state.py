"""State of a client between rounds: its own terms of the sums that it may meet again.

These are the latest, and those that the server's latest checkpoint holds, from which a server that
is killed goes on. Small statistics stay in Flower's ``Context.state``, which ends with the run:
nodes that their owner gave a ``client-id`` use their own disk where the server keeps checkpoints.
Large ones go to disk in any case, because a deployed Flower client loses any state that takes more
than seconds to hand back, and says nothing.
"""

import logging
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from flwr.app import Context

from fedcurv.clients.context_state import ContextFolder
from fedcurv.clients.disk_state import DiskFolder, Parts
from fedcurv.curvature import Curvature, shapes_of
from fedcurv.strategies.wire.records import Instruction, client_id_of

logger = logging.getLogger(__name__)

STATE_DIRECTORY_VARIABLE = "FEDCURV_STATE_DIR"

# the largest pair (P, Q) that is left to Context.state
_SMALL_BYTES = 16 * 2**20

_PARTS = ("precision", "weighted-parameters")
# records of the latest, and of an earlier round: more than one only if that was repeated
_PLACES = ("fedcurv.own", "fedcurv.kept-1", "fedcurv.kept-2")

T = TypeVar("T")


@dataclass(frozen=True)
class Contribution:
    """What a client sent: its terms, the round, and the id of the message that it answered."""

    server_round: int
    message_id: str
    curvature: Curvature


class ContributionStore(Protocol):
    """Keeps a client's contributions: the latest, and those of one earlier round."""

    def load(self, server_round: int, contributors: Collection[str]) -> Contribution | None:
        """Return what was sent in a round in answer to one of these messages.

        None if there is none that can be trusted; the log says so where there was one.
        """
        ...

    def save(self, contribution: Contribution, kept_round: int | None = None) -> None:
        """Keep it, and beside it only those of ``kept_round``."""
        ...


class SaysWhose(Protocol):
    """What a server tells of whose training a client's state is."""

    @property
    def federation(self) -> str:
        """A name for the training, the same over restarts of the server."""
        ...

    @property
    def sending(self) -> str:
        """The server's name for this sending."""
        ...

    @property
    def resumable(self) -> bool:
        """Whether a later run may go on from a checkpoint."""
        ...


class StateFolder(Protocol):
    """Keeps a client's states, each after its answer to a message; see ``DiskFolder``."""

    def read(
        self, server_round: int, message_ids: Collection[str], make: Callable[[Parts], T]
    ) -> tuple[str, T] | None:
        """Return what is made of a state, and after the answer to which message."""
        ...

    def write(
        self,
        server_round: int,
        message_id: str,
        parts: Parts,
        *,
        kept_round: int | None = None,
        kept: Collection[tuple[int, str]] = (),
    ) -> None:
        """Keep a state, and those that are named."""
        ...


def folder_for(
    context: Context,
    state_bytes: int,
    directory: Path | None,
    said: SaysWhose,
    *,
    places: Sequence[str],
    parts: Sequence[str],
) -> StateFolder:
    """Return where a client keeps states of this size.

    Args:
        context: the client's own.
        state_bytes: of all that is kept at once.
        directory: keep them on disk below here; None keeps small ones in ``Context.state``, and
            large ones, and a named client's for a server with checkpoints, below
            ``$FEDCURV_STATE_DIR``, or ``~/.cache/fedcurv/state``.
        said: names the federation and the sending, and says whether there are checkpoints.
        places: see ``ContextFolder``.
        parts: see ``DiskFolder``.

    Raises:
        ValueError: if another node that lives uses the same client id and folder.
        OSError: if the folder cannot be written; small statistics of a named client then stay in
            ``Context.state``, and the log says so.
    """
    # a resumed run is another one, with contexts of its own; simulated nodes have no client-id
    outlives_run = said.resumable and "client-id" in context.node_config
    fits_context = directory is None and state_bytes <= _SMALL_BYTES
    in_context = ContextFolder(context, places, parts)
    if fits_context and not outlives_run:
        return in_context
    below = directory or default_directory()
    folder = DiskFolder(below, client_id_of(context), said.federation, parts)
    try:
        folder.claim(str(context.node_id), said.sending)
    except OSError as error:
        if not fits_context:
            raise
        logger.warning(
            "own statistics end with this run, since they cannot be kept on disk: %s; set %s to a "
            "folder that can be written",
            error,
            STATE_DIRECTORY_VARIABLE,
        )
        return in_context
    return folder


def store_for(
    context: Context, model_bytes: int, directory: Path | None, instruction: Instruction
) -> ContributionStore:
    """Return where a client with a model of this size keeps its contributions.

    Args:
        context: the client's own.
        model_bytes: of its trainable parameters.
        directory: see :func:`folder_for`, as for what is raised.
        instruction: likewise.
    """
    folder = folder_for(
        context, 2 * model_bytes, directory, instruction, places=_PLACES, parts=_PARTS
    )
    if isinstance(folder, DiskFolder):
        return DiskStore.of(folder)
    return ContextStore(context)


def forget_others(context: Context, server_round: int, kept: Collection[int]) -> None:
    """Remove from ``Context.state`` what was contributed before a round, but in those ``kept``.

    A store does so when it saves; this is for clients that were not chosen for that round.
    """
    ContextFolder(context, _PLACES, _PARTS).forget_before(server_round, kept)


def own_terms(
    store: ContributionStore, instruction: Instruction, sums: Curvature, *, noised: bool = False
) -> Curvature | None:
    """Return a client's own terms of the server's sums.

    None if there are none, or if they do not fit the sums, which the log says.

    Args:
        store: of the client.
        instruction: with the sums.
        sums: in it.
        noised: whether these have noise, with which they may be smaller than one of their terms.
    """
    if not instruction.contributors:
        return None
    own = store.load(instruction.sums_round, instruction.contributors)
    if own is None:
        return None
    precision = own.curvature.precision
    if shapes_of(precision) != shapes_of(sums.precision):
        logger.warning("own statistics are of another model and count as absent")
        return None
    # what was added up of terms >= 0 is nowhere smaller than one of them, but for its rounding
    most = sums.precision if instruction.bounds is None else instruction.bounds.most
    if not noised and any(bool((precision[name] > bound).any()) for name, bound in most.items()):
        logger.warning("own statistics exceed the server's sums of them and count as absent")
        return None
    return own.curvature


def default_directory() -> Path:
    """Return the folder for state files: ``$FEDCURV_STATE_DIR``, or ``~/.cache/fedcurv/state``."""
    configured = os.environ.get(STATE_DIRECTORY_VARIABLE)
    return Path(configured) if configured else Path.home() / ".cache" / "fedcurv" / "state"


class _Store:
    """Keeps contributions in a folder."""

    folder: StateFolder

    def load(self, server_round: int, contributors: Collection[str]) -> Contribution | None:
        """Return the contribution to this round that answers one of these messages."""
        found = self.folder.read(server_round, contributors, _curvature)
        if found is None:
            return None
        message_id, curvature = found
        return Contribution(server_round, message_id, curvature)

    def save(self, contribution: Contribution, kept_round: int | None = None) -> None:
        """Keep the contribution, and beside it only those of ``kept_round``, the latest few.

        Raises:
            OSError: if a folder on disk cannot be written; the old files, if any, are untouched.
            ValueError: if a bound in the environment is no number.
        """
        curvature = contribution.curvature
        parts = (curvature.precision, curvature.weighted_parameters)
        self.folder.write(
            contribution.server_round,
            contribution.message_id,
            dict(zip(_PARTS, parts, strict=True)),
            kept_round=kept_round,
        )


class ContextStore(_Store):
    """Keeps contributions in Flower's ``Context.state``, three records for each."""

    def __init__(self, context: Context) -> None:
        self.folder = ContextFolder(context, _PLACES, _PARTS)


class DiskStore(_Store):
    """Keeps each contribution in a file of its own, in a folder per federation and client.

    A file that is damaged, or that belongs to another federation or client, counts as absent, and
    the log says so: a client without its contribution subtracts nothing, which is safe.
    """

    folder: DiskFolder

    def __init__(self, directory: Path, context: Context, federation: str) -> None:
        self.folder = DiskFolder(directory, client_id_of(context), federation, _PARTS)

    @classmethod
    def of(cls, folder: DiskFolder) -> "DiskStore":
        """Return the store of a folder."""
        store = cls.__new__(cls)
        store.folder = folder
        return store


def _curvature(parts: Parts) -> Curvature:
    return Curvature(*(dict(parts[part]) for part in _PARTS)).check()
