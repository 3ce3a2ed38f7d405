"""Statistics of a worker's training."""

import time
from dataclasses import dataclass

from fedcurv.lasgd.shared import Counters, LostWorker


@dataclass(frozen=True)
class Stats:
    """What a worker has seen so far.

    Attributes:
        seconds: since it began.
        steps: optimizer steps of this worker.
        samples: samples of this worker; 0 if it does not use :meth:`LASGD.loader`.
        steps_per_s: its pace.
        samples_per_s: its pace.
        waiting_s: how long its training thread has waited for the others.
        share_of_speeds: the pace of all workers over the sum of the speeds that they have while
            they do not wait, in [0, 1], as of the last round.
        rounds: landings.
        steps_in_rounds: steps of all workers that have landed.
        broken_rounds: how often its progress was not finite and was left out.
        payload_bytes: that it has put into All-Reduces, headers included; in a ring each of N
            workers sends 2 (N − 1)/N as many.
        steps_in_flight: its steps between a snapshot and the landing, mean over rounds.
        most_steps_in_flight: the same, largest.
        lost: who was lost, and when.
    """

    seconds: float
    steps: int
    samples: int
    steps_per_s: float
    samples_per_s: float
    waiting_s: float
    share_of_speeds: float
    rounds: int
    steps_in_rounds: int
    broken_rounds: int
    payload_bytes: int
    steps_in_flight: float
    most_steps_in_flight: int
    lost: tuple[LostWorker, ...]


def stats_of(counters: Counters) -> Stats:
    """Return the figures."""
    seconds = time.monotonic() - counters.began
    return Stats(
        seconds=seconds,
        steps=counters.steps,
        samples=counters.samples,
        steps_per_s=counters.steps / seconds,
        samples_per_s=counters.samples / seconds,
        waiting_s=counters.waited_s,
        share_of_speeds=counters.pace_of_all / (counters.speed_of_all or 1.0),
        rounds=counters.rounds,
        steps_in_rounds=counters.steps_in_rounds,
        broken_rounds=counters.broken_rounds,
        payload_bytes=counters.payload_bytes,
        steps_in_flight=counters.in_flight_sum / max(1, counters.rounds),
        most_steps_in_flight=counters.in_flight_max,
        lost=tuple(counters.lost),
    )
