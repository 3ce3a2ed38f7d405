"""Workers whose steps, rounds and losses happen in virtual time."""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping

import torch

from fedcurv.lasgd.header import LINES, Report
from fedcurv.lasgd.outer import share_of_round
from fedcurv.lasgd.replica import Replica
from fedcurv.lasgd.summing import payloads_of
from fedcurv.lasgd.virtual.lengths import Lengths
from fedcurv.lasgd.virtual.link import Link
from fedcurv.lasgd.virtual.network import sum_of
from fedcurv.lasgd.virtual.outcome import Landing, Outcome, Plan, require_end, share_of_speeds
from fedcurv.lasgd.virtual.problem import Problem, Samples
from fedcurv.lasgd.weights import common_factor, own_weight

# until the workers have seen in their store that a round is open
_NOTICE_S = 0.001


class Site:
    """Workers with LASGD's own replicas, whose steps are events of a virtual clock.

    The time at which a step begins decides which batch it gets, and events at the same time happen
    in the order in which they were caused: a run is the same every time.

    Args:
        problem: that all train.
        plan: LASGD's settings.
        lengths: of the steps.
        link: between the workers.
        seed: of the batches' order and of what is random in the lengths.
        lost: when workers stop for ever, by worker.
    """

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        lengths: Lengths,
        link: Link | None = None,
        *,
        seed: int = 0,
        lost: Mapping[int, float] | None = None,
    ) -> None:
        self._problem, self._plan, self._lengths = problem, plan, lengths
        self._link = link or Link()
        self._lost = dict(lost or {})
        if wrong := [worker for worker in self._lost if not 0 <= worker < plan.workers]:
            raise ValueError(f"expected workers from 0 to {plan.workers - 1}, got {wrong[0]!r}")
        if wrong_times := [when for when in self._lost.values() if not when >= 0]:
            raise ValueError(
                f"expected seconds >= 0 at which a worker ends, got {wrong_times[0]!r}"
            )
        self._batches: Iterator[Samples] = problem.batches(seed)
        self._workers = [_Worker(problem, plan, w, seed) for w in range(plan.workers)]
        self._judged = problem.make_model()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = itertools.count()
        self._counted = self._landed_steps = 0
        self._is_open = self._opens = False
        self._contributions: dict[int, int] = {}
        self._in_flight: list[int] = []
        self._payload_bytes = self._broken = 0
        self._landings: list[Landing] = []

    def run(self, *, seconds: float = math.inf, loss: float = -math.inf) -> Outcome:
        """Train for so long, or until a common model has this loss, whichever comes first.

        Raises:
            ValueError: if there is neither, or all workers are lost before.
        """
        require_end(seconds, loss)
        for worker in self._workers:
            self._begin_step(worker, 0.0)
        now = 0.0
        while self._events and self._events[0][0] <= seconds:
            now, _, happens = heapq.heappop(self._events)
            happens(now)
            if self._landings and self._landings[-1].loss <= loss:
                return self._outcome(now)
        if not self._present(seconds):
            raise ValueError(f"all {len(self._workers)} workers were lost within {seconds:g} s")
        return self._outcome(seconds)

    def _at(self, when: float, happens: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), happens))

    def _is_gone(self, worker: "_Worker", now: float) -> bool:
        return self._lost.get(worker.number, math.inf) <= now

    def _begin_step(self, worker: "_Worker", now: float) -> None:
        batch = next(self._batches)
        length = self._lengths(worker.number, now, worker.draws)
        worker.spans.append((now, now + length))
        self._at(now + length, lambda then: self._end_step(worker, batch, then))

    def _end_step(self, worker: "_Worker", batch: Samples, now: float) -> None:
        if self._is_gone(worker, now) or not worker.member:
            self._take_at_boundaries(now)
            return
        worker.train_on(self._problem, batch)
        self._counted += 1
        passed = self._counted - self._landed_steps >= self._plan.sync_every
        if passed and not self._is_open and not self._opens:
            self._opens = True
            self._at(now + _NOTICE_S, self._open)
        if self._must_wait(worker):
            worker.waits = True
            self._take_at_boundaries(now)
        else:
            self._give_landed(worker)
            self._begin_step(worker, now)

    def _must_wait(self, worker: "_Worker") -> bool:
        if not self._plan.overlap:
            return self._is_open
        ahead = worker.replica.steps_since_snapshot
        return worker.number in self._contributions and ahead >= self._plan.max_in_flight

    def _open(self, now: float) -> None:
        self._is_open, self._opens = True, False
        if not self._plan.overlap:
            self._take_at_boundaries(now)
            return
        for worker in self._present(now):
            self._take_snapshot(worker)
        self._sum_up(now)

    def _take_at_boundaries(self, now: float) -> None:
        """Take the snapshots of workers that wait; the last of them begins the All-Reduce."""
        if self._plan.overlap or not self._is_open:
            return
        present = self._present(now)
        for worker in present:
            if worker.waits and worker.number not in self._contributions:
                self._take_snapshot(worker)
        if len(self._contributions) == len(present):
            self._sum_up(now)

    def _take_snapshot(self, worker: "_Worker") -> None:
        made = worker.replica.steps_since_snapshot
        taken = self._contributions[worker.number] = worker.replica.snapshot()
        self._counted -= made - taken

    def _give_landed(self, worker: "_Worker") -> None:
        made = worker.replica.steps_since_snapshot
        worker.replica.apply()
        self._counted -= made - worker.replica.steps_since_snapshot

    def _present(self, now: float) -> list["_Worker"]:
        return [w for w in self._workers if w.member and not self._is_gone(w, now)]

    def _sum_up(self, now: float) -> None:
        members = [worker for worker in self._workers if worker.member]
        replica = members[0].replica
        numbers, itemsize = replica.sizes.total + LINES * len(members), replica.dtype.itemsize
        payloads = payloads_of(replica.coder, numbers, itemsize, len(members))
        self._payload_bytes += sum(payloads)
        then = now + sum(self._link.all_reduce(one, len(members)) for one in payloads)
        missing = len(self._present(then)) < len(members)
        self._at(then + (self._plan.timeout_s if missing else 0.0), self._land)

    def _land(self, now: float) -> None:
        contributors = [w for w in self._present(now) if w.number in self._contributions]
        if not contributors:
            return
        self._leave_out_all_but(contributors)
        reports = [self._report(worker) for worker in contributors]
        steps = int(sum(report.steps for report in reports))
        bodies = []
        for worker, report in zip(contributors, reports, strict=True):
            body = torch.empty(worker.replica.sizes.total, dtype=worker.replica.dtype)
            weight = own_weight(self._plan.weights, report)
            worker.replica.fill(body, weight, active=not report.broken)
            bodies.append(body)
        total, unsent = sum_of(bodies, [worker.replica.coder for worker in contributors])
        factor = common_factor(self._plan.weights, reports)
        share = share_of_round(steps, self._plan.sync_every)
        whole = sum(not report.broken for report in reports)
        for worker, report in zip(contributors, reports, strict=True):
            self._in_flight.append(worker.replica.steps_since_snapshot)
            body = total.clone()
            counts = worker.replica.counts(body)
            dropped = bool(report.broken)
            worker.replica.land(body, factor, whole, counts, share, unsent, dropped=dropped)
            if worker.replica.coder is not None:
                worker.replica.coder.land(factor, whole=unsent is not None)
        self._landed_steps += steps
        # what is left out will never land
        self._counted -= sum(self._contributions[w.number] for w in contributors) - steps
        self._broken += len(reports) - whole
        self._contributions.clear()
        self._is_open = False
        self._landings.append(Landing(now, self._landed_steps, self._loss(contributors[0])))
        for worker in contributors:
            if worker.waits:
                worker.waits = False
                self._give_landed(worker)
                self._begin_step(worker, now)

    def _report(self, worker: "_Worker") -> Report:
        broken = not worker.replica.progress_is_finite()
        steps = 0 if broken else self._contributions[worker.number]
        return Report(steps=steps, active=1.0, broken=broken)

    def _leave_out_all_but(self, members: list["_Worker"]) -> None:
        lost = [worker for worker in self._workers if worker.member and worker not in members]
        for worker in lost:
            worker.member = False
        if lost:  # what they had counted will never land
            left = sum(self._contributions[w.number] for w in members)
            since = sum(w.replica.steps_since_snapshot for w in members)
            self._counted = self._landed_steps + left + since

    def _loss(self, worker: "_Worker") -> float:
        state = self._judged.state_dict()
        state.update(worker.replica.anchor_by_name())
        self._judged.load_state_dict(state)
        return self._problem.test_loss(self._judged)

    def _outcome(self, now: float) -> Outcome:
        present = [min(now, self._lost.get(w.number, math.inf)) for w in self._workers]
        spans = [
            [(begin, min(end, until)) for begin, end in worker.spans if begin < until]
            for worker, until in zip(self._workers, present, strict=True)
        ]
        holder = next(worker for worker in self._workers if worker.member)
        steps = [worker.steps for worker in self._workers]
        return Outcome(
            seconds=now,
            steps=sum(steps),
            samples=sum(worker.samples for worker in self._workers),
            share=share_of_speeds(steps, spans, present),
            landings=self._landings,
            steps_in_flight=sum(self._in_flight) / max(1, len(self._in_flight)),
            spans=spans,
            model=holder.replica.anchor_by_name(),
            payload_bytes=self._payload_bytes,
            broken=self._broken,
        )


class _Worker:
    """One worker's model, and what it is doing.

    Attributes:
        number: from 0 on.
        replica: LASGD's own.
        draws: its random numbers.
        spans: begin and end of its steps.
        steps: that it has made.
        samples: of these.
        member: whether the others count on it.
        waits: for a landing.
    """

    def __init__(self, problem: Problem, plan: Plan, number: int, seed: int) -> None:
        self.number = number
        self._model = problem.make_model()
        self._optimizer = problem.make_optimizer(self._model)
        self.replica = Replica(
            self._model,
            self._optimizer,
            average_momentum=plan.average_momentum,
            outer=plan.outer,
            compression=plan.compression,
        )
        self.replica.set_anchor()
        self.draws = random.Random(1_000_003 * seed + number)
        self.spans: list[tuple[float, float]] = []
        self.steps = self.samples = 0
        self.member, self.waits = True, False

    def train_on(self, problem: Problem, batch: Samples) -> None:
        """Make one step."""
        problem.train_on(self._model, self._optimizer, batch)
        self.replica.count_step()
        self.steps += 1
        self.samples += len(batch[1])
