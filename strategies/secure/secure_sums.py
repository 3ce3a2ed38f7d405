"""Secure sums around any strategy that averages."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedcurv.strategies.joint import JointReply
from fedcurv.strategies.loop import strategy_state
from fedcurv.strategies.loop.statistics import SendsStatistics
from fedcurv.strategies.loop.strategy_calls import StrategyCalls
from fedcurv.strategies.replies.check import (
    RoundFailed,
)
from fedcurv.strategies.replies.screen import Screen, weighted_by_key
from fedcurv.strategies.secure.asking import Asking
from fedcurv.strategies.secure.on_grid import RoundOnGrid
from fedcurv.strategies.secure.recovery import WronglyDealt
from fedcurv.strategies.secure.scales import Scales
from fedcurv.strategies.secure.secure_round import SecureRound
from fedcurv.strategies.secure.unfit import refuse_single_replies
from fedcurv.strategies.wire.records import CONFIG, config_of_sums
from fedcurv.strategies.wire.secure.digests import digest_of_arrays, digest_of_message
from fedcurv.strategies.wire.secure.form import summed_shapes
from fedcurv.strategies.wire.secure.neighbours import DEFAULT_NEIGHBOURS, DEFAULT_THRESHOLD
from fedcurv.strategies.wire.secure.plan import Plan
from fedcurv.strategies.wire.secure.statistics import pack_exact_sums
from fedcurv.strategies.wire.secure.vector import Sums, sums_of
from fedcurv.strategies.wrapping import Wrapping

logger = logging.getLogger(__name__)

_SMALLEST_GROUP = 3
_STAGE_TIMEOUT_S = 300.0


class SecureSums(Wrapping):
    """Lets the server see the sum of a round's replies and no single one.

    Clients need ``fedcurv.clients.secure_sums_mod``. The wrapped strategy sees one reply: the
    arrays' mean weighted by ``num-examples``, the sum of these, the metrics' means, and of FedCurv
    the sums P and Q. Around training there are four stages more, in which keys, shares of secrets,
    signatures of who is in the sum and at last the shares that take the masks off it travel; who is
    lost at any of them is left out, as long as enough remain. docs/privacy.md says against whom
    this protects, and against whom not. Evaluation is not summed up securely.

    The first round travels in words of 64 bits; later ones in 32, on scales that are found from the
    sums of the round before.

    Args:
        strategy: that averages: FedAvg, FedProx, FedAvgM, FedAdam, FedAdagrad, FedYogi, FedCurv
            around one of them, or one of your own that needs no more than the mean.
        smallest_group: how many clients a sum must have, >= 2. Nodes have a number of their own.
        threshold: the share of a client's neighbours that must answer at the last stage, in
            (1/2, 1]. The rest may be lost; a server that so many collude with reads a client.
            Nodes refuse one below 0.66, unless their owners say otherwise.
        neighbours: of each client, with whom it shares secrets and masks; all others if there are
            no more. Nodes refuse fewer than 64 likewise.
        stage_timeout: seconds that each of the four stages may take.

    Attributes:
        strategy: the wrapped strategy.
        refused: reason by message id for the replies that the last round did without.
        lost: reason by client for those that left it before they were sent the model.
        left_out: reason by client for those that no round has any more: they have shared another
            secret than they had named, and the sum of that round could not be read.
        max_examples: None: nobody sees a single client's.

    Raises:
        TypeError: for strategies that must see single replies.
        ValueError: if a number is out of range, and for bounds that FedCurv puts on single replies.

    Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning",
    2017; Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", 2020.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        smallest_group: int = _SMALLEST_GROUP,
        threshold: float = DEFAULT_THRESHOLD,
        neighbours: int = DEFAULT_NEIGHBOURS,
        stage_timeout: float = _STAGE_TIMEOUT_S,
    ) -> None:
        refuse_single_replies(strategy)
        if type(smallest_group) is not int or smallest_group < 2:
            raise ValueError(f"smallest_group must be a whole number >= 2, got {smallest_group!r}")
        if not 0.5 < threshold <= 1.0:
            raise ValueError(
                f"threshold must be above 1/2 and at most 1, got {threshold!r}: with half of the "
                "neighbours a server could learn both secrets of one client"
            )
        if type(neighbours) is not int or neighbours < 2:
            raise ValueError(f"neighbours must be a whole number >= 2, got {neighbours!r}")
        if not stage_timeout > 0:
            raise ValueError(f"stage_timeout must be > 0, in seconds, got {stage_timeout!r}")
        self.refused: Mapping[str, str] = {}
        self.lost: Mapping[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.max_examples: float | None = None
        self._smallest_group, self._threshold = smallest_group, threshold
        self._neighbours, self._stage_timeout = neighbours, stage_timeout
        self._at_first = strategy_state.plain_values(strategy)
        self._screen = Screen(strategy, replies_are_models=True)
        self._federation, self._session = uuid4().hex, uuid4().hex
        self._scales = Scales()
        self._sums_plan: Plan | None = None
        # at the end: from here on, what is not among the above belongs to the wrapped strategy
        self.strategy = strategy

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the clients that the wrapped strategy selects agree on keys; send them the model.

        Raises:
            RoundFailed: if too few of them do.
            ValueError: if they are not all sent the same.
        """
        messages = self._wrapped_messages(server_round, arrays, config, grid, called="SecureSums")
        self._sent = arrays
        if self._sums_plan is not None:
            _send_whole_numbers(messages, self._sums_plan)
        self._digest = _common_digest(messages)
        secure_round = SecureRound(
            (self._federation, self._session, server_round),
            neighbours=self._neighbours,
            threshold=self._threshold,
            smallest_group=self._smallest_group,
        )
        message_type = messages[0].metadata.message_type
        asking = Asking(server_round, grid, message_type, self._stage_timeout)
        self._round, nodes = (
            RoundOnGrid(secure_round, asking),
            [m.metadata.dst_node_id for m in messages],
        )
        try:
            self._round.agree_on_keys(nodes, self._known, self.left_out)
            self._plan = self._plan_for(self._round.num_members)
            sums_plan = "" if self._sums_plan is None else self._sums_plan.to_text()
            return self._round.to_send(messages, self._plan, summed_shapes(arrays), sums_plan)
        except RoundFailed as error:
            raise self._round.told(error) from error
        finally:
            self.lost = dict(asking.lost)  # who is lost later has been sent the model

    def _plan_for(self, clients: int) -> Plan:
        key = weighted_by_key(self.strategy) or "num-examples"
        return self._scales.plan(clients, key, self._sent)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Sum up what came, have the masks taken off, and hand the wrapped strategy one reply.

        Args:
            server_round: the round.
            replies: taken one by one; each is added to the sum and let go.

        Returns:
            Nothing in a round that a client has spoilt which is known for it; see ``left_out``.

        Raises:
            RoundFailed: if too few clients remain.
        """
        self._round.take(replies)
        self.refused = self._round.refused
        try:
            form, words, answered = self._round.unmasked(self._digest)
        except WronglyDealt as error:
            self.left_out[error.client_id] = str(error)
            logger.warning("%s; there is no sum, and no later round asks it", error)
            return None, None
        except RoundFailed as error:
            raise self._round.told(error) from error
        try:
            sums = sums_of(self._plan, self._sent, form, words, len(answered))
        except ValueError as error:
            raise RoundFailed(f"round {server_round}: {error}") from error
        self._sums_plan = self._plan
        self._scales.learn(server_round, form, sums, len(answered))
        return self._aggregate(server_round, self._joint(sums, answered))

    def _joint(self, sums: Sums, answered: Sequence[Message]) -> JointReply:
        metrics = {self._plan.weighted_by_key: sums.weight, **sums.metrics}
        content = RecordDict(
            {
                _name_of_model(answered[0].content, self._sent): sums.arrays,
                "metrics": MetricRecord(metrics),
                **sums.statistics,
                **({CONFIG: config_of_sums()} if sums.statistics else {}),
            }
        )
        ids = [message.metadata.message_id for message in answered]
        return JointReply(content, reply_to=answered[0], answered=ids)

    def _aggregate(
        self, server_round: int, joint: JointReply
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        calls = StrategyCalls(self.strategy)
        if isinstance(self.strategy, SendsStatistics):
            return calls.aggregate_train(server_round, [joint])
        fit, refused, finish = self._screen.train(
            server_round, self._sent, [joint], lambda m: "all clients"
        )
        if not fit:
            raise RoundFailed(f"round {server_round}: the sum: {next(iter(refused.values()))}")
        arrays, metrics = calls.aggregate_train(server_round, fit)
        return None if arrays is None else finish(arrays), metrics

    def summary(self) -> None:
        """Log the settings, then the wrapped strategy's."""
        logger.info("\t├──> SecureSums around %s:", type(self.strategy).__name__)
        logger.info(
            "\t│\t└── smallest group (%d) | threshold (%.2f) | neighbours (%d)",
            self._smallest_group,
            self._threshold,
            self._neighbours,
        )
        self.strategy.summary()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold: bounds, who is left out, the wrapped one's state.

        No secret is among it.
        """
        return {
            "federation": self._federation,
            "bounds": self._scales.state_dict(),
            "left-out": dict(self.left_out),
            "sums-plan": None if self._sums_plan is None else self._sums_plan.to_text(),
            "strategy": strategy_state.learned(self.strategy, self._at_first),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned, in a session that is new."""
        plan = state["sums-plan"]
        sums_plan = None if plan is None else Plan.from_text(plan)
        strategy_state.load_learned(self.strategy, state["strategy"])
        self._sums_plan = sums_plan
        self._scales.load_state_dict(state["bounds"])
        self._federation = str(state["federation"])
        self.left_out = dict(state.get("left-out", {}))  # older checkpoints know of nobody

    @property
    def takes_replies_once(self) -> bool:
        """Whether replies may come one by one: they are added to the sum and let go."""
        return True


def _send_whole_numbers(messages: Iterable[Message], plan: Plan) -> None:
    """Replace the sums in messages by the whole numbers that they are, packed once."""
    packed: dict[tuple[int, ...], RecordDict] = {}
    for message in messages:
        records = tuple(map(id, message.content.array_records.values()))
        if records not in packed:
            content = message.content
            packed[records] = RecordDict({**content, **pack_exact_sums(content, plan)})
        message.content = RecordDict(dict(packed[records]))


def _common_digest(messages: Sequence[Message]) -> bytes:
    """Return the digest of what all messages say; arrays that several share are read once."""
    arrays: dict[tuple[int, ...], bytes] = {}
    digests = set()
    for message in messages:
        records = tuple(map(id, message.content.array_records.values()))
        if records not in arrays:
            arrays[records] = digest_of_arrays(message.content)
        digests.add(digest_of_message(message, arrays[records]))
    if len(digests) > 1:
        what = "arrays" if len(set(arrays.values())) > 1 else "records and type of message"
        raise ValueError(
            f"expected the same {what} for all clients, got different ones: a secure sum is of "
            "replies to one message, and masks of clients that are told other things do not cancel"
        )
    return digests.pop()


def _name_of_model(content: RecordDict, sent: ArrayRecord) -> str:
    """Return the record in which the model was sent, as replies have it under the same name."""
    return next(
        (name for name, record in content.array_records.items() if record.keys() == sent.keys()),
        "arrays",
    )
