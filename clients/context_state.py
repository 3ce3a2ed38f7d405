"""A client's states in Flower's ``Context.state``, as ``disk_state`` keeps them on disk."""

import logging
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord

from fedcurv.clients.disk_state import Parts
from fedcurv.strategies.wire.arrays import pack_tensors, unpack_tensors

logger = logging.getLogger(__name__)

T = TypeVar("T")

Record = ArrayRecord | MetricRecord | ConfigRecord


class ContextFolder:
    """Keeps a few states in records of their own: one says which it is, and one for each part.

    Args:
        context: of the client.
        places: names for the records, one for each state; the latest is in the first.
        parts: see ``DiskFolder``.
    """

    def __init__(self, context: Context, places: Sequence[str], parts: Sequence[str]) -> None:
        self._state, self._places, self._parts = context.state, places, parts

    def read(
        self, server_round: int, message_ids: Collection[str], make: Callable[[Parts], T]
    ) -> tuple[str, T] | None:
        """Return what is made of a state, and after the answer to which message; see there."""
        try:
            for place in self._places:
                if not any(name in self._state for name in self._names(place)):
                    continue
                config = self._state.config_records[place]
                message_id = config["message-id"]
                if config["server-round"] != server_round:
                    continue
                if message_id in message_ids:
                    return str(message_id), make(self._parts_at(place))
                logger.info("the reply of round %d is not in the sum", server_round)
        except Exception as error:  # whatever somebody else's records make of it
            logger.warning(
                "own statistics in Context.state cannot be used and count as absent: %s",
                str(error) or type(error).__name__,
            )
            for place in self._places:
                self._take(place)
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
        """Keep a state, and beside it those that are kept, the latest few."""
        taken = [self._take(place) for place in self._places]
        others = [one for one in taken if _is_kept(one, kept_round, kept)]
        latest: list[Record | None] = [
            ConfigRecord({"server-round": server_round, "message-id": message_id}),
            *(pack_tensors(parts[part]) for part in self._parts),
        ]
        for place, records in zip(self._places, [latest, *others], strict=False):
            for name, record in zip(self._names(place), records, strict=True):
                if record is not None:
                    self._state[name] = record

    def forget_before(self, server_round: int, kept_rounds: Collection[int]) -> None:
        """Remove states of earlier rounds than this one, but those of rounds that are kept."""
        for place in self._places:
            config = self._state.get(place)
            number = config.get("server-round") if isinstance(config, ConfigRecord) else None
            if isinstance(number, int) and number < server_round and number not in kept_rounds:
                self._take(place)

    def _names(self, place: str) -> list[str]:
        return [place, *(f"{place}.{part}" for part in self._parts)]

    def _take(self, place: str) -> list[Record | None]:
        return [self._state.pop(name, None) for name in self._names(place)]

    def _parts_at(self, place: str) -> Parts:
        names = self._names(place)[1:]
        return {
            part: unpack_tensors(self._state.array_records[name])
            for part, name in zip(self._parts, names, strict=True)
        }


def _is_kept(
    records: Sequence[Record | None], kept_round: int | None, kept: Collection[tuple[int, str]]
) -> bool:
    config = records[0]
    if not isinstance(config, ConfigRecord):
        return False
    number, message_id = config.get("server-round"), config.get("message-id")
    return (bool(kept_round) and number == kept_round) or (number, message_id) in kept
