"""How many samples may be taken at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

# What a graph may keep for its backward pass. On a CPU larger passes gain nothing, and what they
# free goes back to the system, to be asked for again page by page.
_BYTES_ON_CPU = 2**27
_BYTES_ON_ACCELERATORS = 2**31
_NEGLIGIBLE_BYTES = 2**23
# Passes whose graphs keep less than this cost more for being begun than for their numbers.
_WORTH_A_PASS_ON_CPU = 2**21
_WORTH_A_PASS_ON_ACCELERATORS = 2**26
# of the free memory
_SHARE = 4
# where Linux tells a container its limits
_CONTAINER = Path("/sys/fs/cgroup")


class GraphMeter:
    """Counts the bytes that a graph keeps for its backward pass, parameters apart.

    Attributes:
        bytes: of all tensors saved so far, each piece of memory counted once.
    """

    def __init__(self, model: nn.Module) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        self._counted = {t.untyped_storage().data_ptr() for t in tensors}
        self.bytes = 0

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._counted:
            self._counted.add(storage.data_ptr())
            self.bytes += min(storage.nbytes(), tensor.numel() * tensor.element_size())
        return tensor

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is saved inside."""
        with torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor):
            yield


def samples_at_once(graph_bytes: float, samples: int, device: torch.device) -> int:
    """Return how many samples to take at once: as many as are fast, fewer only if memory is short.

    So one seed gives one result, however much memory is free.

    Args:
        graph_bytes: what a graph over all of them keeps.
        samples: how many there are, >= 1.
        device: where.
    """
    if graph_bytes <= _NEGLIGIBLE_BYTES:
        return samples
    budget = _BYTES_ON_CPU if device.type == "cpu" else _BYTES_ON_ACCELERATORS
    free = free_bytes(device)
    budget = budget if free is None else min(budget, free // _SHARE)
    return min(samples, max(1, int(budget / graph_bytes * samples)))


def samples_worth_a_pass(graph_bytes: float, samples: int, device: torch.device) -> int:
    """Return how many samples are worth a pass of their own, if the batch has fewer; else 0.

    Args:
        graph_bytes: what a graph over the batch keeps; 0 if that is not known.
        samples: how many are in the batch, >= 1.
        device: where.
    """
    worth = _WORTH_A_PASS_ON_CPU if device.type == "cpu" else _WORTH_A_PASS_ON_ACCELERATORS
    return int(worth / graph_bytes * samples) if 0 < graph_bytes < worth else 0


@cache
def keep_freed_memory() -> None:
    """Keep the C library from returning freed memory to the system after every layer, for good.

    glibc learns from a freed block of up to 32 MiB that twice as much is worth keeping. Without it
    a small network can spend a third of a pass on pages that it had a moment ago.
    """
    bytearray(2**25 - 2**16)


def free_bytes(device: torch.device) -> int | None:
    """Return the device's free memory; None where it is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + unused
    if device.type != "cpu":
        return None
    amounts = [_available_in_system(), _left_in_container()]
    return min((amount for amount in amounts if amount is not None), default=None)


def _available_in_system() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (kibibytes,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return 1024 * int(kibibytes)
    except (OSError, ValueError, IndexError):
        return None


def _left_in_container() -> int | None:
    try:
        limit = int((_CONTAINER / "memory.max").read_text())
        used = int((_CONTAINER / "memory.current").read_text())
        lines = (_CONTAINER / "memory.stat").read_text().splitlines()
        counts = dict(line.split() for line in lines)
        return max(0, limit - used + int(counts["inactive_file"]))  # cached files give way
    except (OSError, ValueError, KeyError):  # no such file, or "max": no limit
        return None
