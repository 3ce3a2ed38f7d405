"""Counters among a model's buffers: single integers of what a worker has seen, and flags."""

import json
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fedcurv.lasgd.control import Control


def is_count(buffer: Tensor) -> bool:
    """Whether a buffer is one integer or one truth value."""
    return not (buffer.is_floating_point() or buffer.is_complex()) and buffer.numel() == 1


class Counts:
    """Lets all workers end with the largest of each, which is in range wherever they all are.

    Args:
        model: that is trained.
        control: a view of the store that nobody waits with.
    """

    def __init__(self, model: nn.Module, control: Control) -> None:
        self._model, self._control = model, control

    def tell(self) -> None:
        """Say how far this worker's are, before the others learn that it has finished."""
        counts = {name: int(buffer.item()) for name, buffer in self._buffers().items()}
        if counts:
            self._control.tell_counts(json.dumps(counts))

    @torch.no_grad()
    def take(self, members: Iterable[int]) -> None:
        """Set each to the largest of these members', of whom all that finished have told theirs."""
        buffers = self._buffers()
        told = [json.loads(text) for text in self._control.counts(members)] if buffers else []
        for name, buffer in buffers.items():
            buffer.fill_(max(counts[name] for counts in told))

    def _buffers(self) -> dict[str, Tensor]:
        return {name: b for name, b in self._model.named_buffers() if is_count(b)}
