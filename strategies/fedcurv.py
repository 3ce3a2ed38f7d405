"""FedCurv around any Flower strategy (arXiv 1910.07796)."""

import dataclasses
import inspect
import logging
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

from fedcurv.strategies.legacy import refuse_unknown_words
from fedcurv.strategies.loop import strategy_state
from fedcurv.strategies.loop.strategy_calls import StrategyCalls
from fedcurv.strategies.private.budget import checked_rounds
from fedcurv.strategies.private.privacy import privacy_of
from fedcurv.strategies.private.private_sums import PrivateSums
from fedcurv.strategies.received import Received
from fedcurv.strategies.replies.check import Sent, in_order_of_clients
from fedcurv.strategies.replies.metrics import MetricGaps
from fedcurv.strategies.replies.screen import Screen, weighted_by_key
from fedcurv.strategies.replies.settling import Settling
from fedcurv.strategies.replies.weights import checked_bound
from fedcurv.strategies.robust.cohort import MAX_DISTANCE, MAX_TRACE, Cohort, checked_times
from fedcurv.strategies.robust.rules import AUTO, RobustSums, noted_selection, robust_sums, rule_for
from fedcurv.strategies.sending import Sending, checked_bits, chosen_bits
from fedcurv.strategies.strength import AutoStrength, Strength
from fedcurv.strategies.sums import Agreed, RoundSums, saved_sums
from fedcurv.strategies.unfit import refuse_to_wrap
from fedcurv.strategies.wire import records
from fedcurv.strategies.wrapping import Wrapping

logger = logging.getLogger(__name__)


