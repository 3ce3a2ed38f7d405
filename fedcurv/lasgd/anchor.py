"""The anchor z: the common model, of which every worker has the same bits, and how it moves."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedcurv.lasgd.flat import views_of
from fedcurv.lasgd.outer import Outer, OuterOptimizer
from fedcurv.parameters import listed

Shapes = Mapping[str, torch.Size]


class Anchor:
    """z in one flat tensor, parameters and then buffers, and the outer optimizer's velocity.

    Args:
        parameters: their shapes, by name.
        buffers: likewise.
        like: a tensor of the type and on the device that z is to have.
        outer: what the progress of a round goes through.

    Attributes:
        flat: z.
        views: of z, in the order of the names.
        parameters: the part of z that training moves.
        buffers: the part that is averaged.
    """

    def __init__(self, parameters: Shapes, buffers: Shapes, like: Tensor, outer: Outer) -> None:
        self._names, self._shapes = [*parameters, *buffers], list(parameters.values())
        sizes = [sum(s.numel() for s in part.values()) for part in (parameters, buffers)]
        self.flat = like.new_zeros(sum(sizes))
        self.views = views_of(self.flat, [*self._shapes, *buffers.values()])
        self.parameters, self.buffers = torch.split(self.flat, sizes)
        self._outer = OuterOptimizer(outer, self.parameters)

    @property
    def in_common(self) -> dict[str, Tensor]:
        """What all have with the same bits, and a newcomer gets: flat, each with a name."""
        velocity = self._outer.velocity
        return {"anchor": self.flat, **({"velocity": velocity} if len(velocity) else {})}

    @torch.no_grad()
    def move(self, progress: Tensor, share: float) -> None:
        """Move the parameters by a round's progress, which becomes what they have moved by.

        Args:
            progress: Δ, flat.
            share: of a whole round's steps, see ``share_of_round``.
        """
        self._outer.turn_into_step(progress, share)
        self.parameters.add_(progress)

    @torch.no_grad()
    def average(self, mean: Tensor, number: int) -> None:
        """Set buffers to their mean over so many workers; what none has changed keeps its bits.

        The sum of equal values rounds, and overflows where they are as large as a mask's.
        """
        rounding = number * torch.finfo(mean.dtype).eps / 2
        same = torch.isclose(mean, self.buffers, rtol=rounding, atol=0.0)
        overflow = self.buffers.isfinite() & ~mean.isfinite()
        self.buffers.copy_(torch.where(same | overflow, self.buffers, mean))

    def by_name(self) -> dict[str, Tensor]:
        """Return a copy of z, by parameters' and buffers' names."""
        return {n: view.clone() for n, view in zip(self._names, self.views, strict=True)}

    def velocity_by_name(self) -> dict[str, Tensor]:
        """Return a copy of the velocity, by parameters' names; nothing if there is none."""
        views = self._views_of_velocity()
        return {n: view.clone() for n, view in zip(self._names, views, strict=False)}

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Set z.

        Raises:
            ValueError: if names or shapes are others.
        """
        _require_same(values, dict(zip(self._names, self.views, strict=True)), "the state")
        torch._foreach_copy_(self.views, [values[n] for n in self._names])

    @torch.no_grad()
    def load_velocity(self, values: Mapping[str, Tensor]) -> None:
        """Set the velocity; to zero if there are no values.

        Raises:
            ValueError: if names or shapes are others.
        """
        views = dict(zip(self._names, self._views_of_velocity(), strict=False))
        self._outer.velocity.zero_()
        if values and views:
            _require_same(values, views, "an outer optimizer's state")
            torch._foreach_copy_(list(views.values()), [values[n] for n in views])

    def _views_of_velocity(self) -> list[Tensor]:
        velocity = self._outer.velocity
        return views_of(velocity, self._shapes) if len(velocity) else []


def _require_same(values: Mapping[str, Tensor], views: Mapping[str, Tensor], what: str) -> None:
    if {n: v.shape for n, v in values.items()} != {n: v.shape for n, v in views.items()}:
        raise ValueError(
            f"expected {what} of a model with {listed(list(views))}, got one with "
            f"{listed(list(values))}, or with other shapes"
        )
