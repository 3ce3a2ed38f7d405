"""Methods with two sides, a strategy and a term of the clients' objective: what they share."""

import inspect
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedXgbBagging, FedXgbCyclic, QFedAvg, Strategy

from fedcurv.strategies.fedcurv import FedCurv
from fedcurv.strategies.legacy import refuse_unknown_words
from fedcurv.strategies.loop import strategy_state
from fedcurv.strategies.loop.strategy_calls import StrategyCalls
from fedcurv.strategies.replies.answered import Reply
from fedcurv.strategies.replies.buffers import buffer_names
from fedcurv.strategies.replies.check import (
    checked_weight,
    in_order_of_clients,
    most_common,
    require_one_node,
    require_some_success,
    wrong_names,
)
from fedcurv.strategies.replies.screen import Screen, weighted_by_key
from fedcurv.strategies.replies.weights import checked_bound, far_from_the_middle
from fedcurv.strategies.sending import Sending
from fedcurv.strategies.unfit import refuse_to_wrap
from fedcurv.strategies.wire import records
from fedcurv.strategies.wire.arrays import reason_of
from fedcurv.strategies.wire.methods import METHOD, Answer, Told, pack_told, take_answer
from fedcurv.strategies.wrapping import Wrapping

logger = logging.getLogger(__name__)

Unfit = Mapping[type[Strategy], str]

# around these no method is what it says
NOT_AROUND: Unfit = {
    FedXgbBagging: "its clients send trees",
    FedXgbCyclic: "its clients send trees",
    QFedAvg: "it weighs clients by the lengths of their ways, which the method changes",
}


