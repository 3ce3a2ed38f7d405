"""Clients that a round did without: those that failed, and those that did not answer."""

import logging
from collections.abc import Callable, Mapping, Sequence

from flwr.app import Message

from fedcurv.errors import error_in
from fedcurv.parameters import listed
from fedcurv.strategies.loop.rounds import NO_REPLY, RoundRecord
from fedcurv.strategies.wire.records import client_id_order

logger = logging.getLogger(__name__)

# of a round's reasons, however many clients make up their own
_MOST_REASONS = 3


class LostClients:
    """Says once of each client why it has failed, or that it is silent; for ``on_round``.

    Replies that are refused are told where they are refused.
    """

    def __init__(self) -> None:
        self._told: set[tuple[str, str, str]] = set()

    def __call__(self, record: RoundRecord) -> None:
        """Look at a round."""
        lost = {c.client_id: c.reason for c in record.clients if c.status in ("failed", "missing")}
        self._tell(record.server_round, "training", lost, len(record.clients))
        self._tell(record.server_round, "evaluation", record.lost_evaluations, None)

    def _tell(
        self, server_round: int, phase: str, lost: Mapping[str, str], number: int | None
    ) -> None:
        by_reason: dict[str, list[str]] = {}
        for client, text in lost.items():
            reason = error_in(text)
            if (phase, client, reason) not in self._told:
                self._told.add((phase, client, reason))
                by_reason.setdefault(reason, []).append(client)
        whole = "" if number is None else f" of {number}"
        for reason, clients in list(by_reason.items())[:_MOST_REASONS]:
            logger.warning(
                "round %d: %s failed at %d%s clients (%s): %s",
                server_round,
                phase,
                len(clients),
                whole,
                listed(clients),
                reason,
            )
        if others := list(by_reason.values())[_MOST_REASONS:]:
            logger.warning(
                "round %d: %s failed at %d clients more, for other reasons, which the round's "
                "record has",
                server_round,
                phase,
                sum(map(len, others)),
            )


def lost_evaluations(
    messages: Sequence[Message], replies: Sequence[Message], client_id: Callable[[int], str]
) -> dict[str, str]:
    """Return by client id why there is no evaluation of it: its error, or that it is silent.

    Args:
        messages: that were sent.
        replies: that came.
        client_id: of a node.
    """
    answered = {reply.metadata.reply_to_message_id: reply for reply in replies}
    lost = {}
    for message in messages:
        reply = answered.get(message.metadata.message_id)
        if reply is None or reply.has_error():
            reason = NO_REPLY if reply is None else reply.error.reason or str(reply.error.code)
            lost[client_id(message.metadata.dst_node_id)] = reason
    return dict(sorted(lost.items(), key=lambda item: client_id_order(item[0])))
