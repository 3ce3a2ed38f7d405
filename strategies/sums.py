"""A round's sums of statistics, formed reply by reply: no two replies' need be held at once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import RecordDict
from torch import Tensor

from fedcurv.curvature import Curvature, CurvatureSum, precision_faults, shapes_of
from fedcurv.strategies.replies.check import Arrays, form_of, most_common, wrong_names
from fedcurv.strategies.replies.weights import Weights
from fedcurv.strategies.wire.arrays import unpack_floats, unpack_tensors
from fedcurv.strategies.wire.coded_arrays import unpack_coded
from fedcurv.strategies.wire.records import Report

Names = frozenset[str]

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
        refused: reason by message id for the replies that do not, or that outweigh all others.
        parameter_names: of the statistics.
        contributors: weight by message id of the replies that are in the sums.
        sums: None if there are no contributors.
    """

    refused: Mapping[str, str]
    parameter_names: Names
    contributors: Mapping[str, float]
    sums: Curvature | None


class RoundSums:
    """Sums up replies before it is known which names most of them agree on.

    Names of metrics and of statistics must be the same in all replies of a round. Which are right
    shows when the last has come, so there is a sum for each kind that comes: one, as a rule.

    The same goes for the statistics' shapes, and for weights that lie far apart.

    Args:
        max_precision: the largest precision that a reply may hold.
        max_examples: the largest weight; None for a bound relative to the round.
        weighted_by_key: the weights' name in the metrics.
    """

    def __init__(
        self,
        max_precision: float = math.inf,
        max_examples: float | None = None,
        weighted_by_key: str = "num-examples",
    ) -> None:
        self._max_precision = min(max_precision, _LARGEST_TERM)
        self._weights = Weights(max_examples)
        self._weighted_by_key = weighted_by_key
        self._weight_class: dict[str, int] = {}
        self._metrics: dict[str, Names] = {}
        self._statistics: dict[str, Names] = {}
        self._shapes: dict[str, Names] = {}
        self._groups: dict[tuple[Names, Names, Names, int], _Group] = {}

    def add(
        self, message_id: str, content: RecordDict, arrays: Arrays, report: Report | None
    ) -> None:
        """Take a reply that is fit for the wrapped strategy.

        Args:
            message_id: of the message that it answers.
            content: the wrapped strategy's part.
            arrays: what it holds.
            report: the client's statistics, which need not be kept after this.

        Raises:
            ValueError: if the statistics are not valid; nothing was added.
        """
        metrics = form_of(content)
        precision = {} if report is None else unpack_coded(report.precision, "precision")
        weight_class = self._weights.add(arrays.weight, self._weighted_by_key)
        self._weight_class[message_id] = weight_class
        if report is not None:
            names = frozenset(precision)
            shapes = frozenset(f"{name} {shape}" for name, shape in shapes_of(precision).items())
            key = metrics, names, shapes, weight_class
            group = self._groups.get(key, _Group())
            _add_checked(group.sums, precision, report, arrays, self._max_precision)
            group.contributors[message_id] = arrays.weight
            self._groups[key] = group
            self._statistics[message_id] = names
            self._shapes[message_id] = shapes
        self._metrics[message_id] = metrics

    def agreed(self, parameter_names: Names) -> Agreed:
        """Return what most replies agree on.

        Args:
            parameter_names: of the statistics of earlier rounds; empty for the first.
        """
        metrics = most_common(self._metrics.values())
        names = parameter_names or most_common(self._statistics.values())
        shapes = most_common(s for i, s in self._shapes.items() if self._statistics[i] == names)
        too_heavy = self._weights.too_heavy(self._weighted_by_key)
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
            if faults:
                refused[message_id] = "; ".join(faults)
        chosen = [
            group
            for (m, n, s, weight_class), group in self._groups.items()
            if (m, n, s) == (metrics, names, shapes) and weight_class not in too_heavy
        ]
        if not chosen:
            return Agreed(refused, names, {}, None)
        merged, *others = chosen
        for group in others:
            merged.sums.add(group.sums.total(torch.float64))
            merged.contributors |= group.contributors
        return Agreed(refused, names, merged.contributors, merged.sums.total(torch.float32))


def _add_checked(
    sums: CurvatureSum,
    precision: Mapping[str, Tensor],
    report: Report,
    arrays: Arrays,
    max_precision: float,
) -> None:
    """Add a client's terms: P = F, and Q as sent or else F·θ̂."""
    if report.weighted_parameters is not None:
        sent = Curvature(precision, unpack_floats(report.weighted_parameters))
        sums.add(sent.check(_LARGEST_TERM, largest_precision=max_precision))
        return
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
    sums.add_at(arrays.tensors, precision)


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
    if state["precision"] is None:
        return None
    parts = [unpack_tensors(state[kind]) for kind in ("precision", "weighted-parameters")]
    return Curvature(*parts).check()
