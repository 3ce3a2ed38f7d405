"""A round's sums of statistics, formed reply by reply: as a rule no two need be held at once."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import RecordDict

from fedcurv.curvature import (
    Curvature,
    precision_faults,
    require_same_shapes,
    shapes_of,
)
from fedcurv.curvature_sum import CurvatureSum
from fedcurv.strategies.private.privacy import Privacy
from fedcurv.strategies.replies.check import Arrays, form_of, most_common, wrong_names
from fedcurv.strategies.replies.weights import Weights
from fedcurv.strategies.robust.cohort import Cohort, checked_state
from fedcurv.strategies.robust.trimmed import Term
from fedcurv.strategies.wire.arrays import unpack_floats, unpack_tensors
from fedcurv.strategies.wire.coded_arrays import unpack_coded
from fedcurv.strategies.wire.records import Report

logger = logging.getLogger(__name__)

Names = frozenset[str]

# what tells replies apart that cannot be in one sum: names of metrics and of statistics, shapes,
# and the class of the weight
Kind = tuple[Names, Names, Names, int]

# sums travel in float32, where a hundred million of these still have one
_LARGEST_TERM = 1e30


@dataclass
class _Group:
    """Replies of one kind: their sums, and their weights by the message that they answered."""

    sums: CurvatureSum = field(default_factory=CurvatureSum)
    contributors: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Agreed:
    """What most replies of a round agree on.

    Attributes:
        refused: reason by message id for the replies that do not, or that outweigh all others or go
            too far.
        left_out: likewise for those that are fit, but whose statistics are to be in no sums.
        parameter_names: of the statistics.
        contributors: weight by message id of the replies that are in the sums.
        sums: None if there are no contributors.
        held: the contributors' terms, where they are held in the place of sums.
    """

    refused: Mapping[str, str]
    left_out: Mapping[str, str]
    parameter_names: Names
    contributors: Mapping[str, float]
    sums: Curvature | None
    held: Mapping[str, Term]


class RoundSums:
    """Sums up replies before it is known which names most of them agree on.

    Names of metrics and of statistics must be the same in all replies of a round. Which are right
    shows when the last has come, so there is a sum for each kind that comes: one, as a rule.

    The same goes for the statistics' shapes, and for weights that lie far apart. What a cohort's
    bounds may yet leave out waits: a round's first few replies, and later ones that stand out.

    Args:
        max_precision: the largest precision that a reply may hold.
        max_examples: the largest weight; None for a bound relative to the round.
        weighted_by_key: the weights' name in the metrics.
        cohort: in this round; None for no bounds relative to it.
        holds: hold every reply's terms and form no sums.
        privacy: says what a reply may hold, and bounds its terms; None leaves them.
    """

    def __init__(
        self,
        max_precision: float = math.inf,
        max_examples: float | None = None,
        weighted_by_key: str = "num-examples",
        *,
        cohort: Cohort | None = None,
        holds: bool = False,
        privacy: Privacy | None = None,
    ) -> None:
        self._privacy = privacy
        self._max_precision = min(max_precision, _LARGEST_TERM)
        self._weights = Weights(max_examples)
        self._weighted_by_key = weighted_by_key
        self._cohort = Cohort(math.inf, math.inf) if cohort is None else cohort
        self._holds = holds
        self._weight_of: dict[str, float] = {}
        self._weight_class: dict[str, int] = {}
        self._metrics: dict[str, Names] = {}
        self._statistics: dict[str, Names] = {}
        self._unlike: dict[str, str] = {}
        self._shapes: dict[str, Names] = {}
        self._waiting: dict[str, tuple[Kind, Term]] = {}
        self._groups: dict[Kind, _Group] = {}

    def add(
        self, message_id: str, content: RecordDict, arrays: Arrays, report: Report | None
    ) -> None:
        """Take a reply that is fit for the wrapped strategy.

        Args:
            message_id: of the message that it answers.
            content: the wrapped strategy's part.
            arrays: what it holds.
            report: the client's statistics, which as a rule are not kept after this.

        Raises:
            ValueError: if the statistics are not valid; nothing was added.
        """
        metrics = form_of(content)
        precision = {} if report is None else unpack_coded(report.precision, "precision")
        unlike = None
        if self._privacy is not None:
            metrics = frozenset()  # a vote on them would be one client's word on another's model
            self._privacy.require_clipped(arrays.tensors, content)
            unlike = None if report is None else self._privacy.unlike(precision)
        if unlike is not None:
            self._unlike[message_id], report, precision = unlike, None, {}
        term = None
        if report is not None:
            term = _checked_term(precision, report, arrays, self._max_precision)
        if self._privacy is not None and term is not None:
            term = self._privacy.bounded(term)
        weight_class = self._weights.add(arrays.weight, self._weighted_by_key)
        self._weight_class[message_id] = weight_class
        self._weight_of[message_id] = arrays.weight
        self._cohort.note(message_id, arrays.tensors, precision, arrays.distances)
        if term is not None:
            names = frozenset(precision)
            shapes = frozenset(f"{name} {shape}" for name, shape in shapes_of(precision).items())
            self._waiting[message_id] = (metrics, names, shapes, weight_class), term
            self._statistics[message_id] = names
            self._shapes[message_id] = shapes
        self._metrics[message_id] = metrics
        if not self._holds:
            self._sum([i for i in self._waiting if self._cohort.is_plainly_within(i)])

    def distances(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, float]:
        """Return how far a reply's arrays lie from those sent, as far as bounds need it."""
        return self._cohort.distances(tensors)

    def _sum(self, message_ids: list[str]) -> None:
        """Add what waits to the sums of its kind, in the order in which it came."""
        for message_id in message_ids:
            kind, term = self._waiting.pop(message_id)
            group = self._groups.setdefault(kind, _Group())
            term.add_to(group.sums)
            group.contributors[message_id] = self._weight_of[message_id]

    def agreed(self, parameter_names: Names, dtype: torch.dtype = torch.float32) -> Agreed:
        """Return what most replies agree on.

        Args:
            parameter_names: of the statistics of earlier rounds; empty for the first.
            dtype: of the sums.
        """
        metrics = most_common(self._metrics.values())
        if self._privacy is not None:
            parameter_names = self._privacy.names
        names = parameter_names or most_common(self._statistics.values())
        shapes = most_common(s for i, s in self._shapes.items() if self._statistics[i] == names)
        too_heavy = self._weights.too_heavy(self._weighted_by_key)
        too_far = self._cohort.too_far()
        refused = {}
        for message_id, got in self._metrics.items():
            faults = wrong_names(got, metrics, "metrics")
            statistics = self._statistics.get(message_id, names)
            faults += wrong_names(statistics, names, "statistics")
            if statistics == names:
                got_shapes = self._shapes.get(message_id, shapes)
                faults += wrong_names(got_shapes, shapes, "statistics and shapes")
            if reason := too_heavy.get(self._weight_class[message_id]):
                faults.append(reason)
            if message_id in too_far:
                faults.append(too_far[message_id])
            if faults:
                refused[message_id] = "; ".join(faults)
        odd = self._unlike | self._cohort.out_of_sums()
        left_out = {i: why for i, why in odd.items() if i not in refused}
        spoilt = refused.keys() | left_out.keys()
        self._cohort.end(spoilt)

        def is_agreed(kind: Kind) -> bool:
            return kind[:3] == (metrics, names, shapes) and kind[3] not in too_heavy

        waiting = [i for i in self._waiting if i not in spoilt and is_agreed(self._waiting[i][0])]
        if self._holds:
            held = {i: self._waiting[i][1] for i in waiting}
            weights = {i: self._weight_of[i] for i in held}
            return Agreed(refused, left_out, names, weights, None, held)
        self._sum(waiting)
        chosen = [group for kind, group in self._groups.items() if is_agreed(kind)]
        if any(spoilt & group.contributors.keys() for group in chosen):
            logger.warning(
                "this round has no sums: its first replies lay so far from the others that some "
                "were added which do not belong there"
            )
            chosen = []
        if not chosen:
            return Agreed(refused, left_out, names, {}, None, {})
        merged, *others = chosen
        for group in others:
            merged.sums.add(group.sums.total(torch.float64))
            merged.contributors |= group.contributors
        sums = merged.sums.total(dtype)
        return Agreed(refused, left_out, names, merged.contributors, sums, {})


