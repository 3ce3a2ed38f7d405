"""A sum of many nodes' statistics, P = Σ_j P_j and Q = Σ_j Q_j, formed part by part."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedcurv.curvature import Curvature, require_same_shapes, shapes_of

# that are added up in float32 before they go into a total in float64
PARTS_AT_ONCE = 8


class CurvatureSum:
    """A running sum that holds no more than itself, however many parts are added.

    Totals are in float64. Parts in float32 are first added up eight at a time in float32, which
    moves half as many bytes. With u = 2^-24 that puts P off by at most 7u of itself and Q by at
    most 8u of Σ_j |P_j·θ̂_j|, to first order; as float32 the sum is off by another u. What is
    added to nothing but zeros is exact. As P_j >= 0 and rounding is monotone, P is nowhere less
    than any P_j. Parts in float64 are added as they are.

    In float32 no entry of a part may be above 1e37, for eight of them not to overflow.
    """

    def __init__(self) -> None:
        self._precision: dict[str, _RunningSum] = {}
        self._weighted: dict[str, _RunningSum] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def add(self, part: Curvature) -> None:
        """Add P and Q in place.

        Raises:
            ValueError: if the part's names or shapes are not those of the sum; nothing is added.
        """
        self._begin_or_require(part.precision)
        for name, precision in part.precision.items():
            self._precision[name].add(precision)
            self._weighted[name].add(part.weighted_parameters[name])

    def add_at(self, solution: Mapping[str, Tensor], precision: Mapping[str, Tensor]) -> None:
        """Add P and P·θ̂ in place.

        Args:
            solution: θ̂ of at least the parameters in ``precision``.
            precision: P.

        Raises:
            ValueError: as ``add`` does.
        """
        self._begin_or_require(precision)
        require_same_shapes(
            shapes_of(precision),
            shapes_of({name: solution[name] for name in precision if name in solution}),
            "the precision",
            "the solution",
        )
        for name, one in precision.items():
            self._precision[name].add(one)
            self._weighted[name].add_product(one, solution[name].to(one.dtype))

    def total(self, dtype: torch.dtype) -> Curvature:
        """Return the sum in this type.

        Raises:
            ValueError: if nothing was added.
        """
        if not self._precision:
            raise ValueError("expected at least one part of the sum, got none")
        precision, weighted = (
            {name: running.total() for name, running in kind.items()}
            for kind in (self._precision, self._weighted)
        )
        return Curvature(precision, weighted).to(dtype)

    def _begin_or_require(self, precision: Mapping[str, Tensor]) -> None:
        if not self._precision:
            self._shapes = shapes_of(precision)
            self._precision = {name: _RunningSum() for name in precision}
            self._weighted = {name: _RunningSum() for name in precision}
        require_same_shapes(self._shapes, shapes_of(precision), "the sum", "the part")


class _RunningSum:
    """A running sum of one tensor: a total in float64, and beside it a few terms in float32."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._block: Tensor | None = None
        self._in_block = 0

    def add(self, term: Tensor) -> None:
        if term.dtype != torch.float32:
            self._add_to_total(term)
            return
        if self._block is None or self._in_block == 0:
            self._block = term.clone() if self._block is None else self._block.copy_(term)
        else:
            self._block.add_(term)
        self._count()

    def add_product(self, one: Tensor, other: Tensor) -> None:
        """Add the product of two of one type, rounded to it or, in float32, only once added."""
        if one.dtype != torch.float32:
            self._add_to_total(one * other)
            return
        if self._block is None or self._in_block == 0:
            self._block = torch.mul(one, other, out=self._block)
        else:
            self._block.addcmul_(one, other)
        self._count()

    def total(self) -> Tensor:
        """Return the sum, which later terms change."""
        if self._block is not None and self._in_block:
            self._add_to_total(self._block)
            self._in_block = 0
        assert self._total is not None  # callers have added something
        return self._total

    def _count(self) -> None:
        self._in_block += 1
        if self._in_block == PARTS_AT_ONCE:
            self.total()

    def _add_to_total(self, term: Tensor) -> None:
        if self._total is None:
            self._total = term.to(torch.float64, copy=True)
        else:
            self._total.add_(term)
