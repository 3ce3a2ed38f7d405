"""LASGD as a bookkeeping of updates, in numpy: nothing is subtracted, and so nothing can be lost.

Every worker's local updates are kept one by one with the name of the round that took them. A model
is then the start plus the updates that count, each times its weight.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Worker:
    updates: list[np.ndarray] = field(default_factory=list)
    taken: int = 0  # updates in snapshots
    landed: int = 0  # updates in landed rounds


class Ledger:
    """Several workers, one model of ``size`` numbers."""

    def __init__(self, start: np.ndarray, num_workers: int) -> None:
        self.anchor = start.copy()
        self.workers = [Worker() for _ in range(num_workers)]

    def step(self, worker: int, update: np.ndarray) -> None:
        self.workers[worker].updates.append(update)

    def snapshot(self) -> None:
        for worker in self.workers:
            worker.taken = len(worker.updates)

    def land(self, weights: str) -> None:
        news = [w.updates[w.landed : w.taken] for w in self.workers]
        steps = [len(n) for n in news]
        sums = [sum(n, np.zeros_like(self.anchor)) for n in news]
        if weights == "gradient":
            self.anchor += sum(sums) / len(sums)
        elif weights == "steps":
            self.anchor += sum(n * s for n, s in zip(steps, sums, strict=True)) / sum(steps)
        else:
            active = [(n, s) for n, s in zip(steps, sums, strict=True) if n]
            mean_of_a_step = sum(s / n for n, s in active) / len(active)
            self.anchor += mean_of_a_step * sum(n for n, _ in active) / len(active)
        for worker in self.workers:
            worker.landed = worker.taken

    def model(self, worker: int) -> np.ndarray:
        """The anchor, and this worker's updates that are not in it."""
        w = self.workers[worker]
        return self.anchor + sum(w.updates[w.landed :], np.zeros_like(self.anchor))
