"""The thread that takes part in rounds: snapshot, All-Reduce, verdict, landing, new members."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from threading import Thread

from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from fedcurv.lasgd import header
from fedcurv.lasgd.coding import most_workers
from fedcurv.lasgd.control import Control, Generation
from fedcurv.lasgd.data import Trained, packed, unpacked
from fedcurv.lasgd.header import Report
from fedcurv.lasgd.outer import share_of_round
from fedcurv.lasgd.plan import Contribution, Plan
from fedcurv.lasgd.plane import Interrupted, Plane
from fedcurv.lasgd.shared import LostWorker, Shared
from fedcurv.lasgd.store import WorkerLost
from fedcurv.lasgd.summing import Flags, sum_in_few_bits
from fedcurv.lasgd.watch import WorkersDiffer
from fedcurv.lasgd.weights import common_factor, own_weight

logger = logging.getLogger(__name__)


class Rounds(Thread):
    """Answers every round until all members have finished.

    Args:
        shared: of this worker.
        control: a view of its own.
        plan: of all workers.
        generation: to begin with.
    """

    def __init__(
        self, shared: Shared, control: Control, plan: Plan, generation: Generation
    ) -> None:
        super().__init__(name="lasgd-rounds", daemon=True)
        self._shared, self._control, self._plan = shared, control, plan
        self.trained = Trained()
        # for the groups, whose making blocks their client
        self._groups = control.client()
        self.generation = generation
        self._plane = self._make_plane()
        # steps that landed in this generation, and whether a snapshot of an earlier one is to
        self._landed_steps = 0
        self._redoes = False
        # of a round that was not coded: what all had not sent before
        self._unsent: Tensor | None = None

    def enter(self) -> None:
        """Give the anchor to fresh members, and count this generation's steps from here.

        Raises:
            WorkerLost: if all who had the anchor are lost.
        """
        while self.generation.fresh:
            if all(map(self._is_handed_out, self._shared.replica.common.in_common)):
                self.generation = replace(self.generation, fresh=[])
            else:
                self._regroup()
        shared = self._shared
        with shared.changed:
            self._landed_steps = 0
            shared.generation, shared.round = self.generation.number, self.generation.round
            shared.threshold = self._plan.sync_every
            shared.uncounted = shared.replica.steps_since_snapshot
            shared.changed.notify_all()

    def _is_handed_out(self, name: str) -> bool:
        holders = [m for m in self.generation.members if m not in self.generation.fresh]
        if not holders:
            raise WorkerLost("all workers that had the common model are lost")
        values = self._shared.replica.common.in_common[name]
        sent, streams = self._plane.flat[: len(values)], self._shared.replica.streams
        with streams.beside_training():
            sent.zero_()
            if self._control.worker == holders[0]:
                sent.copy_(values)
        if not self._is_summed(name, self._plane.all_reduce):
            return False
        with self._shared.changed:
            with streams.beside_training():
                values.copy_(sent)
            # who hands it out as well, if it does not train yet: a sum makes 0 of -0
            if self._control.worker in self.generation.fresh or self.ident is None:
                self._shared.replica.take_anchor()
        return True

    def run(self) -> None:
        """Take part until the end."""
        shared = self._shared
        try:
            while not shared.over:
                self._require_no_end()
                self._control.wait_until_open(self.generation.round)
                self._require_no_end()
                contribution = self._contribute()
                reports = self._sum_up(contribution)
                self._land(contribution, reports)
                self._change_members(reports)
        except Exception as error:
            logger.debug("rounds have ended", exc_info=True)
            reason: Exception = self._of_a_change(error)
            with shared.changed:
                shared.error = shared.error or reason
        finally:
            self._plane.close()
            with shared.changed:
                shared.over = True
                shared.changed.notify_all()

    def _require_no_end(self) -> None:
        reason = self._control.stopped()
        if reason is not None:
            raise WorkersDiffer(reason)

    def _of_a_change(self, error: Exception) -> Exception:
        """Return what an error comes from: a model may have changed in the middle of a round."""
        if isinstance(error, WorkerLost | WorkersDiffer):
            return error
        change = self._shared.watch.of_tensors()
        if change is None:
            return error
        why = f"worker {self._control.worker}: {change}"
        try:
            return WorkersDiffer(self._control.stop(why, self.generation.round))
        except WorkerLost as lost:
            return lost

    def _contribute(self) -> Contribution:
        shared = self._shared
        with shared.changed:
            shared.is_open = True
            shared.changed.notify_all()
            shared.changed.wait_for(self._may_take)
            shared.raise_error()
            steps, claims = shared.take_snapshot()
            finished, leaving = shared.finished, shared.leaving
            busy_s = time.monotonic() - shared.counters.began
            working_s = max(busy_s - shared.counters.waited_s, 1e-9)
            all_steps = shared.counters.steps
        broken = not shared.replica.progress_is_finite()
        if broken:
            logger.warning(
                "worker %d's progress is not finite: %d steps are left out of round %d, and what "
                "of its optimizer's state is not finite begins anew",
                self._control.worker,
                steps,
                self.generation.round,
            )
            claims = []
            with shared.changed:
                shared.leave_out(steps)
        first = self.generation.members[0] == self._control.worker
        report = Report(
            steps=0 if broken else steps,
            active=steps > 0 or not finished,
            finished=finished,
            leaving=leaving,
            broken=broken,
            claims=len(claims),
            newcomers=self._control.newcomers() if first else 0,
            speed=all_steps / working_s,
            pace=all_steps / max(busy_s, 1e-9),
        )
        return Contribution(report, claims)

    def _may_take(self) -> bool:
        shared = self._shared
        if shared.error is not None:
            return True
        rests = shared.at_boundary or shared.finished or shared.leaving
        return not shared.stepping and (shared.overlap or rests)

    def _sum_up(self, contribution: Contribution) -> list[Report]:
        """Return all members' reports; the sum stands in the plane."""
        while True:
            size = self._shared.replica.sizes.total
            position = self.generation.members.index(self._control.worker)
            weight = own_weight(self._plan.weights, contribution.report)
            active = bool(contribution.report.active) and not contribution.report.broken
            self._shared.replica.fill(self._plane.flat[:size], weight, active=active)
            with self._shared.replica.streams.beside_training():
                header.write(self._plane.flat[size:], position, contribution.report)
            if contribution.claims:
                self._control.tell_trained(self.generation.round, packed(contribution.claims))
            sum_up = partial(self._all_reduce, contribution.report)
            if self._is_summed(f"round/{self.generation.round}", sum_up):
                with self._shared.replica.streams.beside_training():
                    return header.read(self._plane.flat[size:])
            self._regroup()
            self.enter()
            self._redoes = True

    def _all_reduce(self, report: Report, given_up: Callable[[], bool]) -> None:
        coder = self._shared.replica.coder
        if coder is None:
            return self._plane.all_reduce(given_up)
        flags = Flags(not (report.finished or report.leaving), bool(report.leaving))
        streams = self._shared.replica.streams
        self._unsent = sum_in_few_bits(self._plane, coder, flags, streams, given_up)

    def _is_summed(self, what: str, sum_up: Callable[[Callable[[], bool]], None]) -> bool:
        generation, control = self.generation, self._control
        try:
            sum_up(lambda: control.has_verdict(generation, what) or control.stopped() is not None)
        except Interrupted as reason:
            logger.info("worker %d, %s: %s", control.worker, what, reason)
            control.abort(generation, what)
            return False
        finally:
            with self._shared.changed:
                self._shared.counters.payload_bytes += self._plane.take_payload()
        return control.commit(generation, what)

    def _regroup(self) -> None:
        """Go on with those that are left."""
        self._plane.close()
        self._require_no_end()
        before = self.generation
        self.generation = self._control.survivors(before)
        lost = [m for m in before.members if m not in self.generation.members]
        if lost:
            logger.warning("lost worker %s in round %d", ", ".join(map(str, lost)), before.round)
        with self._shared.changed:
            counters = self._shared.counters
            now = time.monotonic() - counters.began
            counters.lost += [LostWorker(m, before.round, now) for m in lost]
        self._plane = self._make_plane()

    def _land(self, contribution: Contribution, reports: list[Report]) -> None:
        shared, plane = self._shared, self._plane
        num_active = sum(bool(r.active) and not r.broken for r in reports)
        factor = common_factor(self._plan.weights, reports)
        tellers = [m for m, r in zip(self.generation.members, reports, strict=True) if r.claims]
        dropped = bool(contribution.report.broken)
        told = self._control.trained(self.generation.round, tellers)
        body = plane.flat[: shared.replica.sizes.total]
        counts = shared.replica.counts(body)
        with shared.changed:
            counters, steps = shared.counters, int(sum(r.steps for r in reports))
            in_flight = shared.replica.steps_since_snapshot
            share = share_of_round(steps, self._plan.sync_every)
            unsent, coder = self._unsent, shared.replica.coder
            shared.replica.land(body, factor, num_active, counts, share, unsent, dropped=dropped)
            if coder is not None:
                with shared.replica.streams.beside_training():
                    coder.land(factor, whole=unsent is not None)
            self.trained.add(claim for text in told for claim in unpacked(text))
            counters.rounds += 1
            counters.steps_in_rounds += steps
            counters.broken_rounds += dropped
            counters.in_flight_sum += in_flight
            counters.in_flight_max = max(counters.in_flight_max, in_flight)
            counters.speed_of_all = sum(r.speed for r in reports)
            counters.pace_of_all = sum(r.pace for r in reports)
            # a snapshot of an earlier generation was counted there
            self._landed_steps += 0 if self._redoes else steps
            self._redoes = False
            self.generation = replace(self.generation, round=self.generation.round + 1)
            shared.round = self.generation.round
            shared.threshold = self._landed_steps + self._plan.sync_every
            shared.is_open = False
            shared.landed += 1
            shared.landed_at = time.monotonic()
            # the round that was open when one was asked for did not hold all that it should
            shared.urgent = shared.urgent or shared.wanted > shared.taken
            shared.changed.notify_all()

    def _change_members(self, reports: list[Report]) -> None:
        members = self.generation.members
        leavers = [m for m, r in zip(members, reports, strict=True) if r.leaving]
        stay = [m for m in members if m not in leavers]
        first = self._plan.world_size + self.generation.admitted
        newcomers = list(range(first, self._plan.world_size + int(reports[0].newcomers)))
        if self._control.worker in leavers or all(r.finished or r.leaving for r in reports):
            with self._shared.changed:
                self._shared.over = True
            return
        if leavers or newcomers:
            self._plane.close()
            following = Generation(
                self.generation.number + 1,
                stay + newcomers,
                newcomers,
                self.generation.round,
                self.generation.admitted + len(newcomers),
            )
            self.generation = self._control.propose(following)
            self._control.admit(self.generation)
            self._plane = self._make_plane()
            self.enter()

    def _make_plane(self) -> Plane:
        replica, generation = self._shared.replica, self.generation
        compression, size = self._plan.compression, len(generation.members)
        if compression is not None and size > most_workers(compression):
            logger.warning(
                "the sums of %d workers do not fit into %s: none is coded", size, compression
            )
        return Plane(
            PrefixStore(f"group/{generation.number}", self._groups),
            generation.members.index(self._control.worker),
            size,
            numel=replica.sizes.total + header.LINES * size,
            dtype=replica.dtype,
            device=replica.device,
            streams=replica.streams,
            backend=self._plan.backend,
            timeout_s=self._control.patience_s,
        )
