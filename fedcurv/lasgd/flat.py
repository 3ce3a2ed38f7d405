"""One flat tensor for everything that workers sum: how it is laid out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """How many numbers the flat tensor has of each sort, in this order."""

    parameters: int
    buffers: int
    momentum: int
    presence: int

    @property
    def total(self) -> int:
        """All together."""
        return self.parameters + self.buffers + self.momentum + self.presence


def views_of(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Return the parts of a flat tensor, of these shapes and in this order."""
    parts = torch.split(flat, [shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
