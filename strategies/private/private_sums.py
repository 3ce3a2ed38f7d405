"""What a user says of the privacy of FedCurv's sums."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import torch

from fedcurv.bounded import Bound


def is_number(value: object) -> bool:
    """Return whether a value is a number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


class Accountant(Protocol):
    """Counts what of a privacy budget is spent, as Opacus' accountants do."""

    def step(self, *, noise_multiplier: float, sample_rate: float) -> None:
        """Count one release."""

    def get_epsilon(self, delta: float) -> float:
        """Return ε of all releases together."""


@dataclass(frozen=True)
class PrivateSums:
    """Clip and noise of FedCurv's sums, beside those that a wrapper of Flower's has for the model.

    What one client adds to the sums (P, Q) is bounded: with the model θ that it was sent, P and
    D = P·(θ̂ − θ) together have at most the norm ``clip`` in (P, D/``distance``). The sums get
    Gaussian noise of ``noise_multiplier · clip`` on P and ``distance`` times that on D, on the
    server; where P does not stand out of it by ``threshold`` deviations, P and D are 0.

    Attributes:
        clip: c > 0. Much above the usual norm of a client's Fisher information it only adds noise.
        noise_multiplier: σ > 0.
        distance: r > 0, of about the size of the parameters' usual changes in a round. Further
            than that from the model nobody is pulled.
        accountant: computes ε of the model and the sums together: an ``RDPAccountant()`` or
            ``PRVAccountant()`` of ``opacus.accountants``, new for a new training.
        delta: δ of the budget that is told, in (0, 1).
        threshold: >= 0. With less than about 4 there is curvature of noise alone among thousands of
            parameters, and its pull is worse than none.
        parameters: names of those that all clients report, where it is not every array that is
            sent: without frozen ones, say. They are not to be learned from what clients report, as
            one client would decide on another's part.
        noise: draws the noise; by default it begins at a number of the operating system's, since
            noise that a known seed gives protects nothing.

    Raises:
        ValueError: if one is out of range.
        TypeError: for what is no accountant, or no list of names.

    Source: ours.
    """

    clip: float
    noise_multiplier: float
    distance: float
    accountant: Accountant
    delta: float = 1e-5
    threshold: float = 4.0
    parameters: Collection[str] | None = None
    noise: torch.Generator | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("clip", "noise_multiplier", "distance"):
            value = getattr(self, name)
            if not (is_number(value) and 0.0 < value < math.inf):
                raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
        if not (is_number(self.threshold) and 0.0 <= self.threshold < math.inf):
            raise ValueError(f"threshold must be >= 0 and finite, got {self.threshold!r}")
        if not (is_number(self.delta) and 0.0 < self.delta < 1.0):
            raise ValueError(f"delta must lie between 0 and 1, got {self.delta!r}")
        names = self.parameters
        if isinstance(names, str) or not all(isinstance(name, str) for name in names or ()):
            raise TypeError(f"parameters must be a list of names, got {names!r:.60}")
        is_made = not isinstance(self.accountant, type)
        if not (is_made and all(hasattr(self.accountant, n) for n in ("step", "get_epsilon"))):
            raise TypeError(
                "accountant must count releases, as opacus.accountants.RDPAccountant() does (pip "
                f"install fedcurv[privacy]), got {self.accountant!r:.60}"
            )

    @property
    def bound(self) -> Bound:
        """How much one client's statistics may be."""
        return Bound(float(self.clip), float(self.distance))

    @property
    def deviation(self) -> float:
        """The noise on P."""
        return self.noise_multiplier * self.clip
