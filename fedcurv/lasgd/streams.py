"""Order between the thread that trains and the one that takes snapshots, without blocking the host.

On CUDA each works on a stream of its own, ordered by events. On a CPU operations are done when they
return, and the caller's lock is order enough.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


class Streams:
    """No streams: a CPU."""

    def beside_training(self) -> AbstractContextManager[None]:
        """Return a context for work of the other thread, after what training has queued so far."""
        return nullcontext()

    def before_training_writes(self) -> None:
        """Let training's queue wait for the other thread's work."""

    def after_training_wrote(self) -> None:
        """Let later work of the other thread wait for training's queue."""


class CudaStreams(Streams):
    """A stream beside the one that trains.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._wrote = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done_beside = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.after_training_wrote()
        self._done_beside.record(self._side)

    @contextmanager
    def _beside(self) -> Iterator[None]:
        with torch.cuda.stream(self._side):
            self._side.wait_event(self._wrote)
            yield
            self._done_beside.record(self._side)

    def beside_training(self) -> AbstractContextManager[None]:
        """Return a context that queues on the stream beside training."""
        return self._beside()

    def before_training_writes(self) -> None:
        """Let the training stream wait for the last work beside it."""
        torch.cuda.current_stream(self._device).wait_event(self._done_beside)

    def after_training_wrote(self) -> None:
        """Record where the training stream is."""
        self._wrote.record(torch.cuda.current_stream(self._device))


def streams_of(device: torch.device) -> Streams:
    """Return what keeps order on a device."""
    return CudaStreams(device) if device.type == "cuda" else Streams()
