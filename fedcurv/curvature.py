"""The statistics of one node, or of a sum of nodes: precision P and weighted parameters Q.

For node j with local solution θ̂_j and Fisher diagonal F_j they are P_j = F_j and Q_j = F_j θ̂_j.
Their sums say all about the quadratic of arXiv 1910.07796,

    Σ_j (θ − θ̂_j)ᵀ diag(F_j) (θ − θ̂_j) = θᵀPθ − 2θᵀQ + const.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor, nn

from fedcurv.parameters import Chosen, chosen_parameters, refuse_complex


@dataclass(frozen=True, eq=False)
class Curvature:
    """Precision P and weighted parameters Q by name; immutable: every operation makes a new one.

    Attributes:
        precision: P, entries >= 0, each tensor in its parameter's shape.
        weighted_parameters: Q = P·θ, the parameters weighted by their precision; the same names
            and shapes.

    Raises:
        ValueError: on construction, if names or shapes of the two differ.
    """

    precision: Mapping[str, Tensor]
    weighted_parameters: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        """Refuse statistics whose two halves do not fit together."""
        require_same_shapes(
            shapes_of(self.precision),
            shapes_of(self.weighted_parameters),
            "precision",
            "weighted parameters",
        )

    @classmethod
    def at(
        cls, model: nn.Module, fisher: Mapping[str, Tensor], *, parameters: Chosen | None = None
    ) -> Curvature:
        """Return P = F and Q = F·θ at the model's present parameters.

        Args:
            model: see ``fisher``.
            fisher: of exactly the trainable parameters, or of those that are chosen.
            parameters: names, frozen or not, or a predicate on the names of the trainable ones.

        Raises:
            ValueError: if ``fisher`` is of others or not valid (see :meth:`check`), or if a
                parameter is complex.
        """
        chosen = chosen_parameters(model, parameters)
        refuse_complex(chosen.items(), "statistics")
        require_same_shapes(shapes_of(chosen), shapes_of(fisher), "the model", "fisher")
        weighted = {name: f * chosen[name].detach().to(f) for name, f in fisher.items()}
        return cls(dict(fisher), weighted).check()

    @classmethod
    def sum(cls, parts: Iterable[Curvature]) -> Curvature:
        """Return the sum of at least one, added in the order given."""
        return reduce(cls.__add__, parts)

    def __add__(self, other: Curvature) -> Curvature:
        """Return P_a + P_b and Q_a + Q_b."""
        return self._combine(other, torch.add)

    def __sub__(self, own: Curvature) -> Curvature:
        """Return the sum without ``own``, which must be one of its terms.

        Terms are >= 0 and rounding is monotone, so a sum that holds ``own`` is nowhere smaller than
        it, in any precision. Where nothing remains of P nothing remains of Q either: rounding's
        leftovers in Q are dropped there, since a slope without curvature would pull without end.

        Raises:
            ValueError: if an entry of P would be negative: ``own`` is not in this sum.
        """
        rest = self._combine(own, torch.sub)
        negative = {n: float(p.min()) for n, p in rest.precision.items() if bool((p < 0).any())}
        if negative:
            name, value = min(negative.items(), key=lambda item: item[1])
            raise ValueError(
                f"expected to take a node's own terms off a sum that holds them, got precision "
                f"{value:.3g} in {name!r}; these terms are not in that sum, so subtract nothing"
            )
        return rest._without_slopes()

    def without(self, own: Curvature, least: Mapping[str, Tensor]) -> Curvature:
        """Return a rounded sum less one of its terms, where rounding leaves anything of the rest.

        P and Q are 0 where the term may be all of the sum: what remains there can be rounding
        alone, and would pull to where the term itself is. The error of what remains elsewhere is
        the rounding error of the whole sum, and not in proportion to what remains.

        Args:
            own: the term.
            least: by name, what the sum's precision was at least before it was rounded.
        """
        rest = self._combine(own, torch.sub)
        for name, precision in rest.precision.items():
            precision[own.precision[name] > least[name]] = 0
        return rest._without_slopes()

    def _without_slopes(self) -> Curvature:
        """Return it with Q = 0 where P is 0."""
        weighted = {
            name: torch.where(self.precision[name] > 0, q, 0)
            for name, q in self.weighted_parameters.items()
        }
        return Curvature(self.precision, weighted)

    def check(
        self, largest: float = math.inf, *, largest_precision: float | None = None
    ) -> Curvature:
        """Return self if every entry is finite and no precision is negative.

        Args:
            largest: what no entry may exceed in magnitude.
            largest_precision: what no precision may exceed, if that is another bound.

        Raises:
            ValueError: naming every parameter at fault.
        """
        bound = largest if largest_precision is None else largest_precision
        faults = precision_faults(self.precision, dict.fromkeys(self.precision, bound))
        for name, weighted in self.weighted_parameters.items():
            low, high = extremes(weighted)
            if not -math.inf < low <= high < math.inf:
                faults.append(f"weighted parameters of {name!r} is not finite")
            elif max(-low, high) > largest:
                faults.append(
                    f"weighted parameters of {name!r} is {max(-low, high):.3g}, above {largest:g}"
                )
        if faults:
            raise ValueError("expected finite statistics with precision >= 0: " + "; ".join(faults))
        return self

    def only(self, names: Iterable[str]) -> Curvature:
        """Return the statistics of these parameters, as far as they are here; nothing is copied."""
        here = [name for name in names if name in self.precision]
        return Curvature(
            {name: self.precision[name] for name in here},
            {name: self.weighted_parameters[name] for name in here},
        )

    def to(self, target: torch.device | torch.dtype) -> Curvature:
        """Return a copy on another device or in another precision, as ``torch.Tensor.to`` does."""
        return Curvature(
            {name: _moved(p, target) for name, p in self.precision.items()},
            {name: _moved(q, target) for name, q in self.weighted_parameters.items()},
        )

    def _combine(
        self, other: Curvature, operation: Callable[[Tensor, Tensor], Tensor]
    ) -> Curvature:
        require_same_shapes(
            shapes_of(self.precision),
            shapes_of(other.precision),
            "the left-hand side",
            "the right-hand side",
        )
        return Curvature(
            {name: operation(p, other.precision[name]) for name, p in self.precision.items()},
            {
                name: operation(q, other.weighted_parameters[name])
                for name, q in self.weighted_parameters.items()
            },
        )


def precision_faults(precision: Mapping[str, Tensor], largest: Mapping[str, float]) -> list[str]:
    """Return what is wrong with a precision, by parameter: not finite, negative, or too large."""
    faults = []
    for name, one in precision.items():
        low, high = extremes(one)
        if not -math.inf < low <= high < math.inf:
            faults.append(f"precision of {name!r} is not finite")
        elif low < 0:
            faults.append(f"precision of {name!r} is negative ({low:.3g})")
        elif high > largest[name]:
            faults.append(f"precision of {name!r} is {high:.3g}, above {largest[name]:g}")
    return faults


def extremes(tensor: Tensor) -> tuple[float, float]:
    """Return the least and the greatest entry: NaN if one is NaN, zeros for none."""
    if tensor.numel() == 0:
        return 0.0, 0.0
    low, high = torch.aminmax(tensor)
    return float(low), float(high)


def _moved(tensor: Tensor, target: torch.device | torch.dtype) -> Tensor:
    return tensor.to(target) if isinstance(target, torch.dtype) else tensor.to(device=target)


class HasShape(Protocol):
    """A tensor, a parameter, or an array of Flower's."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size along each axis."""
        ...


def shapes_of(named: Mapping[str, HasShape]) -> dict[str, tuple[int, ...]]:
    """Return every tensor's shape by name."""
    return {name: tuple(tensor.shape) for name, tensor in named.items()}


def require_same_shapes(
    expected: Mapping[str, tuple[int, ...]],
    got: Mapping[str, tuple[int, ...]],
    expected_in: str,
    got_in: str,
) -> None:
    """Raise a ValueError that lists every missing or extra name and every shape that differs."""
    faults = [f"{name!r} is missing in {got_in}" for name in expected if name not in got]
    faults += [f"{name!r} is not in {expected_in}" for name in got if name not in expected]
    faults += [
        f"{name!r} has shape {expected[name]} in {expected_in} and {got[name]} in {got_in}"
        for name in expected
        if name in got and expected[name] != got[name]
    ]
    if faults:
        raise ValueError("expected the same parameters: " + "; ".join(faults[:5]))
