"""One flat tensor for everything that workers sum: how it is laid out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """How many numbers the flat tensor has of each sort, in this order.

    The momentum is in two parts, first what has a sign and then means of squares.
    """

    parameters: int
    signed: int
    squares: int
    buffers: int
    presence: int

    @property
    def momentum(self) -> int:
        """Both parts."""
        return self.signed + self.squares

    @property
    def total(self) -> int:
        """All together."""
        return self.parameters + self.momentum + self.buffers + self.presence

    @property
    def parts(self) -> list[int]:
        """Of parameters, momentum, buffers and presence."""
        return [self.parameters, self.momentum, self.buffers, self.presence]


def views_of(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Return the parts of a flat tensor, of these shapes and in this order."""
    parts = torch.split(flat, [shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