class TwoSided(Wrapping):
    """Wraps a strategy that samples and averages; names its term to the clients.

    Replies that are not fit for use are refused with the client's name and the reason, and the
    round goes on without them. The wrapped strategy's own methods and attributes are reached
    through this one.

    Args:
        strategy: to wrap; None for ``FedAvg(**fedavg_options)``.
        unfit: kinds of strategies that are refused, with the reason.
        max_examples: the largest weight that a reply may have; see ``FedCurv``.
        fedavg_options: of FedAvg, only without ``strategy``.

    Attributes:
        strategy: the wrapped strategy.
        max_examples: as it was given.
        refused: reason by message id for the replies that the last round refused.
    """

    method: ClassVar[str]
    # no other method's term may stand beside it: FedCurv refuses it inside
    names_a_term: ClassVar[bool] = True
    # whether every client counts once, whatever the weight that it tells
    counts_alike: ClassVar[bool] = False
    # the method's number that clients are told
    _number = 0.0

    def __init__(
        self,
        strategy: Strategy | None,
        *,
        unfit: Unfit,
        max_examples: float | None,
        fedavg_options: Mapping[str, Any],
    ) -> None:
        own = type(self).__name__
        refuse_unknown_words(fedavg_options, inspect.signature(type(self)).parameters, own)
        if strategy is not None:
            refuse_to_wrap(strategy, list(fedavg_options), own)
            _refuse_unfit(strategy, unfit, own)
        wrapped = FedAvg(**fedavg_options) if strategy is None else strategy
        self.max_examples = checked_bound(max_examples)
        self.refused: Mapping[str, str] = {}
        self._screen = Screen(
            wrapped,
            replies_are_models=True,
            max_examples=max_examples,
            counts_alike=self.counts_alike,
        )
        self._at_first = strategy_state.plain_values(wrapped)
        self._sending = Sending()
        self._sent = ArrayRecord()
        self._known = {}
        self._names: frozenset[str] = frozenset()
        # at the end: from here on, what is not among the above belongs to the wrapped strategy
        self.strategy = wrapped

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Name the method's term in the wrapped strategy's messages, and tell what it needs."""
        config = ConfigRecord({**config, records.LOCAL_TERM: self.method})
        own = type(self).__name__
        messages = self._wrapped_messages(server_round, arrays, config, grid, called=own)
        self._sent = arrays
        self._begin_round(grid)
        told = Told(
            self.method,
            server_round,
            federation=self._sending.federation,
            sending=self._sending.next_name(),
            resumable=self._sending.resumable,
            number=self._number,
        )
        shared = self._records_for_all()
        for message in messages:
            self._require_own_term(message)
            record = pack_told(self._told_to(message.metadata.dst_node_id, told))
            # strategies put one RecordDict into all messages: adding to it would add to all of them
            message.content = RecordDict({**message.content, METHOD: record, **shared})
        return messages

    def _begin_round(self, grid: Grid) -> None:
        """Look at who is there."""

    def _records_for_all(self) -> Mapping[str, ArrayRecord]:
        """Return what all messages hold beside the model."""
        return {}

    def _told_to(self, node: int, told: Told) -> Told:
        """Return what one node is told."""
        return told

    def _require_own_term(self, message: Message) -> None:
        for record in message.content.config_records.values():
            term = record.get(records.LOCAL_TERM, self.method)
            if term != self.method:
                raise ValueError(
                    f"expected a strategy inside {type(self).__name__} whose clients have no term "
                    f"of their own, got {type(self.strategy).__name__} with {term!r:.80}; wrap "
                    "another, or take that one alone"
                )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the wrapped strategy average the fit replies, as the method has it.

        Raises:
            RoundFailed: if no reply is fit for use, with the first client's traceback.
        """
        received = in_order_of_clients(list(replies))
        clients: dict[str, str] = {}
        answers: dict[str, Answer] = {}
        refused = self._refused_answers(received, clients, answers)
        for message_id, reason in refused.items():
            logger.warning(
                "round %d: refused the reply of client %s: %s",
                server_round,
                clients[message_id],
                reason,
            )
        left = [m for m in received if m.metadata.reply_to_message_id not in refused]
        fit, more, finish = self._screen.train(
            server_round,
            self._sent,
            left,
            lambda m: f"client {clients[m.metadata.reply_to_message_id]}",
        )
        self.refused = refused = {**refused, **more}
        require_some_success(server_round, received, refused)
        key = weighted_by_key(self.strategy)
        used = []
        for message in fit:
            if message.has_content():
                message_id, content = message.metadata.reply_to_message_id, message.content
                weight = 1.0 if key is None else checked_weight(content, key)
                used.append(Reply(clients[message_id], content, weight, answers[message_id]))
        self._names = self._names or used[0].answer.parameters
        after = self._use(server_round, used)
        arrays, metrics = StrategyCalls(self.strategy).aggregate_train(server_round, fit)
        if arrays is not None:
            arrays = finish(after(arrays))
        return arrays, metrics

    @abstractmethod
    def _use(
        self, server_round: int, replies: Sequence[Reply]
    ) -> Callable[[ArrayRecord], ArrayRecord]:
        """Take what the method needs of the replies, and change them before they are averaged.

        Returns:
            what is to be done with the arrays that the wrapped strategy makes of them.
        """

    def _refused_answers(
        self, received: Sequence[Message], clients: dict[str, str], answers: dict[str, Answer]
    ) -> dict[str, str]:
        """Note who answered what; return by message id what is wrong with the other answers."""
        refused: dict[str, str] = {}
        nodes: dict[str, int] = {}
        possible = {
            name for name, array in self._sent.items() if np.dtype(array.dtype).kind in "fc"
        } - buffer_names(self._sent)
        for message in received:
            if message.has_error():
                continue
            message_id, node = message.metadata.reply_to_message_id, message.metadata.src_node_id
            clients[message_id] = f"node-{node}"
            try:
                client_id = records.unpack_client_id(message.content)
                clients[message_id] = client_id or clients[message_id]
                require_one_node(client_id, node, nodes, self._known)
                answer = take_answer(message.content, self.method)
                message.content.pop(records.CONFIG, None)
                if answer.message_id != message_id:
                    raise ValueError(
                        "expected an answer to this message, got one to another; does the client, "
                        "or a mod on the way, send an earlier reply or somebody else's?"
                    )
                if unknown := sorted(answer.parameters - possible):
                    raise ValueError(
                        f"expected parameters among the arrays that were sent, got {unknown[:3]}"
                    )
                self._check_state(clients[message_id], node, answer)
                answers[message_id] = answer
            except Exception as error:  # whatever a reply holds, the round goes on without it
                refused[message_id] = reason_of(error)
        names = self._names or most_common(answer.parameters for answer in answers.values())
        odd = far_from_the_middle({i: a.progress for i, a in answers.items()}, "progress")
        for message_id, answer in answers.items():
            faults = wrong_names(answer.parameters, names, "trained parameters")
            if message_id in odd:
                faults.append(odd[message_id])
            if faults:
                refused[message_id] = "; ".join(faults)
        return refused

    def _check_state(self, client: str, node: int, answer: Answer) -> None:
        """Raise a ValueError if a client says that it began from a state that cannot be."""

    def summary(self) -> None:
        """Log the method, then the wrapped strategy's settings."""
        logger.info("\t├──> %s around %s:", type(self).__name__, type(self.strategy).__name__)
        self.strategy.summary()

    def will_be_saved(self) -> None:
        """Tell clients from now on that what they remember must outlive this run."""
        self._sending.resumable = True

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {
            "federation": self._sending.federation,
            "parameter-names": sorted(self._names),
            "strategy": strategy_state.learned(self.strategy, self._at_first),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned; a ValueError changes nothing."""
        names = [state["federation"], *state["parameter-names"]]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("expected the federation and parameters by their names")
        strategy_state.load_learned(self.strategy, state["strategy"])
        self._names = frozenset(state["parameter-names"])
        self._sending.begin(state["federation"])

    @property
    def takes_replies_once(self) -> bool:
        """Whether replies may come one by one: they are changed when all are there."""
        return False


def _refuse_unfit(strategy: Strategy, unfit: Unfit, around: str) -> None:
    """Raise a TypeError for a strategy around which a method is not what it says."""
    if isinstance(strategy, FedCurv | Wrapping):
        raise TypeError(
            "expected a strategy that samples and averages itself, got "
            f"{type(strategy).__name__} inside {around}; take either alone"
        )
    for kind, why in unfit.items():
        if isinstance(strategy, kind):
            raise TypeError(
                f"{around} does not hold around {type(strategy).__name__}: {why}; wrap FedAvg"
            )
