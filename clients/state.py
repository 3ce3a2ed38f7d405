"""State of a client between rounds: its own terms of the sums that it may meet again.

These are the latest, and those that the server's latest checkpoint holds, from which a server that
is killed goes on. Small statistics stay in Flower's ``Context.state``, which ends with the run:
nodes that their owner gave a ``client-id`` use their own disk where the server keeps checkpoints.
Large ones go to disk in any case, because a deployed Flower client loses any state that takes more
than seconds to hand back, and says nothing.
"""

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord

from fedcurv.clients.disk_state import DiskFolder
from fedcurv.curvature import Curvature, shapes_of
from fedcurv.strategies.wire.records import Instruction, client_id_of, pack_tensors, unpack_tensors

logger = logging.getLogger(__name__)

STATE_DIRECTORY_VARIABLE = "FEDCURV_STATE_DIR"

# the largest pair (P, Q) that is left to Context.state
_SMALL_BYTES = 16 * 2**20

# records of the latest, and of an earlier round: more than one only if that was repeated
_PLACES = ("fedcurv.own", "fedcurv.kept-1", "fedcurv.kept-2")

Record = ArrayRecord | MetricRecord | ConfigRecord


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


def store_for(
    context: Context, model_bytes: int, directory: Path | None, instruction: Instruction
) -> ContributionStore:
    """Return where a client with a model of this size keeps its contributions.

    Args:
        context: the client's own.
        model_bytes: of its trainable parameters.
        directory: keep them on disk below here; None keeps small ones in ``Context.state``, and
            large ones, and a named client's for a server with checkpoints, below
            ``$FEDCURV_STATE_DIR``, or ``~/.cache/fedcurv/state``.
        instruction: names the federation and the sending, and says whether there are checkpoints.

    Raises:
        ValueError: if another node that lives uses the same client id and folder.
        OSError: if the folder cannot be written; small statistics of a named client then stay in
            ``Context.state``, and the log says so.
    """
    # a resumed run is another one, with contexts of its own; simulated nodes have no client-id
    outlives_run = instruction.resumable and "client-id" in context.node_config
    fits_context = directory is None and 2 * model_bytes <= _SMALL_BYTES
    if fits_context and not outlives_run:
        return ContextStore(context)
    store = DiskStore(directory or default_directory(), context, instruction.federation)
    try:
        store.folder.claim(str(context.node_id), instruction.sending)
    except OSError as error:
        if not fits_context:
            raise
        logger.warning(
            "own statistics end with this run, since they cannot be kept on disk: %s; set %s to a "
            "folder that can be written",
            error,
            STATE_DIRECTORY_VARIABLE,
        )
        return ContextStore(context)
    return store


def forget_others(context: Context, server_round: int, kept: Collection[int]) -> None:
    """Remove from ``Context.state`` what was contributed before a round, but in those ``kept``.

    A store does so when it saves; this is for clients that were not chosen for that round.
    """
    for place in _PLACES:
        config = context.state.get(place)
        number = config.get("server-round") if isinstance(config, ConfigRecord) else None
        if isinstance(number, int) and number < server_round and number not in kept:
            for name in _names(place):
                context.state.pop(name, None)


def own_terms(
    store: ContributionStore, instruction: Instruction, sums: Curvature
) -> Curvature | None:
    """Return a client's own terms of the server's sums.

    None if there are none, or if they do not fit the sums, which the log says.
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
    if any(bool((precision[name] > bound).any()) for name, bound in most.items()):
        logger.warning("own statistics exceed the server's sums of them and count as absent")
        return None
    return own.curvature


def default_directory() -> Path:
    """Return the folder for state files: ``$FEDCURV_STATE_DIR``, or ``~/.cache/fedcurv/state``."""
    configured = os.environ.get(STATE_DIRECTORY_VARIABLE)
    return Path(configured) if configured else Path.home() / ".cache" / "fedcurv" / "state"


class ContextStore:
    """Keeps contributions in Flower's ``Context.state``, three records for each."""

    def __init__(self, context: Context) -> None:
        self._state = context.state

    def load(self, server_round: int, contributors: Collection[str]) -> Contribution | None:
        """Return the contribution to this round that answers one of these messages."""
        try:
            for place in _PLACES:
                if not any(name in self._state for name in _names(place)):
                    continue
                config = self._state.config_records[place]
                message_id = config["message-id"]
                if config["server-round"] != server_round:
                    continue
                if message_id in contributors:
                    return Contribution(server_round, str(message_id), self._curvature_at(place))
                logger.info("the reply of round %d is not in the sum", server_round)
        except Exception as error:  # whatever somebody else's records make of it
            logger.warning(
                "own statistics in Context.state cannot be used and count as absent: %s",
                str(error) or type(error).__name__,
            )
            for place in _PLACES:
                self._take(place)
        return None

    def save(self, contribution: Contribution, kept_round: int | None = None) -> None:
        """Keep the contribution, and beside it only those of ``kept_round``, the latest few."""
        taken = [self._take(place) for place in _PLACES]
        kept = [records for records in taken if _round_of(records) == kept_round]
        kept = kept if kept_round else []
        curvature = contribution.curvature
        latest: list[Record | None] = [
            ConfigRecord(
                {"server-round": contribution.server_round, "message-id": contribution.message_id}
            ),
            pack_tensors(curvature.precision),
            pack_tensors(curvature.weighted_parameters),
        ]
        for place, records in zip(_PLACES, [latest, *kept], strict=False):
            for name, record in zip(_names(place), records, strict=True):
                if record is not None:
                    self._state[name] = record

    def _take(self, place: str) -> list[Record | None]:
        return [self._state.pop(name, None) for name in _names(place)]

    def _curvature_at(self, place: str) -> Curvature:
        _, precision, weighted = _names(place)
        return Curvature(
            unpack_tensors(self._state.array_records[precision]),
            unpack_tensors(self._state.array_records[weighted]),
        ).check()


def _names(place: str) -> tuple[str, str, str]:
    return place, f"{place}.precision", f"{place}.weighted-parameters"


def _round_of(records: Sequence[Record | None]) -> object:
    return records[0].get("server-round") if isinstance(records[0], ConfigRecord) else None


class DiskStore:
    """Keeps each contribution in a file of its own, in a folder per federation and client.

    A file that is damaged, or that belongs to another federation or client, counts as absent, and
    the log says so: a client without its contribution subtracts nothing, which is safe.
    """

    def __init__(self, directory: Path, context: Context, federation: str) -> None:
        self.folder = DiskFolder(directory, client_id_of(context), federation)

    def load(self, server_round: int, contributors: Collection[str]) -> Contribution | None:
        """Return the contribution if it is one of these and can be trusted."""
        found = self.folder.read(server_round, contributors)
        if found is None:
            return None
        message_id, curvature = found
        return Contribution(server_round, message_id, curvature)

    def save(self, contribution: Contribution, kept_round: int | None = None) -> None:
        """Keep the contribution, and beside it only those of ``kept_round``.

        Raises:
            OSError: if the folder cannot be written; the old files, if any, are untouched.
            ValueError: if a bound in the environment is no number.
        """
        self.folder.write(
            contribution.server_round, contribution.message_id, contribution.curvature, kept_round
        )
