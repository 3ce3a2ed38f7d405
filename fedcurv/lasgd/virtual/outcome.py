"""What a site in virtual time is set to, and what comes of it."""

import math
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from fedcurv.lasgd.coding import Compression, require_few
from fedcurv.lasgd.outer import NONE, Outer
from fedcurv.lasgd.weights import Weights


@dataclass(frozen=True)
class Plan:
    """LASGD's settings; see ``LASGD``.

    Attributes:
        workers: N >= 1.
        sync_every: steps of all workers between rounds.
        overlap: rounds run beside the training.
        weights: of the workers' progress.
        average_momentum: whether the optimizers' momentum is averaged.
        outer: what the progress of a round goes through.
        compression: in how many bits it travels.
        max_in_flight: steps of a worker between its snapshot and the landing, before it waits.
        timeout_s: after which the others give up a worker that is lost.
    """

    workers: int = 4
    sync_every: int = 32
    overlap: bool = True
    weights: Weights = "gradient"
    average_momentum: bool = True
    outer: Outer = NONE
    compression: Compression | None = None
    max_in_flight: int = 16
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for name in ("workers", "sync_every", "max_in_flight"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        if self.compression not in (None, *get_args(Compression)):
            raise ValueError(f"compression must be int8, int4 or None, got {self.compression!r}")
        require_few(self.compression, self.workers)
        if not 0 <= self.timeout_s < math.inf:
            raise ValueError(f"timeout_s must be finite and >= 0, got {self.timeout_s!r}")


@dataclass(frozen=True)
class Landing:
    """A common model.

    Attributes:
        seconds: when it landed.
        steps: of all workers that are in it.
        loss: on the test samples.
    """

    seconds: float
    steps: int
    loss: float


@dataclass
class Outcome:
    """What a run was worth.

    Attributes:
        seconds: of virtual time.
        steps: of all workers.
        samples: of all workers.
        share: the steps over those that the workers would have made without ever waiting.
        landings: in order.
        steps_in_flight: a worker's steps between snapshot and landing, mean over rounds.
        spans: of each worker, begin and end of every step.
        model: the last common model.
        payload_bytes: that each worker has put into All-Reduces.
        broken: how often a worker's progress was not finite and was left out of a round.
    """

    seconds: float
    steps: int
    samples: int
    share: float
    landings: list[Landing]
    steps_in_flight: float
    spans: list[list[tuple[float, float]]]
    model: dict[str, Tensor]
    payload_bytes: int = 0
    broken: int = 0

    def first_below(self, loss: float) -> Landing | None:
        """Return the first common model whose loss is at most this."""
        return next((landing for landing in self.landings if landing.loss <= loss), None)


def require_end(seconds: float, loss: float) -> None:
    """Refuse a run without an end.

    Raises:
        ValueError: as said.
    """
    if math.isnan(loss) or not seconds > 0:
        raise ValueError(f"expected seconds > 0 and a loss, got {seconds!r} and {loss!r}")
    if seconds == math.inf and loss == -math.inf:
        raise ValueError("expected seconds > 0 or a loss to train to, got neither")


def share_of_speeds(
    steps: list[int], spans: list[list[tuple[float, float]]], seconds: list[float]
) -> float:
    """Return the workers' pace over the sum of the speeds that they have while they compute."""
    pace = speed = 0.0
    for number, own, present in zip(steps, spans, seconds, strict=True):
        if number:
            own_speed = number / sum(end - begin for begin, end in own[:number])
            computing = sum(end - begin for begin, end in own)
            pace += own_speed * computing / present
            speed += own_speed
    return pace / speed if speed else 0.0
