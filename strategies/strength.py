"""Strength λ of the others' pull, given or found from each round's statistics."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from fedcurv.curvature import Curvature
from fedcurv.hold import checked_strength, sound_strength
from fedcurv.penalty import PenaltyMode

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AutoStrength:
    """λ with lr·λ·max(P) = min(2, 50/T), from each round's sums; min(0.4, 50/T) for gradients.

    max(P) is the stiffest parameter's precision, summed over the clients, and T the number of a
    client's steps in a round. The rule says how far that parameter goes towards the others'
    optimum: four fifths of the way in a step, and over a round about as far whatever the number of
    steps. It is applied anew to every round's sums, because their size depends on λ: clients that
    are held back fit their own data less, so that their Fisher information, and with it the next
    round's pull, grows; with one λ for all rounds the pull can swing. What the rule is worth is in
    docs/results.md.

    In the gradient form the bound is plain SGD's, whose steps diverge above 1. Optimizers that
    normalise gradients, such as Adam, have no known bound there: λ may be too strong.

    T is ``epochs`` times the batches of a client with as many samples as the round's contributors
    have on average, by the weights of their replies (``num-examples``).

    Attributes:
        lr: the clients' learning rate, > 0; or a function of the round, from 1 on, that returns it.
        epochs: over a client's samples in a round, > 0.
        batch_size: of the clients' steps, >= 1.
        mode: how clients apply the penalty, ``proximal`` or ``gradient``.

    Raises:
        ValueError: if one is out of range.

    Source: ours; the two numbers were found on one data set (digits), and a third or three times
    the λ that they give made little difference there.
    """

    lr: float | Callable[[int], float]
    epochs: float
    batch_size: int
    mode: PenaltyMode = "proximal"

    def __post_init__(self) -> None:
        """Check the values."""
        self._rate(1)
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs must be > 0 and finite, got {self.epochs!r}")
        if not 1 <= self.batch_size < math.inf:
            raise ValueError(f"batch_size must be >= 1 and finite, got {self.batch_size!r}")
        if self.mode not in get_args(PenaltyMode):
            wanted = ", ".join(get_args(PenaltyMode))
            raise ValueError(f"mode must be one of {wanted}, got {self.mode!r}")

    def _rate(self, server_round: int) -> float:
        lr = self.lr(server_round) if callable(self.lr) else self.lr
        if not 0 < lr < math.inf:
            raise ValueError(f"lr must be > 0 and finite, got {lr!r}")
        return lr

    def found(self, sums: Curvature, mean_samples: float, server_round: int = 1) -> float | None:
        """Return λ for the next round, or None if the statistics are all zero.

        Args:
            sums: of a round.
            mean_samples: of its contributors, > 0.
            server_round: that λ is for.
        """
        largest = max((float(p.max()) for p in sums.precision.values() if p.numel()), default=0.0)
        if largest <= 0.0:
            return None
        try:
            lr = self._rate(server_round)
        except ValueError:  # the schedule has come to its end, and the training with it
            return None
        local_steps = self.epochs * math.ceil(mean_samples / self.batch_size)
        strength = sound_strength(lr, largest, local_steps, self.mode)
        logger.info("strength: %g, with a largest precision of %g", strength, largest)
        return checked_strength(strength)


class Strength:
    """λ as it is now.

    Args:
        given: a number, or how to find it.

    Attributes:
        value: λ of the next round; None until it is found.

    Raises:
        ValueError: if the number is negative or not finite.
    """

    def __init__(self, given: float | AutoStrength) -> None:
        if isinstance(given, str):
            raise ValueError(
                "strength must be a number or AutoStrength(lr, epochs, batch_size), got "
                f"{given!r:.40}"
            )
        self._rule = given if isinstance(given, AutoStrength) else None
        self.value = None if isinstance(given, AutoStrength) else checked_strength(given)

    @property
    def to_ask_with(self) -> float:
        """What clients are told: above 0, so that they report, until it is found."""
        return 1.0 if self.value is None else self.value

    def see(self, sums: Curvature, mean_samples: float, server_round: int = 1) -> None:
        """Find the next round's λ, if it is not given; statistics that are zero leave it.

        Args:
            sums: of a round.
            mean_samples: of its contributors.
            server_round: the next.
        """
        if self._rule is None:
            return
        if (found := self._rule.found(sums, mean_samples, server_round)) is not None:
            self.value = found

    def resume(self, found: float | None) -> None:
        """Take what an earlier run found; a number that was given stays the caller's to decide."""
        if self._rule is not None:
            self.value = found
