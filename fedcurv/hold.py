"""Hold of a penalty on a round's training: how much it leaves, and which λ would leave enough.

The loss's gradient g drives a parameter by u in a step (lr·|g|, or lr where the optimizer
normalises it), while the pull brings it back by a share x of the way: at most u/x from the others'
optimum. A drift that stays the same for T steps then goes (1 − (1 + x)^−T) / (T·x) as far as
without. The mean of this over the parameters, weighted by what a step of each takes off the loss,
g·u, says how much the loss can fall.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedcurv.quadratic import Quadratic
from fedcurv.steps import why_not_at_rate

# of a step at most, by the pull's form, and of a round's steps together, in units of lr·λ·max(P)
_STEP = {"proximal": 2.0, "gradient": 0.4}
_ROUND = 50.0

# below both, a round's training is next to none: of its steps' drift, and in steps
_LEAST_SHARE, _LEAST_STEPS = 0.02, 1.0

# the share that a sound λ leaves at least
_SOUND_SHARE = 0.1

# x is counted in classes of a width of √2, from 2^-32 to 2^32
_CLASSES = 128

# numbers of a tensor that are looked at, at most
_SAMPLE = 4096


def checked_strength(strength: float) -> float:
    """Return λ as a float.

    Raises:
        ValueError: if it is negative or not finite, or no number.
    """
    try:
        fits = bool(0.0 <= strength < math.inf)
    except (TypeError, RuntimeError, ValueError):  # of text, and of several numbers
        fits = False
    if not fits:
        raise ValueError(
            f"strength must be finite and >= 0, got {strength!r}; use 0 for plain FedAvg"
        )
    return float(strength)


def sound_strength(
    lr: float, largest_precision: float, num_steps: float, mode: str = "proximal"
) -> float:
    """Return λ with lr·λ·max(P) = min(2, 50/T); in the gradient form, min(0.4, 50/T).

    The stiffest parameter then goes four fifths of the way to the others' optimum in a step, in
    either form, and over a round about as far whatever the number of steps. Plain gradient steps
    would diverge above 1; for those of optimizers that normalise gradients there is no such bound.

    Args:
        lr: learning rate > 0.
        largest_precision: max(P) > 0, summed over the clients.
        num_steps: T, of a client in a round, > 0.
        mode: ``proximal`` or ``gradient``, see ``CurvaturePenalty.attach``.

    Source: ours; the two numbers were found on one data set (digits), and a third or three times
    the λ that they give made little difference there.
    """
    return min(_STEP[mode], _ROUND / num_steps) / (lr * largest_precision)


def misfit(
    optimizer: torch.optim.Optimizer, strength: float, largest_precision: float, *, proximal: bool
) -> str:
    """Return what to say of a pull that an optimizer's steps do not go well with; or nothing."""
    groups = optimizer.param_groups
    if not proximal:
        lr = max(float(group["lr"]) for group in groups)
        if not lr * strength * largest_precision > 1:
            return ""
        return (
            f"strength={strength:g} at lr={lr:g}: lr·strength·max(P) is above 1, where plain "
            "gradient steps on the penalty diverge; use mode='proximal', or a smaller strength"
        )
    for group in groups:
        if why := why_not_at_rate(type(optimizer), group):
            return (
                f"{why}, so that proximal steps of that rate are out of proportion; use "
                "mode='gradient', or another optimizer"
            )
    return ""


def warn_who_attaches(text: str) -> None:
    """Warn whoever has called ``CurvaturePenalty.attach``."""
    warnings.warn(text, RuntimeWarning, stacklevel=4)


@dataclass(frozen=True)
class TrainingLeft:
    """How far a pull let the parameters go in a round.

    Attributes:
        share: of what the loss could fall by in these steps, in [0, 1].
        num_steps: of the round.
        lr: their mean learning rate.
    """

    share: float
    num_steps: int
    lr: float

    @property
    def is_next_to_none(self) -> bool:
        """Whether the round was worth less than one step without a pull."""
        return self.share < _LEAST_SHARE and self.share * self.num_steps < _LEAST_STEPS

    def complaint(self, strength: float, sound: float) -> str:
        """Return what to say of this λ, with a sound one."""
        return (
            f"strength={strength:g} leaves next to no training: at lr={self.lr:g}, "
            f"{self.num_steps} steps take about {self.share:.1g} off the loss of what they would "
            f"without the pull; try strength={sound:.2g}, or AutoStrength, which finds it anew in "
            "each round"
        )


