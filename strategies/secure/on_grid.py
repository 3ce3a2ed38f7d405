"""A secure sum's round on a grid: which node is which client, and who is lost on the way."""

from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Message, RecordDict

from fedcurv.strategies.replies.check import RoundFailed, require_one_node
from fedcurv.strategies.secure.asking import NO_REPLY, Asking, answer_in
from fedcurv.strategies.secure.secure_round import SecureRound
from fedcurv.strategies.wire.arrays import read_array, reason_of
from fedcurv.strategies.wire.identity import client_id_order
from fedcurv.strategies.wire.secure.form import Form, Shape
from fedcurv.strategies.wire.secure.plan import Plan
from fedcurv.strategies.wire.secure.stages import (
    MASKED,
    SECURE,
    Agreed,
    Keys,
    Masked,
    Revealed,
    Shares,
)
from fedcurv.strategies.wire.secure.words import Words


class RoundOnGrid:
    """Goes through the stages of one round with the nodes of a grid.

    Args:
        secure_round: the server's part.
        asking: for its questions.

    Attributes:
        refused: reason by message id for the replies to training that are not in the sum.
        num_members: how many clients have sent their keys.
    """

    def __init__(self, secure_round: SecureRound, asking: Asking) -> None:
        self._round, self._asking = secure_round, asking
        self._client_of: dict[int, str] = {}
        self._messages: dict[str, Message] = {}
        self.refused: dict[str, str] = {}
        self.num_members = 0

    def agree_on_keys(
        self, nodes: Sequence[int], known: Mapping[int, str], left_out: Mapping[str, str]
    ) -> None:
        """Play the first two stages.

        Args:
            nodes: that are to train.
            known: which clients they said they are when they were asked, as far as they were.
            left_out: reason by client for those that are not to take part.

        Raises:
            RoundFailed: if too few are left.
        """
        by_client: dict[str, int] = {}

        def take_keys(node: int, keys: Keys) -> None:
            require_one_node(keys.client_id, node, by_client, known)
            if keys.client_id in left_out:
                raise ValueError(f"left out since then: {left_out[keys.client_id]}")
            self._round.add_keys(keys)
            self._client_of[node] = keys.client_id

        def take_shares(node: int, shares: Shares) -> None:
            self._round.add_shares(self._client_of[node], shares)

        names = {node: known.get(node, f"of node {node}") for node in nodes}
        begin = self._round.ask_for_keys()
        self._asking.ask(dict.fromkeys(nodes, begin), Keys, take_keys, names)
        members = self._round.ask_for_shares()
        self.num_members = len(self._client_of)
        questions = dict.fromkeys(self._client_of, members)
        self._asking.ask(questions, Shares, take_shares, self._client_of)

    def to_send(
        self,
        messages: Iterable[Message],
        plan: Plan,
        summed: Mapping[str, Shape],
        sums_plan: str,
    ) -> list[Message]:
        """Return those of the messages whose nodes are still there, with what the mod needs.

        Args:
            messages: of the wrapped strategy.
            plan: of the round.
            summed: shapes of the arrays that are summed up, by name.
            sums_plan: text of the plan of the sums that they carry; empty for none.

        Raises:
            RoundFailed: if too few are left.
        """
        asked = self._round.ask_for_masked(plan, summed, sums_plan)
        for message in messages:
            client_id = self._client_of.get(message.metadata.dst_node_id, "")
            if client_id in asked:
                # strategies put one RecordDict into all messages
                records = {**message.content, SECURE: asked[client_id].to_config()}
                message.content = RecordDict(records)
                self._messages[client_id] = message
        return list(self._messages.values())

    def take(self, replies: Iterable[Message]) -> None:
        """Add the replies to the sum, one by one, and let go of them."""
        silent = set(self._messages)
        for reply in replies:
            message_id = reply.metadata.reply_to_message_id
            client_id = self._client_asked(reply)
            try:
                if client_id not in silent:
                    raise ValueError("expected one reply to a message of this round")
                silent.remove(client_id)
                masked = answer_in(reply, Masked)
                self._round.add_masked(client_id, masked, _packed_in(reply.content))
            except Exception as error:  # whatever a reply holds, the round goes on without it
                self._refuse(client_id or message_id, message_id, reason_of(error))
        for client_id in sorted(silent, key=client_id_order):
            self._asking.lose(client_id, Masked.stage, NO_REPLY)
        for client_id, reason in self._round.odd().items():
            self._refuse(client_id, self._messages[client_id].metadata.message_id, reason)

    def unmasked(self, sent: bytes) -> tuple[Form, Words, list[Message]]:
        """Play the last two stages; return the sum and the messages whose replies are in it.

        Args:
            sent: digest of the message to train.

        Raises:
            RoundFailed: if too few are left.
        """
        alive, agreement = self._round.ask_for_agreement(sent)
        nodes = {client_id: node for node, client_id in self._client_of.items()}

        def take_agreed(node: int, agreed: Agreed) -> None:
            self._round.add_agreed(self._client_of[node], agreed)

        def take_revealed(node: int, revealed: Revealed) -> None:
            self._round.add_revealed(self._client_of[node], revealed)

        questions = {nodes[client_id]: agreement for client_id in alive}
        self._asking.ask(questions, Agreed, take_agreed, self._client_of)
        signers, unmasking = self._round.ask_for_unmasking()
        shown = {nodes[client_id]: unmasking for client_id in signers}
        self._asking.ask(shown, Revealed, take_revealed, self._client_of)
        form, words = self._round.total()
        for client_id, reason in self._round.misfits.items():
            self._asking.lose(client_id, Revealed.stage, reason)
        return form, words, [self._messages[client_id] for client_id in alive]

    def told(self, error: RoundFailed) -> RoundFailed:
        """Return an error with who was lost."""
        return self._asking.told(error)

    def _client_asked(self, reply: Message) -> str:
        """Return the client whose message a reply answers; nothing if it answers none.

        Messages have their ids from when they are sent, which may be as late as their replies are
        asked for; what the server's side answers for a lost node comes from a node of its own.
        """
        message_id = reply.metadata.reply_to_message_id
        likely = self._client_of.get(reply.metadata.src_node_id, "")
        for client_id in (likely, *self._messages):
            message = self._messages.get(client_id)
            if message is not None and message.metadata.message_id == message_id:
                return client_id
        return ""

    def _refuse(self, client: str, message_id: str, reason: str) -> None:
        self.refused[message_id] = reason
        self._asking.lose(client, Masked.stage, reason)


def _packed_in(content: RecordDict) -> memoryview:
    record = content.array_records.get(MASKED)
    if record is None or list(record) != ["words"]:
        raise ValueError(f"expected masked numbers in the record {MASKED!r}")
    values = read_array("words", record["words"])
    if values.dtype.str != "|u1" or values.ndim != 1:
        raise ValueError(f"expected masked numbers as bytes, got {values.dtype} {values.shape}")
    return values.data
