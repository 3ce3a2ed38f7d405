"""State that a worker's threads share: one trains, one counts steps, one takes part in rounds."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Condition

from fedcurv.lasgd.control import Control
from fedcurv.lasgd.data import Claim
from fedcurv.lasgd.replica import Replica
from fedcurv.lasgd.store import WorkerLost
from fedcurv.lasgd.watch import Watch, WorkersDiffer


@dataclass(frozen=True)
class LostWorker:
    """A worker that was lost.

    Attributes:
        worker: its id.
        round: in which the others noticed.
        seconds: since this worker began.
    """

    worker: int
    round: int
    seconds: float


@dataclass
class Counters:
    """What a worker has seen so far."""

    began: float = field(default_factory=time.monotonic)
    steps: int = 0
    samples: int = 0
    waited_s: float = 0.0
    rounds: int = 0
    steps_in_rounds: int = 0
    broken_rounds: int = 0
    payload_bytes: int = 0
    in_flight_sum: int = 0
    in_flight_max: int = 0
    speed_of_all: float = 0.0
    pace_of_all: float = 0.0
    lost: list[LostWorker] = field(default_factory=list)


@dataclass
class Shared:
    """The replica and the flags beside it; touched only while ``changed`` is held.

    Attributes:
        replica: of this worker.
        watch: of its model and optimizer.
        overlap: rounds run beside the training; else training waits for them.
        generation: g, as the counting thread needs it.
        round: r of the next landing.
        threshold: steps, counted by all in this generation, that open it.
        uncounted: steps that the store has not been told of, less those that it is to take back.
        urgent: the next round is to open at once.
        stepping: inside of an optimizer step, where no snapshot may be taken.
        at_boundary: the training thread waits between two steps.
        is_open: a round has been opened, and has not landed.
        taken: how many snapshots have been taken.
        landed: how many of them have landed.
        landed_at: when the last did.
        wanted: how many snapshots must be taken, for the training thread's sake.
        finished: this worker makes no further step.
        leaving: and wants out.
        over: the rounds have ended.
        error: why they ended, if they should not have.
        untrained: claims that were handed out since the last step.
        trained: claims that the steps since the last snapshot hold.
    """

    replica: Replica
    watch: Watch
    overlap: bool
    changed: Condition = field(default_factory=Condition)
    counters: Counters = field(default_factory=Counters)
    generation: int = 0
    round: int = 0
    threshold: int = 0
    uncounted: int = 0
    urgent: bool = False
    stepping: bool = False
    at_boundary: bool = False
    is_open: bool = False
    taken: int = 0
    landed: int = 0
    landed_at: float = field(default_factory=time.monotonic)
    wanted: int = 0
    finished: bool = False
    leaving: bool = False
    over: bool = False
    error: Exception | None = None
    untrained: list[Claim] = field(default_factory=list)
    trained: list[Claim] = field(default_factory=list)

    @property
    def in_flight(self) -> bool:
        """Whether a snapshot has been taken that has not landed."""
        return self.taken > self.landed

    def take_snapshot(self) -> tuple[int, list[Claim]]:
        """Keep this worker's progress; return its steps and the claims that they hold."""
        made = self.replica.steps_since_snapshot
        steps = self.replica.snapshot()
        self._leave_out_since_snapshot(made - steps)
        claims, self.trained = self.trained, []
        self.taken += 1
        return steps, claims

    def take_landed(self) -> None:
        """Give the live model what has landed."""
        made = self.replica.steps_since_snapshot
        self.replica.apply()
        self._leave_out_since_snapshot(made - self.replica.steps_since_snapshot)

    def leave_out(self, steps: int) -> None:
        """Take back steps that will never land, or each later round would open so much sooner."""
        self.uncounted -= steps
        self.changed.notify_all()

    def _leave_out_since_snapshot(self, steps: int) -> None:
        if steps:
            self.trained.clear()
            self.leave_out(steps)

    def wait_in_training(self, until: Callable[[], bool]) -> None:
        """Let the training thread wait between two steps, and count the time.

        Raises:
            WorkerLost: if the rounds have failed.
            WorkersDiffer: if they were ended because of a change.
        """
        began = time.monotonic()
        # a step that raised has not said that it is over
        self.at_boundary, self.stepping = True, False
        self.changed.notify_all()
        self.changed.wait_for(lambda: until() or self.over or self.error is not None)
        self.at_boundary = False
        self.counters.waited_s += time.monotonic() - began
        self.raise_error()

    def want_round(self) -> int:
        """Ask for a round that holds all steps so far; return its number among the snapshots."""
        self.wanted = self.taken + 1
        self.urgent = True
        self.changed.notify_all()
        return self.wanted

    def raise_error(self) -> None:
        """Raise what has ended the rounds, in the thread that trains."""
        if isinstance(self.error, WorkersDiffer):
            raise WorkersDiffer(str(self.error)) from self.error
        if self.error is not None:
            raise WorkerLost(str(self.error)) from self.error


def end_if(change: str | None, shared: Shared, control: Control) -> None:
    """End the training at every worker if something has changed, before it is written.

    Args:
        change: what; None if nothing has.
        shared: of this worker.
        control: a view of the store that nobody waits with.

    Raises:
        WorkersDiffer: that says what.
    """
    if change is None:
        return
    reason = control.stop(f"worker {control.worker}: {change}", shared.round)
    with shared.changed:
        shared.error = shared.error or WorkersDiffer(reason)
        shared.changed.notify_all()
    shared.raise_error()
