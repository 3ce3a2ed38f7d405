"""Questions of secure sums to nodes, and their answers, however late or odd."""

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedcurv.errors import error_in
from fedcurv.parameters import listed
from fedcurv.strategies.replies.check import RoundFailed
from fedcurv.strategies.wire.arrays import reason_of
from fedcurv.strategies.wire.identity import client_id_order
from fedcurv.strategies.wire.secure.stages import SECURE, Keys, Stage, stage_in

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer", bound=Stage)

_NO_MOD = (
    "it does not answer in secure sums: does its ClientApp have mods=[fedcurv.clients."
    "secure_sums_mod]?"
)
NO_REPLY = "no reply in time"


class Asking:
    """Asks nodes in one round, and notes who is lost and why.

    Args:
        server_round: for what is said.
        grid: that has the nodes.
        message_type: of all messages.
        timeout: seconds that one stage may take.

    Attributes:
        lost: reason by client, or by node where its client is not known.
    """

    def __init__(self, server_round: int, grid: Grid, message_type: str, timeout: float) -> None:
        self._round, self._grid, self._type, self._timeout = (
            server_round,
            grid,
            message_type,
            timeout,
        )
        self.lost: dict[str, str] = {}

    def ask(
        self,
        questions: Mapping[int, Stage],
        kind: type[Answer],
        take: Callable[[int, Answer], None],
        names: Mapping[int, str],
    ) -> None:
        """Send questions, and hand each answer on.

        Args:
            questions: by node.
            kind: of the answers.
            take: gets a node and its answer; a ValueError says what is wrong with it.
            names: of the nodes' clients.
        """
        messages = {
            node: Message(
                RecordDict({SECURE: question.to_config()}),
                dst_node_id=node,
                message_type=self._type,
            )
            for node, question in questions.items()
        }
        replies = self._grid.send_and_receive(messages.values(), timeout=self._timeout)
        by_message = {reply.metadata.reply_to_message_id: reply for reply in replies}
        for node, message in messages.items():
            try:
                take(node, answer_in(by_message.get(message.metadata.message_id), kind))
            except Exception as error:  # whatever a reply holds, the round goes on
                self.lose(names[node], kind.stage, reason_of(error))

    def lose(self, client: str, stage: str, reason: str) -> None:
        """Note that a client is lost."""
        self.lost[client] = reason
        logger.warning(
            "round %d: client %s is left out from the stage %r of the secure sum on: %s",
            self._round,
            client,
            stage,
            reason,
        )

    def told(self, error: RoundFailed) -> RoundFailed:
        """Return an error with who was lost."""
        if not self.lost:
            return error
        lost = sorted(self.lost, key=client_id_order)
        return RoundFailed(
            f"{error}; lost were {listed(lost)}; client {lost[0]}: {self.lost[lost[0]]}"
        )


def answer_in(reply: Message | None, kind: type[Answer]) -> Answer:
    """Return what a node answers at a stage.

    Raises:
        ValueError: if it does not.
    """
    if reply is None:
        raise ValueError(NO_REPLY)
    if reply.has_error():
        reason = error_in(reply.error.reason or f"error code {reply.error.code}")
        is_known = kind.stage != Keys.stage or "RefusedByNode" in reason
        raise ValueError(reason if is_known else f"{reason} ({_NO_MOD})")
    config = stage_in(reply.content)
    if config is None or config.get("stage") != kind.stage:
        raise ValueError(_NO_MOD)
    return kind.from_config(config)
