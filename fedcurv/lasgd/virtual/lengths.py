"""How long workers' steps take: from distributions, or from a record."""

import math
import random
from collections.abc import Callable, Sequence

# from a worker, the time at which its step begins, and its own random numbers, to seconds
Lengths = Callable[[int, float, random.Random], float]


def equal(seconds: float = 0.1) -> Lengths:
    """Return steps that all take as long."""
    _require_positive(seconds=seconds)
    return lambda worker, now, draws: seconds


def straggler(seconds: float = 0.1, times: float = 4.0, number: int = 1) -> Lengths:
    """Return steps of which those of the first workers take so many times as long."""
    _require_positive(seconds=seconds, times=times)
    return lambda worker, now, draws: seconds * (times if worker < number else 1.0)


def rotating(
    seconds: float = 0.1, times: float = 4.0, turn: float = 2.5, workers: int = 4
) -> Lengths:
    """Return steps that take so many times as long at one worker, each in turn for a while."""
    _require_positive(seconds=seconds, times=times, turn=turn, workers=workers)

    def length(worker: int, now: float, draws: random.Random) -> float:
        return seconds * (times if int(now / turn) % workers == worker % workers else 1.0)

    return length


def heavy_tailed(seconds: float = 0.1, times: float = 10.0, share: float = 0.05) -> Lengths:
    """Return steps of which a share, at random, take so many times as long."""
    _require_positive(seconds=seconds, times=times)
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share!r}")
    return lambda worker, now, draws: seconds * (times if draws.random() < share else 1.0)


def lognormal(seconds: float = 0.1, sigma: float = 0.5, sigma_of_workers: float = 0.0) -> Lengths:
    """Return steps with this median, whose logarithms have a deviation of ``sigma``.

    Args:
        seconds: the median over workers and steps.
        sigma: between the steps of a worker, >= 0.
        sigma_of_workers: between the workers' own medians, >= 0.
    """
    _require_positive(seconds=seconds)
    if not (0 <= sigma < math.inf and 0 <= sigma_of_workers < math.inf):
        raise ValueError(f"deviations must be finite and >= 0, got {sigma!r}, {sigma_of_workers!r}")
    own: dict[int, float] = {}

    def length(worker: int, now: float, draws: random.Random) -> float:
        if worker not in own:
            own[worker] = seconds * math.exp(sigma_of_workers * draws.gauss(0.0, 1.0))
        return own[worker] * math.exp(sigma * draws.gauss(0.0, 1.0))

    return length


def recorded(seconds: Sequence[Sequence[float]]) -> Lengths:
    """Return the steps of a record, from the beginning again where it ends.

    Args:
        seconds: of each worker's steps in turn; workers beyond them have those of the first ones,
            from another place on.

    Raises:
        ValueError: for a worker without steps, or a step that takes no time.
    """
    if not seconds or not all(seconds):
        raise ValueError("expected the seconds of at least one step of each worker, got none")
    for worker, own in enumerate(seconds):
        for one in own:
            if not (isinstance(one, int | float) and 0 < one < math.inf):
                raise ValueError(
                    f"expected seconds > 0 of each step, got {one!r} for worker {worker}"
                )
    places: dict[int, int] = {}

    def length(worker: int, now: float, draws: random.Random) -> float:
        own = seconds[worker % len(seconds)]
        place = places.get(worker, worker // len(seconds) * 7)
        places[worker] = place + 1
        return own[place % len(own)]

    return length


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be finite and > 0, got {value!r}")
