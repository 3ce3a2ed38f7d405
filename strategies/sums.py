"""A round's sums of statistics, formed reply by reply: no two replies' need be held at once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from flwr.app import RecordDict

from fedcurv.curvature import Curvature, CurvatureSum, precision_faults
from fedcurv.strategies.records import Report, unpack_tensors
from fedcurv.strategies.replies import Arrays, metric_names, most_common, wrong_names

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
        refused: reason by message id for the replies that do not.
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

    Args:
        max_precision: the largest precision that a reply may hold.
    """

    def __init__(self, max_precision: float = math.inf) -> None:
        self._max_precision = min(max_precision, _LARGEST_TERM)
        self._metrics: dict[str, Names] = {}
        self._statistics: dict[str, Names] = {}
        self._groups: dict[tuple[Names, Names], _Group] = {}

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
        metrics = metric_names(content)
        if report is not None:
            names = frozenset(report.precision)
            group = self._groups.get((metrics, names), _Group())
            _add_checked(group.sums, report, arrays, self._max_precision)
            group.contributors[message_id] = arrays.weight
            self._groups[metrics, names] = group
            self._statistics[message_id] = names
        self._metrics[message_id] = metrics

    def agreed(self, parameter_names: Names) -> Agreed:
        """Return what most replies agree on.

        Args:
            parameter_names: of the statistics of earlier rounds; empty for the first.
        """
        metrics = most_common(self._metrics.values())
        names = parameter_names or most_common(self._statistics.values())
        refused = {}
        for message_id, got in self._metrics.items():
            faults = wrong_names(got, metrics, "metrics")
            faults += wrong_names(self._statistics.get(message_id, names), names, "statistics")
            if faults:
                refused[message_id] = "; ".join(faults)
        group = self._groups.get((metrics, names))
        if group is None:
            return Agreed(refused, names, {}, None)
        return Agreed(refused, names, group.contributors, group.sums.total(torch.float32))


def _add_checked(sums: CurvatureSum, report: Report, arrays: Arrays, max_precision: float) -> None:
    """Add a client's terms: P = F, and Q as sent or else F·θ̂."""
    precision = unpack_tensors(report.precision)
    if report.information is not None:
        sent = Curvature(precision, unpack_tensors(report.information))
        sums.add(sent.check(_LARGEST_TERM, largest_precision=max_precision))
        return
    unknown = [name for name in precision if name not in arrays.tensors]
    if unknown:
        raise ValueError(
            f"statistics of {unknown[0]!r}, which is not among the arrays of the reply"
        )
    # a bound on the products spares a look at them
    largest = {
        name: min(max_precision, _LARGEST_TERM / max(1.0, arrays.largest[name]))
        for name in precision
    }
    if faults := precision_faults(precision, largest):
        raise ValueError("expected finite statistics with precision >= 0: " + "; ".join(faults))
    sums.add_at(arrays.tensors, precision)
