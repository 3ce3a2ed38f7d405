"""A round's replies as they come: checked one by one, and either fit for use or refused by name."""

import logging
from collections.abc import Iterable, Mapping

import torch
from flwr.app import Message, RecordDict

from fedcurv.strategies.joint import agreed_in
from fedcurv.strategies.replies.check import (
    Arrays,
    Sent,
    check_reply,
    require_one_node,
    require_some_success,
)
from fedcurv.strategies.sums import Agreed, RoundSums
from fedcurv.strategies.wire import records
from fedcurv.strategies.wire.arrays import reason_of

logger = logging.getLogger(__name__)


class Received:
    """A round's replies, of which statistics are taken out for the sums.

    Args:
        server_round: the round.
        sent: the model that was sent.
        weighted_by_key: the weights' name in the metrics.
        known: the clients that the nodes said they were when they were asked.

    Attributes:
        refused: reason by message id.
        constant: names of arrays that hold NaN or inf as they were sent.
        fit: the replies that are not refused, errors among them.
    """

    def __init__(
        self, server_round: int, sent: Sent, weighted_by_key: str, known: Mapping[int, str]
    ) -> None:
        self._server_round = server_round
        self._sent = sent
        self._weighted_by_key = weighted_by_key
        self._known = known
        self._all: list[Message] = []
        self._clients: dict[str, str] = {}
        self._weights: dict[str, float] = {}
        self.refused: dict[str, str] = {}
        self.constant: set[str] = set()
        self.fit: list[Message] = []

    def take(self, replies: Iterable[Message], sums: RoundSums) -> None:
        """Check each reply when it comes and add what it says of curvature to the sums."""
        nodes: dict[str, int] = {}
        for message in replies:
            self._all.append(message)
            if message.has_error():
                continue
            message_id = message.metadata.reply_to_message_id
            self._clients[message_id] = f"node-{message.metadata.src_node_id}"
            try:
                client_id = records.unpack_client_id(message.content)
                self._clients[message_id] = client_id or self._clients[message_id]
                require_one_node(client_id, message.metadata.src_node_id, nodes, self._known)
                arrays = self._add(message_id, message.content, sums)
                self._weights[message_id] = arrays.weight
                self.constant |= arrays.constant
            except Exception as error:  # whatever a reply holds, the round goes on without it
                self.refused[message_id] = reason_of(error)

    def _add(self, message_id: str, content: RecordDict, sums: RoundSums) -> Arrays:
        """Take this project's records out of a reply and add what they say to the sums."""
        report = records.take_report(content)
        if report is not None and report.message_id not in (None, message_id):
            raise ValueError(
                "expected statistics of this message, got those that answer another; does the "
                "client, or a mod on the way, send an earlier reply or somebody else's?"
            )
        arrays = check_reply(content, self._sent, self._weighted_by_key, sums.distances)
        sums.add(message_id, content, arrays, report)
        return arrays

    def agreed(
        self, sums: RoundSums, parameter_names: frozenset[str], dtype: torch.dtype
    ) -> Agreed:
        """Return what most replies agree on; see ``agreed_in``."""
        return agreed_in(self._all, sums, parameter_names, dtype)

    def settle(self, agreed: Agreed) -> None:
        """Refuse what most replies do not agree with, and say so.

        Raises:
            RoundFailed: if no reply is fit for use, with the first client's traceback.
        """
        self.refused |= agreed.refused
        self._say("refused the reply", self.refused)
        self._say("left out the statistics", agreed.left_out)
        require_some_success(self._server_round, self._all, self.refused)
        self.fit = [m for m in self._all if m.metadata.reply_to_message_id not in self.refused]

    def _say(self, what: str, reasons: Mapping[str, str]) -> None:
        for message_id, reason in reasons.items():
            client = self._clients[message_id]
            logger.warning(
                "round %d: %s of client %s: %s", self._server_round, what, client, reason
            )

    def client_of(self, message: Message) -> str:
        """Return whose a reply is, in words."""
        return f"client {self._clients[message.metadata.reply_to_message_id]}"

    def contents(self) -> list[tuple[RecordDict, float]]:
        """Return what the fit replies hold for the wrapped strategy, with their weights."""
        return [
            (m.content, self._weights[m.metadata.reply_to_message_id])
            for m in self.fit
            if m.has_content()
        ]

    def ids_of(self, contents: Iterable[RecordDict]) -> list[str]:
        """Return the message ids of the fit replies that hold these very contents."""
        ids = {id(content) for content in contents}
        return [
            m.metadata.reply_to_message_id
            for m in self.fit
            if m.has_content() and id(m.content) in ids
        ]