def _checked_term(
    precision: Mapping[str, torch.Tensor], report: Report, arrays: Arrays, max_precision: float
) -> Term:
    """Return a client's terms: P = F, and Q as sent or else F·θ̂."""
    if report.weighted_parameters is not None:
        sent = Curvature(precision, unpack_floats(report.weighted_parameters))
        sent.check(_LARGEST_TERM, largest_precision=max_precision)
        return Term(precision, arrays.tensors, sent)
    unknown = [name for name in precision if name not in arrays.tensors]
    if unknown:
        raise ValueError(
            f"statistics of {unknown[0]!r}, which is not among the arrays of the reply"
        )
    if whole := [name for name in precision if name not in arrays.largest]:
        raise ValueError(f"statistics of {whole[0]!r}, which holds no floating-point numbers")
    # a bound on the products spares a look at them
    largest = {
        name: min(max_precision, _LARGEST_TERM / max(1.0, arrays.largest[name]))
        for name in precision
    }
    if faults := precision_faults(precision, largest):
        raise ValueError("expected finite statistics with precision >= 0: " + "; ".join(faults))
    solution = {name: arrays.tensors[name] for name in precision}
    shapes = shapes_of(precision), shapes_of(solution)
    require_same_shapes(*shapes, "the precision", "the solution")
    return Term(precision, solution)


def saved_sums(state: Mapping[str, Any]) -> Curvature | None:
    """Return the sums in a saved state, once all that belongs to them has been checked.

    Raises:
        ValueError: if it cannot have been saved so.
    """
    sums_round, names = state["sums-round"], [*state["parameter-names"], *state["contributors"]]
    if type(sums_round) is not int or sums_round < 0:
        raise ValueError(f"expected the round of the sums, got {sums_round!r}")
    if not all(isinstance(text, str) for text in (state["federation"], *names)):
        raise ValueError("expected the federation, parameters and messages by their names")
    if not isinstance(state["strength"], int | float | None):
        raise ValueError(f"expected a strength, got {state['strength']!r}")
    checked_state(state.get("cohort"))
    if state["precision"] is None:
        return None
    parts = [unpack_tensors(state[kind]) for kind in ("precision", "weighted-parameters")]
    return Curvature(*parts).check()
