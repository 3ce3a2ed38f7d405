"""The outer optimizer: what the progress Δ of a round goes through before it lands.

To it a round is what a step is to an optimizer, and −Δ is the gradient. With the velocity v, the
momentum μ and the learning rate η a round of all its steps does

    v ← μ v + Δ,    momentum: z += η v,    Nesterov: z += η (Δ + μ v).

A round that opens early, because a worker has finished, leaves or asks for it, or that has lost a
worker's steps, holds a share s < 1 of the steps of a whole one, down to none. It lets the velocity
act and fade by that share alone:

    v' = (1 − s (1 − μ)) v + Δ,    momentum: z += η (Δ + s μ v),
    Nesterov: z += η ((1 + μ) Δ + s μ² v).

So whatever the rounds, every progress counts η / (1 − μ) times in the long run, and a round without
steps moves nothing. All workers compute this from the same Δ, by products and sums that round alike
on every device: their models stay equal to the bit.

Source: the two rules are those of ``torch.optim.SGD``; on the mean of several local steps as in
DiLoCo, arXiv 2311.08105. Shares of a round are ours.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from fedcurv.errors import told

Kind = Literal["nesterov", "momentum"]


@dataclass(frozen=True)
class Outer:
    """Which outer optimizer.

    Attributes:
        kind: None for none: Δ lands as it is.
        lr: η > 0.
        momentum: μ in [0, 1).
    """

    kind: Kind | None = None
    lr: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: naming every setting that is wrong.
        """
        if faults := faults_of(self.kind, self.lr, self.momentum):
            raise ValueError("; ".join(faults))


def faults_of(kind: object, lr: object, momentum: object) -> list[str]:
    """Return what is wrong with the settings of an outer optimizer, a line for each."""
    faults = []
    if not (kind is None or kind in get_args(Kind)):
        faults.append(f"outer must be nesterov, momentum or None, got {told(kind)}")
    if not (_is_number(lr) and 0 < lr < math.inf):  # type: ignore[operator]
        faults.append(f"outer_lr must be a finite number > 0, got {told(lr)}")
    if not (_is_number(momentum) and 0 <= momentum < 1):  # type: ignore[operator]
        faults.append(f"outer_momentum must be a number in [0, 1), got {told(momentum)}")
    if not faults and kind is None and (lr, momentum) != (Outer.lr, Outer.momentum):
        faults.append(
            f"outer_lr and outer_momentum must be left out without outer, got {lr!r} and "
            f"{momentum!r}; say outer=nesterov or outer=momentum with them"
        )
    return faults


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# Δ lands as it is
NONE = Outer()


def share_of_round(steps: int, sync_every: int) -> float:
    """Return s in [0, 1]: how much of a whole round has landed with so many steps of all."""
    return min(1.0, steps / sync_every)


class OuterOptimizer:
    """The velocity of one common model; every worker has it, with the same bits.

    Args:
        outer: which.
        like: a tensor of the type, the device and the shape of the progress.

    Attributes:
        velocity: v, flat; empty where nothing is to be remembered.
    """

    def __init__(self, outer: Outer, like: Tensor) -> None:
        self._outer = outer
        has_one = outer.kind is not None and outer.momentum > 0
        self.velocity = like.new_zeros(like.shape if has_one else 0)

    def turn_into_step(self, progress: Tensor, share: float) -> None:
        """Turn Δ into what the common model moves by, in place.

        Args:
            progress: Δ, flat.
            share: s, in [0, 1].
        """
        outer, velocity = self._outer, self.velocity
        if outer.kind is None:
            return
        if len(velocity):
            ahead = outer.momentum if outer.kind == "nesterov" else 0.0
            # no fused multiply-adds: they round otherwise than a product and a sum
            coasting = velocity * (share * outer.momentum * (ahead or 1.0))
            velocity.mul_(1.0 - share * (1.0 - outer.momentum)).add_(progress)
            progress.mul_(1.0 + ahead).add_(coasting)
        progress.mul_(outer.lr)
