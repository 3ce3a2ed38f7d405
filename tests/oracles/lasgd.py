"""LASGD as a bookkeeping of updates, in numpy: nothing is subtracted, and so nothing can be lost.

Every worker's local updates are kept one by one with the name of the round that took them. A model
is then the start plus the updates that count, each times its weight.

With an outer optimizer the sums of landed rounds are kept one by one, too, and there is no
velocity: how much of each sum is in the model follows from the shares of the rounds since.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Worker:
    updates: list[np.ndarray] = field(default_factory=list)
    taken: int = 0  # updates in snapshots
    landed: int = 0  # updates in landed rounds


class Ledger:
    """Several workers, one model of ``size`` numbers.

    Args:
        start: the first model.
        num_workers: how many.
        outer: None, or (kind, learning rate, momentum, steps of a whole round).
    """

    def __init__(self, start: np.ndarray, num_workers: int, outer: tuple | None = None) -> None:
        self.start, self.anchor = start.copy(), start.copy()
        self.workers = [Worker() for _ in range(num_workers)]
        self.outer, self.rounds = outer, []

    def step(self, worker: int, update: np.ndarray) -> None:
        self.workers[worker].updates.append(update)

    def snapshot(self) -> None:
        for worker in self.workers:
            worker.taken = len(worker.updates)

    def land(self, weights: str) -> None:
        news = [w.updates[w.landed : w.taken] for w in self.workers]
        steps = [len(n) for n in news]
        sums = [sum(n, np.zeros_like(self.anchor)) for n in news]
        if not any(steps):
            moved = np.zeros_like(self.anchor)
        elif weights == "gradient":
            moved = sum(sums) / len(sums)
        elif weights == "steps":
            moved = sum(n * s for n, s in zip(steps, sums, strict=True)) / sum(steps)
        else:
            active = [(n, s) for n, s in zip(steps, sums, strict=True) if n]
            mean_of_a_step = sum(s / n for n, s in active) / len(active)
            moved = mean_of_a_step * sum(n for n, _ in active) / len(active)
        self.rounds.append((moved, sum(steps)))
        self.anchor = self.start + sum(
            self._counts(number) * moved for number, (moved, _) in enumerate(self.rounds)
        )
        for worker in self.workers:
            worker.landed = worker.taken

    def _counts(self, number: int) -> float:
        """How often the sum of a round is in the model by now."""
        if self.outer is None:
            return 1.0
        kind, lr, momentum, whole = self.outer
        left, acted = 1.0, 1.0  # of its push, and what it has done
        for _, steps in self.rounds[number + 1 :]:
            share = min(1, steps / whole)
            acted += share * momentum * left
            left -= share * (1 - momentum) * left
        # Nesterov's model is momentum's, one whole round ahead on what is left
        return lr * (acted + (momentum * left if kind == "nesterov" else 0))

    def model(self, worker: int) -> np.ndarray:
        """The anchor, and this worker's updates that are not in it."""
        w = self.workers[worker]
        return self.anchor + sum(w.updates[w.landed :], np.zeros_like(self.anchor))