@dataclass
class Hold:
    """Steps of parameters that are stepped together, and how they were held at the first of them.

    Attributes:
        num_steps: so far.
        rates: the sum of their learning rates.
        first_lr: > 0 once :meth:`measure` has looked.
        weights: by class of x, the sum of g·u.
    """

    num_steps: int = 0
    rates: float = 0.0
    first_lr: float = 0.0
    weights: list[float] = field(default_factory=lambda: [0.0] * _CLASSES)

    def measure(
        self,
        pulls: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        lr: float,
        *,
        is_normalised: bool,
        is_proximal: bool,
    ) -> None:
        """Look at one step.

        Args:
            pulls: 2λP of each parameter.
            gradients: of the loss alone; None where there is none.
            lr: of the step.
            is_normalised: whether the optimizer steps by lr, whatever the size of a gradient.
            is_proximal: whether the pull is a step of its own, which no optimizer normalises.
        """
        self.first_lr = lr
        for pull, gradient in zip(pulls, gradients, strict=True):
            if gradient is None or pull.numel() == 0:
                continue
            stride = -(-pull.numel() // _SAMPLE)
            p = pull.reshape(-1)[::stride].double().cpu()
            g = gradient.to_dense() if gradient.layout is not torch.strided else gradient
            g = g.reshape(-1)[::stride].double().cpu().abs()
            x = lr * p / g if is_normalised and not is_proximal else lr * p
            weight = (g if is_normalised else g.square()) * stride
            counted = (weight > 0) & weight.isfinite() & x.isfinite()
            classes = (2 * x[counted].log2()).clamp(-64, 63).floor().long() + 64
            more = torch.bincount(classes, weight[counted], minlength=_CLASSES).tolist()
            self.weights = [sum(two) for two in zip(self.weights, more, strict=True)]

    def left(self, factor: float = 1.0) -> tuple[float, float]:
        """Return the weights as they are held at ``factor`` times λ, and without a pull."""
        mean_lr = float(self.rates) / self.num_steps
        x = 2 ** ((torch.arange(_CLASSES, dtype=torch.float64) - 63.5) / 2)
        x *= factor * mean_lr / self.first_lr
        shares = -(-self.num_steps * x.log1p()).expm1() / (self.num_steps * x)
        weights = torch.tensor(self.weights, dtype=torch.float64)
        return float((shares * weights).sum()), float(weights.sum())


def training_left(holds: Sequence[Hold], factor: float = 1.0) -> TrainingLeft | None:
    """Return what ``factor`` times λ leaves over all parameters, or None if none was measured."""
    seen = [hold for hold in holds if hold.first_lr > 0 and hold.num_steps]
    ends = [hold.left(factor) for hold in seen]
    held, free = sum(end[0] for end in ends), sum(end[1] for end in ends)
    if not free:
        return None
    num_steps = max(hold.num_steps for hold in seen)
    lr = max(float(hold.rates) / hold.num_steps for hold in seen)
    return TrainingLeft(held / free, num_steps, lr)


class Holds:
    """A penalty's hold on its parameters over a round.

    Args:
        strength: λ.
        parameters: that are pulled.
        quadratics: of each.
    """

    def __init__(
        self, strength: float, parameters: Sequence[Tensor], quadratics: Sequence[Quadratic]
    ) -> None:
        self._strength, self._parameters, self._quadratics = strength, parameters, quadratics
        # by the parameters that are stepped together
        self._holds: dict[tuple[int, ...], Hold] = {}

    def note(
        self, optimizer: torch.optim.Optimizer, lr: Any, indices: list[int], *, is_proximal: bool
    ) -> None:
        """Count a step; look at the first to see how much of it the pull lets be."""
        hold = self._holds.setdefault(tuple(indices), Hold())
        hold.num_steps += 1
        hold.rates += lr
        if hold.first_lr > 0 or self._strength == 0.0 or not lr > 0:
            return
        if getattr(optimizer, "grad_scale", None) is None:
            hold.measure(
                [2.0 * self._strength * self._quadratics[i].precision() for i in indices],
                [self._parameters[i].grad for i in indices],
                float(lr),
                is_normalised=not isinstance(optimizer, torch.optim.SGD),
                is_proximal=is_proximal,
            )

    def note_others(self, lr: float, num_steps: int) -> None:
        """Count steps of plain SGD that somebody else took with all parameters."""
        hold = self._holds.setdefault(tuple(range(len(self._parameters))), Hold())
        hold.num_steps += num_steps
        hold.rates += lr * num_steps
        precisions = [quadratic.precision() for quadratic in self._quadratics]
        # an empirical Fisher is the mean square of a gradient
        hold.measure(
            [2.0 * self._strength * p for p in precisions],
            [p.sqrt() for p in precisions],
            lr,
            is_normalised=False,
            is_proximal=True,
        )

    def complaint(self, largest_precision: float) -> str:
        """Return what to say of a pull that left next to no training; nothing if it left some."""
        holds = list(self._holds.values())
        left = training_left(holds)
        if left is None or not left.is_next_to_none:
            return ""
        sound = min(sound_strength(left.lr, largest_precision, left.num_steps), self._strength)
        # which is for the proximal form, and as stiff as the stiffest parameter others may be
        while (less := training_left(holds, sound / self._strength)) and sound > 0:
            if less.share >= _SOUND_SHARE:
                break
            sound /= 2
        return left.complaint(self._strength, sound)
