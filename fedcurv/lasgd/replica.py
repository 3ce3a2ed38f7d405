"""One worker's copy of the model: its progress since the common anchor, and what comes back."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fedcurv.lasgd.anchor import Anchor
from fedcurv.lasgd.arguments import require_all
from fedcurv.lasgd.coding import Coder, Compression
from fedcurv.lasgd.flat import Sizes, views_of
from fedcurv.lasgd.momentum import Momentum
from fedcurv.lasgd.outer import NONE, Outer
from fedcurv.lasgd.reset import clear_what_is_not_finite
from fedcurv.lasgd.streams import streams_of
from fedcurv.parameters import accumulation_dtype, trainable_parameters


class Replica:
    """A worker's model x, the anchor z that all share, and the correction p still to be added.

    After every landing x + p = z + (the local updates since the last snapshot). Snapshots and
    landings are taken by another thread than the one that trains; the caller's lock keeps them out
    of optimizer steps.

    Args:
        model: on one device.
        optimizer: over all its trainable parameters.
        average_momentum: average the optimizer's momentum too.
        average_buffers: average floating-point buffers, such as BatchNorm's, into the anchor.
        outer: what the progress of a round goes through.
        compression: of contributions.

    Raises:
        ValueError: if the optimizer does not hold the model's parameters, or devices differ.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        average_momentum: bool = True,
        average_buffers: bool = True,
        outer: Outer = NONE,
        compression: Compression | None = None,
    ) -> None:
        named = trainable_parameters(model)
        require_all(named, optimizer)
        self._parameters: list[Tensor] = list(named.values())
        floating = [n for n, b in model.named_buffers() if b.is_floating_point()]
        self._optimizer = optimizer
        self._model, self.buffer_names = model, floating if average_buffers else []
        self.names = [*named, *self.buffer_names]
        self._momentum = Momentum(optimizer, self._parameters) if average_momentum else None
        self.device = _one_device([*self._parameters, *self._buffers])
        self.streams = streams_of(self.device)

        shapes = [] if self._momentum is None else self._momentum.shapes
        self.sizes = Sizes(
            sum(p.numel() for p in self._parameters),
            signed := 0 if self._momentum is None else self._momentum.signed,
            sum(shape.numel() for shape in shapes) - signed,
            sum(b.numel() for b in self._buffers),
            len(shapes),
        )
        tensors = [*self._parameters, *self._buffers]
        self.dtype = max(map(accumulation_dtype, tensors), key=lambda d: d.itemsize)
        sizes, make = self.sizes, partial(torch.zeros, dtype=self.dtype, device=self.device)
        self._own = make(sizes.total)
        self.common = Anchor(
            {name: p.shape for name, p in named.items()},
            dict(zip(self.buffer_names, (b.shape for b in self._buffers), strict=True)),
            self._own,
            outer,
        )
        self.anchor = self.common.flat
        self.coder = compression and Coder(compression, sizes.parameters, sizes.signed, self._own)
        self._correction = make(sizes.parameters + sizes.momentum)

        parts = torch.split(self._own, sizes.parts)
        self._own_parameters, self._own_momentum, self._own_buffers, self._own_presence = parts
        self._correction_of_parameters, self._correction_of_momentum = torch.split(
            self._correction, [sizes.parameters, sizes.momentum]
        )
        of_parameters = [p.shape for p in self._parameters]
        of_buffers = [b.shape for b in self._buffers]
        self._own_views = views_of(self._own_parameters, of_parameters)
        self._views_of_own_buffers = views_of(self._own_buffers, of_buffers)
        self._views_of_own_momentum = views_of(self._own_momentum, shapes)
        self._correction_views = views_of(self._correction, [*of_parameters, *shapes])
        self._pending = self._reset = False
        self._since_snapshot = self._since_correction = 0

    @property
    def _buffers(self) -> list[Tensor]:
        """The live buffers: a model may put another tensor in a buffer's place at any time."""
        return [self._model.get_buffer(name) for name in self.buffer_names]

    @property
    def steps_since_snapshot(self) -> int:
        """Local steps that no contribution holds yet."""
        return self._since_snapshot

    def anchor_by_name(self) -> dict[str, Tensor]:
        """Return a copy of the anchor, by parameters' and buffers' names."""
        self.streams.before_training_writes()
        return self.common.by_name()

    def load_anchor(self, values: dict[str, Tensor]) -> None:
        """Set the anchor, and the live model to it.

        Raises:
            ValueError: if names or shapes are others.
        """
        self.common.load(values)
        self.take_anchor()

    @torch.no_grad()
    def set_anchor(self, *, with_buffers: bool = True) -> None:
        """Take the live model for the anchor, or its parameters alone."""
        live = [*self._parameters, *(self._buffers if with_buffers else ())]
        torch._foreach_copy_(self.common.views[: len(live)], live)

    @torch.no_grad()
    def take_anchor(self) -> None:
        """Overwrite the live model with the anchor, and forget what is not in it."""
        self.streams.before_training_writes()
        torch._foreach_copy_([*self._parameters, *self._buffers], self.common.views)
        self.streams.after_training_wrote()
        self._pending = self._reset = False
        self._since_snapshot = self._since_correction = 0

    def count_step(self) -> None:
        """Note that the optimizer has made a step."""
        self._since_snapshot += 1
        self._since_correction += 1

    @torch.no_grad()
    def snapshot(self) -> int:
        """Keep this worker's progress D = x + p − z for :meth:`fill`; return its steps."""
        steps, self._since_snapshot = self._since_snapshot, 0
        with self.streams.beside_training():
            if self._reset:
                self._own.zero_()
                self._own_buffers.copy_(self.common.buffers)
                return 0
            for x, z, own in zip(
                self._parameters, self.common.views, self._own_views, strict=False
            ):
                torch.sub(x, z, out=own)
            if self.buffer_names:
                torch._foreach_copy_(self._views_of_own_buffers, self._buffers)
            self._snapshot_momentum()
            if self._pending:
                self._fade_correction()
                self._own_parameters.add_(self._correction_of_parameters)
                self._own_momentum.add_(self._correction_of_momentum)
        return steps

    def progress_is_finite(self) -> bool:
        """Whether the last snapshot has neither NaN nor infinity, but in buffers that begin so."""
        with self.streams.beside_training():
            return bool(
                torch.isfinite(self._own_parameters).all()
                and torch.isfinite(self._own_momentum).all()
                and (self._own_buffers.isfinite() | ~self.common.buffers.isfinite()).all()
            )

    @torch.no_grad()
    def fill(self, body: Tensor, weight: float, *, active: bool) -> None:
        """Write the last snapshot as this worker's summand.

        Args:
            body: shape (sizes.total,); what it held does not matter.
            weight: of D.
            active: whether this worker counts at all.
        """
        with self.streams.beside_training():
            if active:
                body.copy_(self._own)
                body[: self.sizes.parameters].mul_(weight)
            else:
                body.zero_()

    def counts(self, body: Tensor) -> list[float]:
        """Return over how many workers each tensor of the momentum was summed.

        It waits for the device, so that :meth:`land`, under the caller's lock, need not.
        """
        with self.streams.beside_training():
            presence = body[self.sizes.total - self.sizes.presence :]
            numbers: list[float] = presence.tolist()
            return numbers

    @torch.no_grad()
    def land(
        self,
        body: Tensor,
        factor: float,
        num_active: int,
        counts: Sequence[float],
        share: float = 1.0,
        unsent: Tensor | None = None,
        *,
        dropped: bool = False,
    ) -> None:
        """Move the anchor by Δ and prepare the correction Δ − D of the live model.

        Args:
            body: the sum over all workers, shape (sizes.total,); overwritten.
            factor: Δ is the sum times this.
            num_active: over how many workers the buffers were summed.
            counts: of :meth:`counts`.
            share: of a whole round's steps that have landed, see ``share_of_round``.
            unsent: of earlier rounds, by all workers: added to Δ.
            dropped: this worker's progress was left out: it goes on from the anchor, and the
                optimizer's state begins anew where it is not finite.
        """
        with self.streams.beside_training():
            progress, momentum, buffers, _ = torch.split(body, self.sizes.parts)
            progress.mul_(factor)
            if unsent is not None:
                progress.add_(unsent)
            self.common.move(progress, share)
            if num_active:
                self.common.average(buffers.div_(num_active), num_active)
            self._reset = self._reset or dropped
            if self._pending:
                self._fade_correction()
            else:
                self._correction.zero_()
            self._since_correction = 0
            self._pending = True
            self._correction_of_parameters.add_(progress).sub_(self._own_parameters)
            if self._momentum is not None and counts:
                views = views_of(momentum, self._momentum.shapes)
                torch._foreach_div_(views, [max(1.0, count) for count in counts])
                self._correct_momentum(momentum, counts)

    def _correct_momentum(self, average: Tensor, counts: Sequence[float]) -> None:
        assert self._momentum is not None
        if self._reset:
            self._correction_of_momentum.copy_(average)
            # what no worker has is to begin anew, and not at zero in the middle of counted steps
            views = self._correction_views[len(self._parameters) :]
            for view in (view for view, count in zip(views, counts, strict=True) if not count):
                view.fill_(torch.nan)
            return
        average.sub_(self._own_momentum)
        _scale(
            views_of(average, self._momentum.shapes), self._momentum.decays(self._since_snapshot)
        )
        self._correction_of_momentum.add_(average)

    @torch.no_grad()
    def apply(self) -> bool:
        """Add a landed correction to the live model; return whether there was one."""
        if not self._pending:
            return False
        n = len(self._parameters)
        self.streams.before_training_writes()
        if self._reset:
            torch._foreach_copy_([*self._parameters, *self._buffers], self.common.views)
            self._since_snapshot = 0
        else:
            self._fade_correction()
            torch._foreach_add_(self._parameters, self._correction_views[:n])
        if self._momentum is not None:
            correct = self._momentum.replace if self._reset else self._momentum.correct
            correct(self._correction_views[n:])
        if self._reset:
            clear_what_is_not_finite(self._optimizer, self._parameters)
        self.streams.after_training_wrote()
        self._pending = self._reset = False
        return True

    def _snapshot_momentum(self) -> None:
        if self._momentum is None:
            return
        tensors = self._momentum.tensors()
        for tensor, own in zip(tensors, self._views_of_own_momentum, strict=True):
            if tensor is None:
                own.zero_()
            else:
                own.copy_(tensor)
        present = [float(tensor is not None) for tensor in tensors]
        self._own_presence.copy_(torch.tensor(present))

    def _fade_correction(self) -> None:
        """Bring the correction of the momentum, made some steps ago, to now."""
        if self._momentum is not None and self._since_correction:
            views = self._correction_views[len(self._parameters) :]
            _scale(views, self._momentum.decays(self._since_correction))
        self._since_correction = 0


def _scale(tensors: Sequence[Tensor], factors: Sequence[float]) -> None:
    if tensors:
        torch._foreach_mul_(list(tensors), list(factors))


def _one_device(tensors: Sequence[Tensor]) -> torch.device:
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(
            f"expected a model on one device, got {', '.join(sorted(map(str, devices)))}; "
            "give each worker one device"
        )
    return devices.pop()
