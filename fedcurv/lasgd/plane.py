"""The data plane: one All-Reduce at a time, over a group that is made anew for each generation."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from fedcurv.lasgd.streams import Streams

logger = logging.getLogger(__name__)

Backend = Literal["gloo", "nccl"]

_LONGEST_NAP_S = 2e-3
_BETWEEN_CHECKS_S = 0.05

# groups that could not be aborted: their end would wait for what will never come
_abandoned: list[Any] = []


class Interrupted(Exception):
    """An All-Reduce came to nothing at this worker."""


class Plane:
    """Sums one preallocated flat tensor over the members of a generation.

    The tensor is private to the plane: what is in flight must not be written. After an interruption
    the old operation may still write into it, so that a new generation needs a new plane.

    Args:
        store: of torch.distributed; only for this generation.
        rank: of this worker among the members.
        size: how many members there are.
        numel: of the tensor.
        dtype: of the tensor.
        device: of the tensor.
        streams: of that device.
        backend: ``gloo`` sums on the host, from pinned memory where the tensor is on a GPU;
            ``nccl`` on the GPUs.
        timeout_s: for one sum; making the group may take half of it, so that all notice a failure
            there before any is taken for lost.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        *,
        numel: int,
        dtype: torch.dtype,
        device: torch.device,
        streams: Streams,
        backend: Backend,
        timeout_s: float,
    ) -> None:
        self.flat = torch.zeros(numel, dtype=dtype, device=device)
        self._store, self._rank, self.size = store, rank, size
        self._payload = 0
        self._streams, self._backend, self._timeout_s = streams, backend, timeout_s
        self._group: Any = None
        staged = device.type == "cuda" and backend == "gloo"
        self._host = torch.zeros(numel, dtype=dtype, pin_memory=True) if staged else None

    def take_payload(self) -> int:
        """Return how many bytes have been summed since this was last asked.

        In a ring each of N members sends 2 (N − 1)/N as many.
        """
        payload, self._payload = self._payload, 0
        return payload

    def all_reduce(
        self, given_up: Callable[[], bool], tensor: Tensor | None = None, *, largest: bool = False
    ) -> None:
        """Replace :attr:`flat` by its sum over the members.

        Args:
            given_up: asked now and then whether another member has given up.
            tensor: to be replaced instead, on the same device and not to be written later.
            largest: take the largest of the members' numbers, not their sum.

        Raises:
            Interrupted: if a member is lost, or the time is over.
        """
        if self.size == 1:
            return
        try:
            if self._group is None:
                self._group = self._connect()
            given = self.flat if tensor is None else tensor
            if self._host is None:
                self._sum(given, given_up, largest)
            else:
                host = self._host
                if tensor is not None:
                    host = torch.empty_like(given, device="cpu", pin_memory=True)
                self._sum_by_host(given, host, given_up, largest)
            self._payload += given.numel() * given.element_size()
        except RuntimeError as error:  # what torch raises for lost peers and for timeouts
            raise Interrupted(str(error)) from error

    def close(self) -> None:
        """End the group, so that members who still wait for this one are told at once."""
        group, self._group = self._group, None
        if group is None:
            return
        try:
            group.abort()
        except (AttributeError, RuntimeError):
            _abandoned.append(group)

    def _connect(self) -> Any:
        timeout = timedelta(seconds=self._timeout_s / 2)
        if self._backend == "nccl":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = timeout
            return dist.ProcessGroupNCCL(self._store, self._rank, self.size, options)
        return dist.ProcessGroupGloo(self._store, self._rank, self.size, timeout)

    def _sum_by_host(
        self, given: Tensor, host: Tensor, given_up: Callable[[], bool], largest: bool
    ) -> None:
        with self._streams.beside_training():
            host.copy_(given, non_blocking=True)
            torch.cuda.current_stream(self.flat.device).synchronize()
        self._sum(host, given_up, largest)
        with self._streams.beside_training():
            given.copy_(host, non_blocking=True)

    def _sum(self, tensor: Tensor, given_up: Callable[[], bool], largest: bool) -> None:
        options = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
        with self._streams.beside_training():
            work = self._group.allreduce([tensor], options)
        began = checked = time.monotonic()
        nap = 1e-4
        while not work.is_completed():
            now = time.monotonic()
            if now - began > self._timeout_s:
                raise Interrupted(f"no answer within {self._timeout_s:g} s")
            if now - checked > _BETWEEN_CHECKS_S:
                checked = now
                if given_up():
                    raise Interrupted("another worker has given up")
            time.sleep(nap)
            nap = min(1.5 * nap, _LONGEST_NAP_S)
        with self._streams.beside_training():
            work.wait()
