"""LASGD: the context manager that a training loop runs in."""

import logging
import time
from types import TracebackType
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset

from fedcurv.lasgd import agreement, meeting
from fedcurv.lasgd.arguments import Averaging, check_arguments, require_device
from fedcurv.lasgd.coding import Compression
from fedcurv.lasgd.counting import Counting
from fedcurv.lasgd.counts import Counts
from fedcurv.lasgd.data import SharedLoader
from fedcurv.lasgd.dealing import Dealing
from fedcurv.lasgd.outer import Kind, Outer
from fedcurv.lasgd.plan import Plan
from fedcurv.lasgd.plane import Backend
from fedcurv.lasgd.replica import Replica
from fedcurv.lasgd.rounds import Rounds
from fedcurv.lasgd.shared import Shared, end_if
from fedcurv.lasgd.state import load_state, require_state, state_of
from fedcurv.lasgd.stats import Stats, stats_of
from fedcurv.lasgd.stepping import Stepping
from fedcurv.lasgd.watch import Watch, WorkersDiffer
from fedcurv.lasgd.weights import Weights

logger = logging.getLogger(__name__)


class LASGD:
    """Lets several workers train one model, each at its own pace.

    Every worker runs the same program: its own loop, optimizer, scheduler and scaler stay as they
    are. Whenever all workers together have made ``sync_every`` optimizer steps a round opens: each
    contributes its progress D_i since the common model z to one All-Reduce, and when the sum Δ
    lands, z += Δ and x_i += Δ − D_i, so that steps done meanwhile are kept. All begin with the
    model of worker 0 and end, with the ``with`` block, with the same bits.

    Args:
        model: on one device; its frozen parameters the same everywhere, to the end. What trains
            may be frozen in the middle, and not the other way round.
        optimizer: over its trainable parameters, of the same class and options everywhere. Each
            call of its ``step`` within the block is a step; before and after it, they are the
            worker's own.
        sync_every: steps of all workers together between rounds, >= 1.
        overlap: go on training while a round is in flight; else wait for it between two steps,
            and a step may not take longer than half of ``timeout_s``.
        weights: of the workers' progress: ``gradient`` counts each 1/N, so that every gradient
            counts lr/N; ``steps`` n_i/Σn; ``worker`` the progress per step.
        momentum: ``average`` it with the model or keep it ``local``.
        buffers: floating-point buffers such as BatchNorm's: ``average`` them, to be handed out by
            :meth:`synchronize` and at the end, when single integers, which are counts or flags,
            become the largest of the workers'; or keep all ``local``.
        outer: the optimizer that a round's progress Δ goes through before it lands: ``nesterov`` or
            ``momentum``; None lands Δ as it is.
        outer_lr: of it, > 0.
        outer_momentum: of it, in [0, 1). Every progress then counts outer_lr / (1 − outer_momentum)
            times in the long run: take as much less of the optimizer's own learning rate.
        compression: ``int8`` or ``int4``, in which progress and momentum travel; None for floats.
        max_in_flight: steps that a worker makes between its snapshot and the landing before it
            waits, >= 1.
        timeout_s: within it the others go on without a worker that is killed or hangs, in
            (0, 1e9].
        store: of torch.distributed, shared by the workers and for this training alone; by default
            the one that torchrun's environment names.
        rank: with the store.
        world_size: with the store: how many workers begin.
        process_group: of torch.distributed, in the store's place: its members are the workers. It
            is used to meet only.
        join: enter a training that has begun; with its store, without rank and world_size.
        backend: ``gloo``, by the host's memory; or ``nccl``, on GPUs.

    Raises:
        ValueError: for arguments that cannot work, and at every worker if models, settings,
            optimizers or versions differ.
        TimeoutError: naming the workers that did not come.
        WorkersDiffer: at every worker, out of the optimizer's ``step`` or the end of the block, if
            one's model or optimizer has changed so that they would not end with the same bits.
        WorkerLost: out of the optimizer's ``step``, if the others went on without this worker or
            the store is gone.

    Source: arXiv 2203.13085 (asynchronous, decentralised, exact All-Reduce).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        sync_every: int = 32,
        overlap: bool = True,
        weights: Weights = "gradient",
        momentum: Averaging = "average",
        buffers: Averaging = "average",
        outer: Kind | None = None,
        outer_lr: float = Outer.lr,
        outer_momentum: float = Outer.momentum,
        compression: Compression | None = None,
        max_in_flight: int = 16,
        timeout_s: float = 60.0,
        store: Any = None,
        rank: int | None = None,
        world_size: int | None = None,
        process_group: dist.ProcessGroup | None = None,
        join: bool = False,
        backend: Backend = "gloo",
    ) -> None:
        settings: dict[str, Any] = {
            "sync_every": sync_every,
            "overlap": overlap,
            "weights": weights,
            "momentum": momentum,
            "buffers": buffers,
            "outer": outer,
            "outer_lr": outer_lr,
            "outer_momentum": outer_momentum,
            "compression": compression,
            "backend": backend,
        }
        place = meeting.Place(store, rank, world_size, process_group, join)
        others = {"max_in_flight": max_in_flight, "timeout_s": timeout_s}
        meant = {"model": model, "optimizer": optimizer, **settings, **others}
        check_arguments({**meant, **vars(place)})
        replica = Replica(
            model,
            optimizer,
            average_momentum=momentum == "average",
            average_buffers=buffers == "average",
            outer=Outer(outer, outer_lr, outer_momentum),
            compression=compression,
        )
        require_device(replica.device, backend)
        watch = Watch(model, optimizer, with_buffers=buffers == "average")
        self._shared = Shared(replica, watch, overlap)
        control, generation, size = meeting.take_part(
            place,
            timeout_s,
            lambda more: meeting.signature(model, optimizer, {**settings, **more}),
        )
        replica.set_anchor()
        # this process may host the store: it lives as long as its first client
        self._first_client = control
        # used by counts and claims, which never block
        self._control = control.clone()
        plan = Plan(size, sync_every, weights, backend, compression)
        self._rounds = Rounds(self._shared, control.clone(), plan, generation)
        self._rounds.enter()
        self._counting = Counting(self._shared, self._control)
        self._counts = Counts(model, self._control) if buffers == "average" else None
        self._stepping = Stepping(optimizer, self._shared, self._control, max_in_flight)
        self._dealing = Dealing(self._shared, self._control, self._rounds.trained)
        self._joins, self._has_loaded = join, False
        self._stage: Literal["before", "within", "after"] = "before"

    @property
    def worker(self) -> int:
        """This worker's id."""
        return self._control.worker

    @property
    def stats(self) -> Stats:
        """Figures so far."""
        with self._shared.changed:
            return stats_of(self._shared.counters)

    def __enter__(self) -> Self:
        """Begin to take part, from the model as it is now: the same at all workers."""
        if self._stage != "before":
            raise RuntimeError("expected one with block, got another; make another LASGD for it")
        if self._joins:
            self._shared.replica.take_anchor()
        else:
            try:
                agreement.require_same_beginning(
                    self._shared, self._control, self._dealing.saved, has_loaded=self._has_loaded
                )
            except WorkersDiffer:
                self._control.part(self._rounds.generation.members)
                raise
        self._stage = "within"
        self._stepping.begin()
        self._shared.counters.began = time.monotonic()
        self._rounds.start()
        self._counting.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish; or leave the others to themselves if the block has raised."""
        self._shared.stepping = False
        try:
            if self._stage == "within" and kind is None:
                self.finish()
            elif self._stage == "within" and self._shared.error is None:
                self.leave()
        finally:
            self._end()
            # a process that ends in the middle of closing its group is terminated by torch
            self._rounds.join(self._control.patience_s)
            self._counting.join(self._control.patience_s)
            if isinstance(self._shared.error, WorkersDiffer):
                self._control.part(self._rounds.generation.members)

    def _end(self) -> None:
        self._stepping.end()
        self._stage = "after"

    def loader(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> SharedLoader:
        """Return batches that no other worker gets; one pass is one epoch of all workers together.

        Args:
            dataset: the same at all workers, with a length.
            batch_size: of this worker.
            shuffle: deal the samples in random order.
            seed: decides the order; the same at all workers.
            **options: for ``torch.utils.data.DataLoader``.

        Raises:
            RuntimeError: if there is a loader already.
            ValueError: for a data set without a length, or options that leave samples out.
            WorkersDiffer: at every worker, if data sets or settings differ.
        """
        order = (batch_size, shuffle, seed)
        return self._dealing.loader(dataset, *order, options, self._require_within)

    def synchronize(self) -> None:
        """Wait for a round with all steps so far, and give the model its values, buffers too."""
        self._require_within()
        shared = self._shared
        end_if(shared.watch.of_tensors(), shared, self._control)
        with shared.changed:
            number = shared.want_round()
            shared.wait_in_training(lambda: shared.landed >= number)
            shared.take_landed()
            shared.replica.take_anchor()

    def finish(self) -> None:
        """Answer the others' rounds until all have finished; then all have the same bits.

        It ends what the block is for: steps after it are the worker's own.
        """
        self._require_within()
        shared = self._shared
        end_if(shared.watch.of_tensors(to_the_last_bit=True), shared, self._control)
        if self._counts is not None:
            self._counts.tell()
        self._answer_to_the_end(leaving=False)
        members = self._rounds.generation.members
        with shared.changed:
            shared.replica.take_anchor()
        if self._counts is not None:
            self._counts.take(members)
        if not shared.counters.steps_in_rounds:
            logger.warning("LASGD's block ends without a step: is the training loop inside of it?")
        self._control.part(members)
        self._end()

    def leave(self) -> None:
        """Contribute what has been done, and let the others go on alone."""
        self._require_within()
        self._answer_to_the_end(leaving=True)
        self._control.say_goodbye()
        self._end()

    def _answer_to_the_end(self, *, leaving: bool) -> None:
        shared = self._shared
        with shared.changed:
            shared.finished, shared.leaving = not leaving, leaving
            shared.want_round()
            shared.wait_in_training(lambda: shared.over)
            shared.take_landed()

    def state_dict(self) -> dict[str, Any]:
        """Return the common model as of the last landing, and what of each epoch is not in it.

        Any worker's will do, but for what few bits have left unsent, which is each worker's own.
        An outer optimizer's velocity is in it, the optimizer's state is not.
        """
        with self._shared.changed:
            return state_of(self._shared.replica, self._dealing.state_dict(), self.worker)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, the same at all workers, before the ``with`` block begins.

        A newcomer, which has the others' model, takes of it what is left of the data alone.

        Raises:
            RuntimeError: if the training has begun.
            ValueError: if it is no such state, or of another model.
        """
        if self._stage != "before" or self._dealing.has_begun:
            raise RuntimeError("expected a state before loader() and the with block, got it later")
        require_state(state)
        if not self._joins:
            load_state(self._shared.replica, state, self.worker)
        self._dealing.saved, self._has_loaded = state["data"], True

    def _require_within(self) -> None:
        if self._stage != "within":
            raise RuntimeError(
                f"expected it inside of the with block of LASGD, got it {self._stage} that; write "
                "the training loop into `with LASGD(...) as lasgd:`"
            )
