"""What of a privacy budget is spent by Gaussian releases, one after the other."""

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy

from fedcurv.strategies.private.private_sums import Accountant


class Budget:
    """Counts a round's Gaussian releases, in which every client takes part.

    Releases with the noise multipliers σ_1, σ_2, ... tell together as much as one with
    (σ_1^-2 + σ_2^-2 + ...)^-½, whatever each was made to depend on those before it: what a round
    releases is one step of the accountant. Sampling of clients counts for nothing: each release
    counts for all clients, those that took no part in it, too.

    Args:
        accountant: of the training.
        delta: δ.

    Attributes:
        rounds: the noise multiplier of each round that released anything.
    """

    def __init__(self, accountant: Accountant, delta: float) -> None:
        self._accountant, self._delta = accountant, delta
        self.rounds: list[float] = []

    def add(self, noise_multipliers: Collection[float]) -> None:
        """Count what a round has released, which may be nothing."""
        if noise_multipliers:
            self._step(composed(noise_multipliers))

    def resume(self, rounds: Collection[float]) -> None:
        """Count the rounds of an earlier run."""
        for one in rounds:
            self._step(one)

    def _step(self, noise_multiplier: float) -> None:
        self.rounds.append(noise_multiplier)
        self._accountant.step(noise_multiplier=noise_multiplier, sample_rate=1.0)

    @property
    def epsilon(self) -> float:
        """ε of all rounds together; 0 before the first.

        Raises:
            ValueError: if the accountant finds none.
        """
        if not self.rounds:
            return 0.0
        try:
            with np.errstate(divide="ignore"):  # Opacus takes log(1 − rate), which is meant
                return float(self._accountant.get_epsilon(delta=self._delta))
        except RuntimeError as error:  # Opacus' PRVAccountant, of so little noise
            raise ValueError(
                f"expected {type(self._accountant).__name__} to find epsilon after "
                f"{len(self.rounds)} rounds with a noise multiplier of {composed(self.rounds):.3g} "
                f"in all, got {error}; take more noise, or opacus.accountants.RDPAccountant()"
            ) from error


def checked_rounds(saved: object) -> list[float]:
    """Return the rounds of a budget that was saved.

    Raises:
        ValueError: if they cannot be that, or were not counted.
    """
    if saved is None:
        raise ValueError(
            "expected the checkpoint of a training with private_sums, got one without, whose "
            "rounds nobody has counted: no epsilon can be told of it; begin anew"
        )
    if not isinstance(saved, list) or not all(
        isinstance(one, float) and 0.0 < one < math.inf for one in saved
    ):
        raise ValueError(f"expected noise multipliers > 0, got {str(saved)[:60]}")
    return saved


def composed(noise_multipliers: Collection[float]) -> float:
    """Return the noise multiplier of one Gaussian release that tells as much as all of these."""
    return 1.0 / math.sqrt(math.fsum(one**-2 for one in noise_multipliers))


def releases_of_model(wrapper: Strategy, clip: float, weights: Collection[float]) -> list[float]:
    """Return the noise multipliers of what one of Flower's wrappers has released in a round.

    It adds noise of the deviation σ·C/m to the weighted mean of updates that are no longer than
    ``clip``, for m clients that are expected. A client with n_j examples has the share n_j/Σn of
    the mean, and so moves it by up to clip · max(n)/Σn: for equal weights of m replies by clip/m,
    and the noise multiplier is σ. For others, for fewer replies, and where C has become another
    than ``clip`` before the noise was drawn, as in adaptive clipping, it is less or more.

    Adaptive clipping releases beside that how many updates were clipped, with noise of the
    deviation s. A client moves that count by 1/2 to either side of what is told without it.

    Args:
        wrapper: after the aggregation.
        clip: its clipping norm as the round began.
        weights: of the replies that are in the mean.
    """
    told: Any = wrapper
    of_greatest = math.fsum(weights) / max(weights)
    noise = told.noise_multiplier * told.clipping_norm / clip
    multipliers = [noise * of_greatest / told.num_sampled_clients]
    if (deviation := getattr(told, "clipped_count_stddev", None)) is not None:
        multipliers.append(2.0 * deviation)
    return multipliers
