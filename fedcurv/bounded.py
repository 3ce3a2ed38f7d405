"""Statistics of which each client's part is bounded, and sums of them with noise.

Here statistics have the model θ that was sent for their origin: in the place of Q stands the slope
D = P·(θ̂ − θ) = Q − P·θ, which tells nothing of where the model is. A client's pair is as long as

    ‖(P, D/r)‖ = (Σ_i P_i² + Σ_i (D_i/r)²)^½,

and :meth:`Bound.clipped` shortens what is longer than c by one factor, so that a client then pulls
more weakly and not elsewhere. One client more or less moves a sum of such pairs by at most c. With
Gaussian noise of the deviation σ·c on P and σ·c·r on D a sum is therefore the Gaussian mechanism
with the noise multiplier σ.

Noise makes curvature of what has none, some of it negative, and slopes that lead anywhere.
:meth:`Bound.settled` keeps what stands out of it. What is done to a sum after the noise costs
nothing of its privacy.

Source: ours; the Gaussian mechanism is the field's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedcurv.curvature import Curvature


@dataclass(frozen=True)
class Bound:
    """How much one client's statistics may be.

    Attributes:
        clip: c > 0, the greatest norm of (P, D/r), over all parameters together.
        distance: r > 0, the unit of distances θ̂ − θ, and how far from the model a sum may pull.
    """

    clip: float
    distance: float

    def norm(self, statistics: Curvature) -> float:
        """Return ‖(P, D/r)‖ of statistics with the model for their origin."""
        slope = norm_of(statistics.weighted_parameters) / self.distance
        return math.hypot(norm_of(statistics.precision), slope)

    def clipped(self, statistics: Curvature, model: Mapping[str, Tensor]) -> Curvature:
        """Return P and D in float64, as long as ``clip`` at most.

        Args:
            statistics: P and Q.
            model: θ, as it was sent, of at least their parameters.
        """
        moved = around(statistics, model)
        share = self.clip / max(self.norm(moved), self.clip)
        return Curvature(
            {name: p * share for name, p in moved.precision.items()},
            {name: d * share for name, d in moved.weighted_parameters.items()},
        )

    def settled(self, sums: Curvature, least: float = 0.0) -> Curvature:
        """Return P and D where P is above ``least``, and 0 for both elsewhere; D within ±r·P.

        A slope without curvature would pull without end, and negative curvature would push.
        """
        precision = {n: torch.where(p > least, p, 0) for n, p in sums.precision.items()}
        return Curvature(
            precision,
            {
                name: torch.minimum(torch.maximum(slope, -most), most)
                for name, slope in sums.weighted_parameters.items()
                for most in [precision[name] * self.distance]
            },
        )

    def rest(self, sums: Curvature, own: Curvature, model: Mapping[str, Tensor]) -> Curvature:
        """Return P and Q of noised sums without a client's own terms, where anything remains.

        Args:
            sums: P and Q, with noise, so that less may be left than nothing.
            own: of the client, clipped and without noise.
            model: θ as it is sent now, from which the rest may pull by r at most.
        """
        less = Curvature(
            {n: p.double() - own.precision[n] for n, p in sums.precision.items()},
            {
                n: q.double() - own.weighted_parameters[n]
                for n, q in sums.weighted_parameters.items()
            },
        )
        return at_zero(self.settled(around(less, model)), model)


def norm_of(named: Mapping[str, Tensor]) -> float:
    """Return the norm of all tensors together, in float64."""
    norms = [torch.linalg.vector_norm(one, dtype=torch.float64) for one in named.values()]
    return math.hypot(*map(float, norms))


def noised(
    sums: Curvature, deviation: float, distance: float, generator: torch.Generator
) -> Curvature:
    """Return P and D in float64 with independent Gaussian noise on every number.

    Args:
        sums: P and D.
        deviation: of the noise on P, >= 0; that on D has this times ``distance``.
        distance: r.
        generator: draws it.
    """

    def with_noise(tensor: Tensor, deviation: float) -> Tensor:
        noise = torch.empty(tensor.shape, dtype=torch.float64).normal_(generator=generator)
        return noise.mul_(deviation).add_(tensor)

    return Curvature(
        {n: with_noise(p, deviation) for n, p in sums.precision.items()},
        {n: with_noise(d, deviation * distance) for n, d in sums.weighted_parameters.items()},
    )


def around(statistics: Curvature, model: Mapping[str, Tensor]) -> Curvature:
    """Return P and D = Q − P·θ in float64 of P and Q."""
    return _moved(statistics, model, -1.0)


def at_zero(statistics: Curvature, model: Mapping[str, Tensor]) -> Curvature:
    """Return P and Q = D + P·θ in float64 of P and D."""
    return _moved(statistics, model, 1.0)


def _moved(statistics: Curvature, model: Mapping[str, Tensor], sign: float) -> Curvature:
    precision = {name: p.double() for name, p in statistics.precision.items()}
    slopes = statistics.weighted_parameters
    return Curvature(
        precision,
        {
            n: slopes[n].double().addcmul(p, model[n].to(p), value=sign)
            for n, p in precision.items()
        },
    )
