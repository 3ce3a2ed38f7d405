"""FedCurv around any Flower strategy (arXiv 1910.07796)."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Strategy,
)

from fedcurv.curvature import Curvature, CurvatureSum, shapes_of
from fedcurv.penalty import checked_strength
from fedcurv.strategies import records
from fedcurv.strategies.checkpoint import load_strategy_state, plain_values, strategy_state
from fedcurv.strategies.records import Instruction, Report
from fedcurv.strategies.replies import (
    Shapes,
    check_reply,
    check_weight,
    curvature_of,
    most_common,
    require_some_messages,
    require_some_success,
)

logger = logging.getLogger(__name__)

DP_WRAPPERS = (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)


class FedCurv(Strategy):
    """Sends P = Σ_j F_j and Q = Σ_j F_j θ̂_j of the previous round's repliers beside the model.

    Everything else, sampling and the averaging of the model above all, is the wrapped strategy's.
    Clients that know nothing of FedCurv may take part: they are averaged and add nothing to the
    sums. A reply that is not fit for use (NaN, other names or shapes, negative precision, no
    examples) is refused with the client's name and the reason, and the round goes on without it.

    Args:
        strategy: the strategy to wrap; by default ``FedAvg(**fedavg_options)``.
        strength: λ >= 0. 0 sends no statistics and asks for none: plain FedAvg, bit for bit.
        secure_sums: clients send F·θ̂ too, so that the server needs sums only and secure aggregation
            can form them; by default the server multiplies F by the reply's own arrays, which saves
            a third of the upload.
        **fedavg_options: ``FedAvg``'s own, only without ``strategy``.

    Attributes:
        strategy: the wrapped strategy.
        refused: reason by message id for the replies that the last round refused.

    Raises:
        ValueError: if strength is negative or not finite.
        TypeError: for differential-privacy wrappers, which treat every array as a weight, and for
            options beside a strategy.

    Source: the sums are arXiv 1910.07796's. That they hold the repliers of the previous round only,
    and the message ids by which a node knows whether its own terms are among them, are ours.
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        strength: float,
        secure_sums: bool = False,
        **fedavg_options: Any,
    ) -> None:
        self.strength = checked_strength(strength)
        if isinstance(strategy, DP_WRAPPERS):
            raise TypeError(
                f"expected a strategy without differential privacy, got {type(strategy).__name__}, "
                "which would clip and noise Fisher values as if they were weights"
            )
        if strategy is not None and fedavg_options:
            raise TypeError(
                f"expected options only without a strategy, got {', '.join(fedavg_options)} beside "
                f"{type(strategy).__name__}; give them to {type(strategy).__name__}"
            )
        self.strategy = FedAvg(**fedavg_options) if strategy is None else strategy
        self.secure_sums = secure_sums
        self.refused: Mapping[str, str] = {}
        self._at_first = plain_values(self.strategy)
        self._federation = uuid4().hex
        self._instruction = Instruction(self.strength)
        self._sent: Shapes = {}
        self._parameter_names: frozenset[str] = frozenset()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Add the sums to the wrapped strategy's messages."""
        self._sent = shapes_of(arrays)
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        require_some_messages(server_round, messages)
        instruction = dataclasses.replace(
            self._instruction,
            server_round=server_round,
            secure_sums=self.secure_sums,
            federation=self._federation,
        )
        own_records = records.pack_instruction(instruction)
        for message in messages:
            # strategies put one RecordDict into all messages: adding to it would add to all of them
            message.content = RecordDict({**message.content, **own_records})
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Sum the statistics of all fit replies and let the wrapped strategy average the arrays.

        Raises:
            RoundFailed: if no reply is fit for use, with the first client's traceback.
        """
        received = list(replies)
        reports = _take_reports(received)
        ordered = _in_order_of_clients(received, reports)
        refused, instruction = self._check_and_sum(server_round, ordered, reports)
        for message in ordered:
            if (message_id := message.metadata.reply_to_message_id) in refused:
                logger.warning(
                    "round %d: refused the reply of client %s: %s",
                    server_round,
                    reports[message_id].client_id
                    if message_id in reports
                    else f"node-{message.metadata.src_node_id}",
                    refused[message_id],
                )
        self.refused = refused
        require_some_success(server_round, ordered, refused)
        self._instruction = instruction
        fit = [m for m in ordered if m.metadata.reply_to_message_id not in refused]
        return self.strategy.aggregate_train(server_round, fit)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave evaluation to the wrapped strategy."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Leave evaluation to the wrapped strategy, without replies that have no weight."""
        fit = []
        for message in replies:
            try:
                if message.has_content():
                    check_weight(message.content, self._weighted_by_key)
                fit.append(message)
            except ValueError as error:
                logger.warning(
                    "round %d: refused the evaluation of node-%d: %s",
                    server_round,
                    message.metadata.src_node_id,
                    error,
                )
        return self.strategy.aggregate_evaluate(server_round, fit)

    def summary(self) -> None:
        """Log the settings, then the wrapped strategy's."""
        logger.info("\t├──> FedCurv around %s:", type(self.strategy).__name__)
        logger.info("\t│\t└── strength (%g) | secure sums (%s)", self.strength, self.secure_sums)
        self.strategy.summary()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold: the sums and the wrapped strategy's state."""
        instruction = self._instruction
        sums = instruction.sums
        return {
            "federation": self._federation,
            "parameter-names": sorted(self._parameter_names),
            "sums-round": instruction.sums_round,
            "contributors": list(instruction.contributors),
            "precision": None if sums is None else records.pack_tensors(sums.precision),
            "information": None if sums is None else records.pack_tensors(sums.information),
            "strategy": strategy_state(self.strategy, self._at_first),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        sums = None
        if state["precision"] is not None:
            sums = Curvature(
                records.unpack_tensors(state["precision"]),
                records.unpack_tensors(state["information"]),
            )
        self._federation = state["federation"]
        self._parameter_names = frozenset(state["parameter-names"])
        self._instruction = Instruction(
            self.strength,
            sums_round=state["sums-round"],
            contributors=state["contributors"],
            sums=sums,
        )
        load_strategy_state(self.strategy, state["strategy"])

    @property
    def _weighted_by_key(self) -> str:
        return str(getattr(self.strategy, "weighted_by_key", "num-examples"))

    def _check_and_sum(
        self, server_round: int, ordered: list[Message], reports: Mapping[str, Report]
    ) -> tuple[dict[str, str], Instruction]:
        """Return why replies are refused, by message id, and what to send in the next round.

        Each client's terms are added as soon as they are checked: only one client's are held.
        """
        contents = {m.metadata.reply_to_message_id: m.content for m in ordered if not m.has_error()}
        metric_names = most_common(_metric_names(content) for content in contents.values())
        parameter_names = self._parameter_names or most_common(
            frozenset(report.precision) for report in reports.values()
        )
        refused: dict[str, str] = {}
        contributors = []
        sums = CurvatureSum()
        for message_id, content in contents.items():
            try:
                arrays = check_reply(content, self._sent, self._weighted_by_key)
                _require_names(_metric_names(content), metric_names, "metrics")
                if message_id in reports:
                    report = reports[message_id]
                    _require_names(frozenset(report.precision), parameter_names, "statistics")
                    sums.add(curvature_of(report, arrays))
                    contributors.append(message_id)
            except ValueError as error:
                refused[message_id] = str(error)
        if not contributors:
            return refused, Instruction(self.strength)
        self._parameter_names = parameter_names
        return refused, Instruction(
            strength=self.strength,
            sums_round=server_round,
            contributors=contributors,
            sums=sums.total(torch.float32),
        )


def _take_reports(received: list[Message]) -> dict[str, Report]:
    """Take this project's records out of all replies and return them by message id."""
    reports = {}
    for message in received:
        if not message.has_error() and (report := records.take_report(message.content)):
            reports[message.metadata.reply_to_message_id] = report
    return reports


def _in_order_of_clients(received: list[Message], reports: dict[str, Report]) -> list[Message]:
    """Sort replies by client, since floating-point sums depend on the order of arrival.

    Where some clients tell no id, the order stays as it came.
    """
    with_content = [m for m in received if not m.has_error()]
    if any(m.metadata.reply_to_message_id not in reports for m in with_content):
        return received
    failed = [m for m in received if m.has_error()]

    def order(message: Message) -> tuple[int, int, str]:
        return records.client_id_order(reports[message.metadata.reply_to_message_id].client_id)

    return sorted(with_content, key=order) + failed


def _metric_names(content: RecordDict) -> frozenset[str]:
    return frozenset(name for record in content.metric_records.values() for name in record)


def _require_names(got: frozenset[str], expected: frozenset[str], what: str) -> None:
    if got != expected:
        missing, extra = sorted(expected - got), sorted(got - expected)
        raise ValueError(
            f"expected {what} of the same names as the other clients', missing: {missing[:3]}, "
            f"extra: {extra[:3]}"
        )
