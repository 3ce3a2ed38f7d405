"""The thread that tells the store of this worker's steps, and opens rounds."""

import time
from threading import Thread

from fedcurv.lasgd.control import Control
from fedcurv.lasgd.shared import Shared


class Counting(Thread):
    """Counts for all workers; who sees the threshold passed opens the round.

    A round is opened after a silence too, so that a worker that hangs is noticed.

    Args:
        shared: of this worker.
        control: a view of its own.
    """

    def __init__(self, shared: Shared, control: Control) -> None:
        super().__init__(name="lasgd-counting", daemon=True)
        self._shared, self._control = shared, control
        self._silence_s = control.timeout_s

    def run(self) -> None:
        """Count until the rounds are over."""
        shared, opened = self._shared, -1
        try:
            while True:
                with shared.changed:
                    shared.changed.wait_for(
                        lambda: shared.uncounted or shared.urgent or shared.over, self._silence_s
                    )
                    if shared.over:
                        return
                    steps, shared.uncounted = shared.uncounted, 0
                    urgent, shared.urgent = shared.urgent, False
                    generation, round_ = shared.generation, shared.round
                    threshold = shared.threshold
                    silent = time.monotonic() - shared.landed_at > self._silence_s
                reached = self._control.count(generation, steps) >= threshold
                if (reached or urgent or silent) and round_ > opened:
                    self._control.open(round_)
                    opened = round_
        except Exception as error:
            with shared.changed:
                shared.error = shared.error or error
                shared.changed.notify_all()