class FedCurv(Wrapping):
    """Sends P = Σ_j F_j and Q = Σ_j F_j θ̂_j of the previous round's repliers beside the model.

    Everything else, sampling and the averaging of the model above all, is the wrapped strategy's,
    and its own methods and attributes are reached through this one.
    Clients that know nothing of FedCurv may take part: they are averaged and add nothing to the
    sums. A reply that is not fit for use (NaN, other names or shapes, negative precision, no
    examples) is refused with the client's name and the reason, and the round goes on without it.

    Args:
        strategy: the strategy to wrap; by default ``FedAvg(**fedavg_options)``.
        strength: λ >= 0. 0 sends no statistics and asks for none: plain FedAvg, bit for bit.
            ``AutoStrength(lr, epochs, batch_size)`` finds it from each round's statistics.
        secure_sums: clients send F·θ̂ too, so that the server needs sums only and secure aggregation
            can form them; by default the server multiplies F by the reply's own arrays, which saves
            a third of the upload.
        bits: of a number of the statistics on their way: 8, the default, or 4, in codes that are
            right on average, or 32, which secure and private sums take. An upload has 1.27, 1.14 or
            2 times the model's bytes, a download 1.53, 1.27 or 3 (tensors of fewer than 256 numbers
            have 32 bits in any case). The server itself holds no codes. Where a client's own terms
            are most of the sum, 4 bits leave nothing of the rest: see docs/results.md.
        max_precision: the largest precision that a client may contribute, > 0: a reply above it is
            refused like one with NaN, for it would outweigh all others. It bites in the log and in
            ``refused``; by default only what float32 sums could not hold is refused.
        max_examples: the largest weight (``num-examples``) that a reply may have, > 0: one above it
            is refused, for it would outweigh all others. By default that is about 1000 times the
            round's middle weight, so that honest skew passes; a number of your own bounds what a
            client can claim, and ``math.inf`` lifts the bound.
        robust: which replies the sums are formed of. ``auto``: around Flower's Krum, MultiKrum,
            Bulyan, FedMedian and FedTrimmedAvg ``near``, of what is near the round's middle; around
            others of all. ``selection``: of what is near and selected. For strategies of your own
            also ``median``, or a share in (0, 0.5) to cut off at either end; ``none``: of all in
            any case. All but ``near`` hold all replies' statistics. See docs/robustness.md.
        max_distance: how far a reply's model may lie from the one that was sent, > 1, in units of
            the round's middle distance: a reply farther off is refused. By default 50.
        max_trace: how large the sum of a client's precision may be, > 1, in units of the round's
            middle one: of a reply above it the statistics are left out, and its model is averaged.
            By default 100. ``math.inf`` lifts either bound, as ``secure_sums`` does.
        private_sums: clip and noise of the sums, around one of Flower's wrappers for differential
            privacy, which has them for the model; the metrics of a round then hold the ``epsilon``
            of both together. See docs/privacy.md.
        **fedavg_options: ``FedAvg``'s own, only without ``strategy``.

    Attributes:
        strategy: the wrapped strategy.
        max_examples: as it was given.
        saves_each_round: whether no round may be repeated after a resume.
        refused: reason by message id for the replies that the last round refused.
        left_out: likewise for those that it averaged, but whose statistics are not in the sums.

    Raises:
        ValueError: if strength is negative or not finite, or a bound not above 0.
        TypeError: for differential-privacy wrappers without ``private_sums``, and for this without
            them; for a strategy that overrides ``start``, which would not be called; for options
            beside a strategy; and for words and strategies of Flower's legacy API.

    Source: the sums are arXiv 1910.07796's. That they hold the repliers of the previous round only,
    and the message ids by which a node knows whether its own terms are among them, are ours.
    """

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        strength: float | AutoStrength,
        secure_sums: bool = False,
        bits: int | None = None,
        max_precision: float = math.inf,
        max_examples: float | None = None,
        robust: str | float = AUTO,
        max_distance: float | None = None,
        max_trace: float | None = None,
        private_sums: PrivateSums | None = None,
        **fedavg_options: Any,
    ) -> None:
        self._strength = Strength(strength)
        if not max_precision > 0.0:
            raise ValueError(f"max_precision must be > 0, got {max_precision!r}")
        refuse_unknown_words(fedavg_options, inspect.signature(FedCurv).parameters)
        if isinstance(strategy, FedCurv):
            raise TypeError("expected a strategy that is not FedCurv itself, got FedCurv")
        if strategy is not None:
            refuse_to_wrap(strategy, fedavg_options, private=private_sums is not None)
        wrapped = FedAvg(**fedavg_options) if strategy is None else strategy
        bits = chosen_bits(bits, exact=secure_sums or private_sums is not None)
        self._privacy = privacy_of(
            private_sums,
            wrapped,
            secure_sums=secure_sums,
            bits=bits,
            robust=robust,
            bounds={"max_distance": max_distance, "max_trace": max_trace},
        )
        self.saves_each_round = self._privacy is not None
        self.secure_sums = secure_sums
        self.bits = checked_bits(bits, secure_sums=secure_sums)
        self._max_precision = max_precision
        self.max_examples = checked_bound(max_examples)
        self._robust = robust
        self._rule = rule_for(robust, wrapped, secure_sums=secure_sums)
        alone = secure_sums or self._privacy is not None  # each reply for itself
        self._cohort = Cohort(
            checked_times("max_distance", max_distance, MAX_DISTANCE, secure_sums=alone),
            checked_times("max_trace", max_trace, MAX_TRACE, secure_sums=alone),
            near=self._rule is not None and self._rule.near,
        )
        self._settling = Settling()
        self._gaps = MetricGaps("training")
        self._screen = Screen(wrapped, max_examples=max_examples)
        self.refused: Mapping[str, str] = {}
        self.left_out: Mapping[str, str] = {}
        self._at_first = strategy_state.plain_values(wrapped)
        self._sending = Sending()
        self._instruction = records.Instruction(self._strength.to_ask_with)
        self._sent = Sent.of(ArrayRecord())
        self._known = {}
        self._parameter_names: frozenset[str] = frozenset()
        # at the end: from here on, what is not among the above belongs to the wrapped strategy
        self.strategy = wrapped

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Add the sums to the wrapped strategy's messages."""
        messages = self._wrapped_messages(server_round, arrays, config, grid, called="FedCurv")
        self._sent, privacy = Sent.of(arrays), self._privacy
        instruction = dataclasses.replace(
            self._instruction,
            server_round=server_round,
            secure_sums=self.secure_sums or (privacy is not None and privacy.clients_send_both),
            bits=checked_bits(self.bits, secure_sums=self.secure_sums),
        )
        self._sending.add_to(messages, instruction)
        if privacy is not None:
            privacy.begin(arrays, messages, asks=instruction.strength > 0.0)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Sum the statistics of all fit replies and let the wrapped strategy average the arrays.

        Args:
            server_round: the round.
            replies: taken one by one, in the order of clients if they come one by one. As a rule
                statistics are added to the sums and let go before many more are asked for.

        Raises:
            RoundFailed: if no reply is fit for use, with the first client's traceback.
        """
        if isinstance(replies, Sequence):
            replies = in_order_of_clients(replies)
        rule, holds = self._rule, self._rule is not None and self._rule.holds
        privacy = self._privacy
        received = Received(server_round, self._sent, self._weighted_by_key, self._known)
        sums = RoundSums(
            self._max_precision,
            self.max_examples,
            self._weighted_by_key,
            cohort=self._cohort,
            holds=holds,
            privacy=privacy,
        )
        self._cohort.begin(self._sent.arrays, self.strength)
        received.take(replies, sums)
        dtype = torch.float32 if privacy is None else torch.float64
        agreed = received.agreed(sums, self._parameter_names, dtype)
        self.refused, self.left_out = received.refused, agreed.left_out
        received.settle(agreed)
        self._gaps.fill(server_round, received.fit, self._weighted_by_key, received.client_of)
        contents = received.contents()
        weights = [weight for _, weight in contents]
        finish = self._settling.prepare(self.strategy, self._sent, received.constant, contents)
        with noted_selection(rule, self.strategy) as used:
            arrays, metrics = StrategyCalls(self.strategy).aggregate_train(
                server_round, received.fit
            )
        formed = RobustSums(agreed.sums, agreed.contributors, agreed.contributors)
        if rule is not None and holds:
            formed = robust_sums(rule, agreed.held, received.ids_of(used))
        if privacy is not None:
            formed = privacy.released(formed)
            if arrays is not None:
                privacy.count_model(weights)
            metrics = privacy.with_epsilon(server_round, metrics)
        self._learn(server_round, agreed, formed)
        if arrays is not None:
            arrays = finish(server_round, arrays)
        return arrays, metrics

    def _learn(self, server_round: int, agreed: Agreed, formed: RobustSums) -> None:
        """Make of a round's sums what the next round's messages say."""
        if formed.sums is not None:
            samples = [agreed.contributors[i] for i in formed.formed_of] or [1.0]
            self._strength.see(formed.sums, statistics.fmean(samples), server_round + 1)
        self._instruction = records.Instruction(self._strength.to_ask_with)
        if formed.sums is not None and self.strength is not None:
            self._parameter_names = agreed.parameter_names
            self._instruction = records.Instruction(
                strength=self.strength,
                sums_round=server_round,
                contributors=list(formed.contributors),
                sums=formed.sums,
            )

    def summary(self) -> None:
        """Log the settings, then the wrapped strategy's."""
        logger.info("\t├──> FedCurv around %s:", type(self.strategy).__name__)
        said = f"strength ({self.strength}) | secure sums ({self.secure_sums}) | bits ({self.bits})"
        logger.info("\t│\t└── %s | robust (%s)", said, self.robust)
        self.strategy.summary()

    def will_be_saved(self) -> None:
        """Tell clients from now on that what they remember must outlive this run."""
        self._sending.resumable = True

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold: the sums and the wrapped strategy's state.

        Clients are told to keep their own terms of these sums until the next call, since they may
        come back.
        """
        instruction = self._instruction
        sums = instruction.sums
        self._sending.saved_round = instruction.sums_round
        return {
            "federation": self._sending.federation,
            "strength": self.strength,
            "parameter-names": sorted(self._parameter_names),
            "sums-round": instruction.sums_round,
            "contributors": list(instruction.contributors),
            "precision": None if sums is None else records.pack_tensors(sums.precision),
            "weighted-parameters": None
            if sums is None
            else records.pack_tensors(sums.weighted_parameters),
            "cohort": self._cohort.state_dict(),
            "privacy": None if self._privacy is None else self._privacy.budget.rounds,
            "strategy": strategy_state.learned(self.strategy, self._at_first),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned; a ValueError changes nothing."""
        sums = saved_sums(state)
        spent = [] if self._privacy is None else checked_rounds(state.get("privacy"))
        strategy_state.load_learned(self.strategy, state["strategy"])
        if self._privacy is not None:
            self._privacy.budget.resume(spent)
        self._cohort.load_state_dict(state.get("cohort") or {})
        self._strength.resume(state["strength"])
        self._sending.begin(state["federation"])
        self._sending.saved_round = state["sums-round"]
        self._parameter_names = frozenset(state["parameter-names"])
        self._instruction = records.Instruction(
            self._strength.to_ask_with,
            sums_round=state["sums-round"],
            contributors=state["contributors"],
            sums=sums,
        )

    @property
    def robust(self) -> str | float:
        """Which replies the sums are formed of; settled as it is made."""
        return self._robust

    @property
    def strength(self) -> float | None:
        """λ of the next round; None while it is still to be found."""
        return self._strength.value

    @property
    def takes_replies_once(self) -> bool:
        """Whether replies may come one by one; a class derived from this may want them twice."""
        return type(self).aggregate_train is FedCurv.aggregate_train

    @property
    def _weighted_by_key(self) -> str:
        return weighted_by_key(self.strategy) or "num-examples"
