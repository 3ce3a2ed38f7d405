"""Hooks around each step of a worker's optimizer."""

from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from fedcurv.lasgd.control import Control
from fedcurv.lasgd.shared import Shared, end_if
from fedcurv.steps import once_a_step


class Stepping:
    """Counts steps, takes what has landed between two of them, and waits where it must.

    Args:
        optimizer: whose steps they are.
        shared: of this worker.
        control: a view of its own.
        max_in_flight: steps between a snapshot and its landing before it waits.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, shared: Shared, control: Control, max_in_flight: int
    ) -> None:
        self._optimizer, self._shared, self._control = optimizer, shared, control
        self._max_in_flight = max_in_flight
        self._looked_at = -1
        self._hooks: list[RemovableHandle] = []

    def begin(self) -> None:
        """Take every step from now on for one of this training."""
        self._hooks = [
            self._optimizer.register_step_pre_hook(once_a_step(self._before_step)),
            self._optimizer.register_step_post_hook(once_a_step(self._after_step)),
        ]

    def end(self) -> None:
        """Leave further steps to themselves."""
        self._shared.stepping = False
        for hook in self._hooks:
            hook.remove()

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        shared = self._shared
        end_if(shared.watch.before_a_step(), shared, self._control)
        if self._looked_at != shared.landed:  # once a round: it goes through the whole model
            self._looked_at = shared.landed
            end_if(shared.watch.of_tensors(), shared, self._control)
        # hooks that others have added since may change the weights: this one must come last
        self._hooks[1].remove()
        self._hooks[1] = optimizer.register_step_post_hook(once_a_step(self._after_step))
        with self._shared.changed:
            self._shared.stepping = True
        self._shared.replica.streams.before_training_writes()

    def _after_step(self, *_: Any) -> None:
        shared = self._shared
        with shared.changed:
            shared.raise_error()
            shared.replica.streams.after_training_wrote()
            shared.stepping = False
            shared.replica.count_step()
            shared.counters.steps += 1
            shared.uncounted += 1
            shared.trained += shared.untrained
            shared.untrained.clear()
            shared.changed.notify_all()
            if self._must_wait():
                landed = shared.landed
                shared.wait_in_training(lambda: shared.landed > landed)
            shared.take_landed()

    def _must_wait(self) -> bool:
        shared = self._shared
        if not shared.overlap:
            return shared.is_open
        ahead = shared.replica.steps_since_snapshot
        return shared.in_flight and ahead >= self._max_in_flight
