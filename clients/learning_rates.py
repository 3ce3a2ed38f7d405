"""Learning rates over rounds, by a schedule's name in torch.optim.lr_scheduler."""

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch.optim import lr_scheduler

from fedcurv.clients.torch_classes import Classes, Named

_FUNCTIONS = "it takes functions, which a configuration has not"
_SCHEDULES = "it is made of schedules; give one"
_OWN_RATES = "it has rates of its own beside client.lr; use CosineAnnealingLR with warm_up"

SCHEDULES = Classes(
    lr_scheduler,
    lr_scheduler.LRScheduler,
    refused={
        "LambdaLR": _FUNCTIONS,
        "MultiplicativeLR": _FUNCTIONS,
        "SequentialLR": _SCHEDULES,
        "ChainedScheduler": _SCHEDULES,
        "ReduceLROnPlateau": "it follows a metric, and clients that sit out a round see none",
        "CyclicLR": _OWN_RATES,
        "OneCycleLR": _OWN_RATES,
    },
    withheld=frozenset({"optimizer", "last_epoch", "verbose"}),
    added=("warm_up",),
)

# a message says which round it is, and every round is a step
_LAST_ROUND = 100_000


@dataclass(frozen=True)
class LearningRates:
    """The learning rate of every round, the same for whoever trains in it and whoever did before.

    Attributes:
        lr: of the first round; with a warm-up, of the first one after it.
        schedule: of torch.optim.lr_scheduler, stepped once after each round; None keeps ``lr``.
            Beside torch's options it has ``warm_up``, for how many rounds w the rate rises first:
            it is lr·r/(w + 1) in round r of them, and the schedule begins with round w + 1.

    Raises:
        ValueError: if there is no such schedule, or the rate of round 1 is not > 0 and finite.
    """

    lr: float
    schedule: Named | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        """Check the schedule."""
        self(1)

    def __call__(self, server_round: int) -> float:
        """Return the learning rate of a round, from 1 on.

        Raises:
            ValueError: if it is not > 0 and finite, or the schedule does not go so far.
        """
        if self.schedule is None:
            return self.lr
        if not 1 <= server_round <= _LAST_ROUND:
            raise ValueError(
                f"client.schedule: expected a round from 1 to {_LAST_ROUND:,}, got {server_round}"
            )
        return self._rates(server_round)[-1]

    def check(self, num_rounds: int) -> None:
        """Raise a ValueError unless every round up to this one has a rate."""
        if self.schedule is not None:
            self._rates(num_rounds)

    def _rates(self, number: int) -> Sequence[float]:
        try:
            choice = SCHEDULES.choose(self.schedule)
        except ValueError as error:
            raise ValueError(f"client.schedule: {error}") from error
        options = dict(choice.options)
        warm_up = options.pop("warm_up", 0)
        if type(warm_up) is not int or warm_up < 0:
            raise ValueError(f"client.schedule: warm_up must be an integer >= 0, got {warm_up!r}")
        rates = [self.lr * r / (warm_up + 1) for r in range(1, min(number, warm_up) + 1)]
        if (left := number - len(rates)) > 0:
            longer = 1 << (left - 1).bit_length()  # for the rounds that come next, too
            rates += _stepped(choice.cls.__name__, json.dumps(options), self.lr, longer)[:left]
        for server_round, rate in enumerate(rates, 1):
            if not 0 < rate < math.inf:
                raise ValueError(
                    f"client.schedule: round {server_round} has the learning rate {rate:g}, "
                    "expected one > 0 and finite; end before it, or change the schedule"
                )
        return rates


@lru_cache(maxsize=8)
def _stepped(name: str, options: str, lr: float, number: int) -> Sequence[float]:
    """Return the rates of so many rounds."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is stepped without the optimizer
        try:
            scheduler = getattr(lr_scheduler, name)(optimizer, **json.loads(options))
            for _ in range(number):
                rates.append(float(optimizer.param_groups[0]["lr"]))
                scheduler.step()
        except Exception as error:  # of whatever class torch's code raises
            why = " ".join(str(error).split())
            raise ValueError(f"client.schedule: {name} refuses this: {why}") from error
    return rates
