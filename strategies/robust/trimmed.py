"""Sums of statistics of which the extremes are cut off, number by number."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedcurv.curvature import Curvature
from fedcurv.curvature_sum import CurvatureSum

# numbers of all replies that are sorted at once
_NUMBERS_AT_ONCE = 2**21


@dataclass(frozen=True)
class Term:
    """A client's statistics: P_j, with Q_j where the client sent it, and else with θ̂_j.

    Attributes:
        precision: P_j by name.
        solution: the arrays of its reply; those in ``precision`` among them, unless Q_j was sent.
        sent: P_j and Q_j as the client sent both.
    """

    precision: Mapping[str, Tensor]
    solution: Mapping[str, Tensor]
    sent: Curvature | None = None

    def add_to(self, sums: CurvatureSum) -> None:
        """Add it to a sum, in place."""
        if self.sent is not None:
            sums.add(self.sent)
        else:
            sums.add_at(self.solution, self.precision)

    def solution_of(self, name: str) -> Tensor:
        """Return θ̂_j of a parameter; where Q_j was sent, 0 for what P_j says nothing of."""
        if self.sent is None:
            return self.solution[name]
        precision, weighted = self.precision[name], self.sent.weighted_parameters[name]
        return torch.where(precision > 0, weighted / precision, 0)


def trace_of(precision: Mapping[str, Tensor]) -> float:
    """Return the sum of all its numbers."""
    return math.fsum(float(one.sum()) for one in precision.values())


def trimmed_sums(terms: Sequence[Term], cut: int) -> Curvature:
    """Return P and Q of the others as one of N clients sees them, the extremes cut off.

    For each number of the model by itself: P is N − 1 times the mean of P_j without the ``cut``
    greatest and the ``cut`` least; Q is P times a mean of θ̂_j without the ``cut`` greatest and
    the ``cut`` least θ̂_j. What is left of these weighs as much as its P_j, but no more than the
    greatest P_j that was not cut off; where it weighs nothing, P and Q are 0.

    No client's own terms are in such a sum to be taken off. They need not be: whichever client is
    left out, P lies between N − 1 times the least and N − 1 times the greatest P_j of the others,
    or is 0, and Q/P between the least and the greatest θ̂_j of the others.

    Args:
        terms: of N clients, of the same parameters.
        cut: k, with 1 <= k < N/2: as many clients may say what they like.

    Returns:
        the sums in float32; they do not depend on the order of the terms, to the bit.

    Source: trimmed means by coordinate are arXiv 1803.01498's; for P and Q they are ours.
    """
    number = len(terms)
    if not 1 <= cut < number / 2:
        raise ValueError(f"expected to cut off 1 to less than half of {number} terms, got {cut}")
    precision: dict[str, Tensor] = {}
    weighted: dict[str, Tensor] = {}
    for name, first in terms[0].precision.items():
        parts = [(t.precision[name].flatten(), t.solution_of(name).flatten()) for t in terms]
        for kind in (precision, weighted):
            kind[name] = torch.empty_like(first, dtype=torch.float32).flatten()
        for piece in _pieces(first.numel(), number):
            p, theta = (torch.stack([part[i][piece] for part in parts]).double() for i in (0, 1))
            total, centre = _trimmed(p, theta, cut)
            precision[name][piece] = total.mul_(number - 1)
            weighted[name][piece] = total.mul_(centre)
        for kind in (precision, weighted):
            kind[name] = kind[name].view(first.shape)
    return Curvature(precision, weighted)


def _trimmed(precision: Tensor, solution: Tensor, cut: int) -> tuple[Tensor, Tensor]:
    """Return trimmed means of P_j and θ̂_j (N, M), each (M,)."""
    kept = slice(cut, len(precision) - cut)
    # equal θ̂_j in the order of their P_j, so that no order of clients decides which is cut off
    ranked, order = precision.sort(dim=0)
    by_solution = solution.gather(0, order).sort(dim=0, stable=True)
    weights = ranked.gather(0, by_solution.indices[kept]).minimum(ranked[kept][-1])
    solutions = by_solution.values[kept]
    weight = weights.sum(0)
    known = weight > 0
    centre = (weights * solutions).sum(0) / torch.where(known, weight, 1)
    # of a mean of equal numbers, rounding makes another
    centre = centre.clamp(solutions[0], solutions[-1])
    return torch.where(known, ranked[kept].mean(0), 0), centre


def _pieces(numel: int, number: int) -> Iterator[slice]:
    size = max(1, _NUMBERS_AT_ONCE // number)
    for begin in range(0, numel, size):
        yield slice(begin, begin + size)
