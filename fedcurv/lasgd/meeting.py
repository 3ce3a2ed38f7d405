"""How workers find each other, and that they have the same model."""

import itertools
import json
import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed import PrefixStore, TCPStore, rendezvous  # type: ignore[attr-defined]

from fedcurv.lasgd.control import Control, Generation
from fedcurv.lasgd.hosting import host_store

# trainings of one process, in order: workers that run the same program count alike
_numbers = itertools.count()


def meet(
    store: Any, rank: int | None, world_size: int | None, timeout_s: float
) -> tuple[Any, int, int]:
    """Return a store for one training, this worker's rank and the number of workers.

    Args:
        store: given, or None for the one that torchrun's environment names.
        rank: given with the store.
        world_size: given with the store.
        timeout_s: to wait for the store.

    Raises:
        ValueError: if there is neither a store nor such an environment.
        TimeoutError: if nothing answers there.
    """
    if store is not None:
        if rank is None or world_size is None or not 0 <= rank < world_size:
            raise ValueError(
                "expected rank and world_size, 0 <= rank < world_size, with the store, got "
                f"{rank!r} and {world_size!r}"
            )
        return store, rank, world_size
    missing = [
        name
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if name not in os.environ
    ]
    if missing:
        raise ValueError(
            f"expected the environment that torchrun sets, got none of {', '.join(missing)}; start "
            "the workers with torchrun, or pass store, rank and world_size"
        )
    try:
        found, rank, world_size = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    except dist.DistError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise TimeoutError(f"found no store at {address} within {timeout_s:g} s") from error
    return PrefixStore(f"lasgd/{next(_numbers)}", found), rank, world_size


def meet_in_group(group: dist.ProcessGroup, timeout_s: float) -> tuple[Any, int, int]:
    """Return the same for the members of a process group; its first member hosts the store."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    timeout = timedelta(seconds=timeout_s)
    hosted, address = None, [("", 0)]
    if rank == 0:
        named = os.environ.get("MASTER_ADDR") if dist.get_rank() == 0 else None
        host = named or socket.gethostname()
        hosted = host_store(host, timeout_s=timeout_s)
        address = [(host, hosted.port)]
    dist.broadcast_object_list(address, src=dist.get_global_rank(group, 0), group=group)
    (host, port) = address[0]
    return hosted or TCPStore(host, port, is_master=False, timeout=timeout), rank, size


def begin(control: Control, world_size: int, description: str) -> Generation:
    """Return the first generation, once all workers are there with the same model.

    Raises:
        ValueError: at every worker, if models or settings differ.
        TimeoutError: naming the workers that did not come.
    """
    control.introduce(description)
    control.note_world_size(world_size)
    require_same(control.signatures(range(world_size)))
    return control.propose(Generation(0, list(range(world_size)), fresh=list(range(1, world_size))))


def enter_later(store: Any, timeout_s: float, description: str) -> tuple[Control, Generation, int]:
    """Return what a newcomer needs, once the members have let it in: and their first number.

    Raises:
        ValueError: if its model or settings differ.
        TimeoutError: if nobody answers.
    """
    stranger = Control(store, -1, timeout_s)
    require_same({**stranger.signatures([0]), -1: description})
    world_size = stranger.world_size()
    control = Control(store, world_size + stranger.ask_to_join() - 1, timeout_s)
    return control, control.wait_to_be_admitted(), world_size


def signature(model: nn.Module, plan: Mapping[str, Any]) -> str:
    """Return what must be the same at all workers, as text."""
    tensors = {
        name: f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}{_frozen(t)}"
        for name, t in [*model.named_parameters(), *model.named_buffers()]
    }
    return json.dumps([tensors, dict(plan)])


def _frozen(tensor: Any) -> str:
    return " frozen" if isinstance(tensor, nn.Parameter) and not tensor.requires_grad else ""


def require_same(signatures: Mapping[int, str]) -> None:
    """Compare all workers with the first.

    Raises:
        ValueError: naming a worker, and the parameter or setting in which it differs.
    """
    (first, reference), *others = ((w, json.loads(s)) for w, s in signatures.items())
    for worker, other in others:
        for what, theirs, ours in zip(("model", "setting"), other, reference, strict=True):
            for name in dict.fromkeys([*ours, *theirs]):
                if ours.get(name) != theirs.get(name):
                    raise ValueError(
                        f"expected the same {what}s at all workers, but {name!r} is "
                        f"{ours.get(name, 'missing')} at worker {first} and "
                        f"{theirs.get(name, 'missing')} at {_called(worker)}"
                    )


def _called(worker: int) -> str:
    return "the newcomer" if worker < 0 else f"worker {worker}"
