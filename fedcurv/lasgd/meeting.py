"""Meeting of workers: how they find each other, and that they have the same model."""

import itertools
import json
import os
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from fedcurv.lasgd.checksum import checksum
from fedcurv.lasgd.constants import is_table
from fedcurv.lasgd.control import Control, Generation
from fedcurv.lasgd.hosting import host_store

# how an optimizer computes, not what
_MEANS = {"foreach", "fused", "capturable", "differentiable"}
# what a newcomer may have otherwise: a schedule has gone on, and the others are as many as they are
_NOT_OF_NEWCOMERS = {"lr", "initial_lr", "world_size"}

# trainings of one process, in order: workers that run the same program count alike
_numbers = itertools.count()


@dataclass(frozen=True)
class Place:
    """Where workers meet.

    Attributes:
        store: given, or None for the one that torchrun's environment names.
        rank: given with the store.
        world_size: given with the store.
        process_group: of torch.distributed, in the store's place.
        join: whether this worker enters a training that has begun.
    """

    store: Any
    rank: int | None
    world_size: int | None
    process_group: dist.ProcessGroup | None
    join: bool


def take_part(
    place: Place, timeout_s: float, signature_with: Callable[[Mapping[str, Any]], str]
) -> tuple[Control, Generation, int]:
    """Return the view of the store, the generation, and with how many workers it all began.

    Args:
        place: where to meet.
        timeout_s: for what others must do.
        signature_with: returns what must be the same at all workers, with more settings.

    Raises:
        ValueError: if there is no place, or workers differ.
        TimeoutError: if others do not come.
    """
    if place.join:
        if place.store is None:
            raise ValueError("expected the store of the training to join, got none")
        return enter_later(place.store, timeout_s, signature_with({}))
    store, rank, size = (
        meet(place.store, place.rank, place.world_size, timeout_s)
        if place.process_group is None
        else meet_in_group(place.process_group, timeout_s)
    )
    control = Control(store, rank, timeout_s)
    return control, begin(control, size, signature_with({"world_size": size})), size


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
        ValueError: if there is neither a store nor such an environment, or a rank out of range.
        TimeoutError: if nothing answers there.
        OSError: if worker 0 cannot host the store there.
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
    numbers = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    if not all(text.isdecimal() for text in numbers.values()):
        raise ValueError(f"expected whole numbers in the environment, got {numbers}")
    rank, world_size, port = map(int, numbers.values())
    if not rank < world_size:
        raise ValueError(
            f"expected RANK < WORLD_SIZE in the environment, got {rank} and {world_size}; start "
            "every worker with the same WORLD_SIZE"
        )
    found = _store_of_environment(os.environ["MASTER_ADDR"], port, rank, timeout_s)
    return PrefixStore(f"lasgd/{next(_numbers)}", found), rank, world_size


def _store_of_environment(host: str, port: int, rank: int, timeout_s: float) -> Any:
    """Return torchrun's store, or without torchrun that of worker 0, before the others are there.

    torch's own rendezvous waits for all, and cannot say for whom.
    """
    of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    hosts = rank == 0 and not of_agent
    try:
        found = TCPStore(
            host,
            port,
            is_master=hosts,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except dist.DistError as error:
        if hosts:
            raise OSError(f"worker 0 cannot host the store at {host}:{port}: {error}") from error
        raise TimeoutError(f"found no store at {host}:{port} within {timeout_s:g} s") from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"/worker/attempt_{attempt}", found) if of_agent else found


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
        ValueError: at every worker, if models, settings, optimizers or versions differ; and at this
            one, if its rank is taken.
        TimeoutError: naming the workers that did not come.
    """
    if control.arrivals() > 1:
        raise ValueError(
            f"expected a store for this training alone and each rank once, but worker "
            f"{control.worker} has begun already; give each training a PrefixStore of its own, and "
            "let a replacement in with join=True"
        )
    control.introduce(description)
    control.note_world_size(world_size)
    try:
        # each with one's own as soon as it comes: one that differs may not wait for the others
        for worker, other in control.signatures(range(world_size)):
            require_same({control.worker: description, worker: other})
    except (ValueError, TimeoutError):
        control.part(range(world_size))
        raise
    return control.propose(Generation(0, list(range(world_size)), fresh=list(range(1, world_size))))


def enter_later(store: Any, timeout_s: float, description: str) -> tuple[Control, Generation, int]:
    """Return what a newcomer needs, once the members have let it in: and their first number.

    Raises:
        ValueError: if its model or settings differ.
        TimeoutError: if nobody answers.
    """
    stranger = Control(store, -1, timeout_s)
    require_same({**dict(stranger.signatures([0])), -1: description})
    world_size = stranger.world_size()
    control = Control(store, world_size + stranger.ask_to_join() - 1, timeout_s)
    return control, control.wait_to_be_admitted(), world_size


def signature(
    model: nn.Module, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]
) -> str:
    """Return what must be the same at all workers, as text."""
    tensors = {
        name: f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}{_constant(t)}"
        for name, t in [*model.named_parameters(), *model.named_buffers()]
    }
    versions = {"torch": torch.__version__.partition("+")[0], "fedcurv": _version_of_this()}
    parts = [versions, tensors, dict(settings), _options(model, optimizer)]
    return json.dumps(dict(zip(_PARTS, parts, strict=True)))


_PARTS = ("version", "model", "setting", "optimizer")


def _version_of_this() -> str:
    try:
        return version("fedcurv")
    except PackageNotFoundError:
        return "not installed"


def _options(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, str]:
    options = {"class": type(optimizer).__name__, "groups": str(len(optimizer.param_groups))}
    names = {id(p): name for name, p in model.named_parameters()}
    for index, group in enumerate(optimizer.param_groups):
        where = f" of group {index}" if len(optimizer.param_groups) > 1 else ""
        for name, value in group.items():
            if name != "params" and name not in _MEANS:
                options[name + where] = _as_text(value)
        if where:  # a single one holds all that train
            held = (names.get(id(p), "another") for p in group["params"] if p.requires_grad)
            options["parameters" + where] = str(sorted(held))
    return options


def _as_text(value: object) -> str:
    if isinstance(value, Tensor):
        return repr(value.tolist())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(float(value))  # 0 is 0.0
    if value is None or isinstance(value, bool | str | tuple | list):
        return repr(value)
    return type(value).__name__  # the text of other things may hold addresses


def _constant(tensor: Tensor) -> str:
    if isinstance(tensor, nn.Parameter):
        return "" if tensor.requires_grad else f" frozen, with the checksum {checksum(tensor)}"
    return f", with the checksum {checksum(tensor)}" if is_table(tensor) else ""


def require_same(signatures: Mapping[int, str]) -> None:
    """Compare all workers with the first.

    A newcomer's learning rate is its own: a schedule may have gone on since the others began.

    Raises:
        ValueError: naming a worker, and the parameter, setting, option or version in which it
            differs.
    """
    in_order = sorted(signatures, key=lambda worker: (worker < 0, worker))
    (first, reference), *others = ((w, json.loads(signatures[w])) for w in in_order)
    for worker, other in others:
        for what in _PARTS:
            spared = _NOT_OF_NEWCOMERS if worker < 0 else ()
            name = differing(other[what], reference[what], spared)
            if name is not None:
                raise ValueError(
                    f"expected the same {what}s at all workers, but {name!r} is "
                    f"{reference[what].get(name, 'missing')} at worker {first} and "
                    f"{other[what].get(name, 'missing')} at {_called(worker)}"
                )
        # one flat tensor is summed
        for one, two in zip(reference["model"], other["model"], strict=True):
            if one != two:
                raise ValueError(
                    "expected the model's layers in the same order at all workers, but where "
                    f"worker {first} has {one!r} {_called(worker)} has {two!r}; make them in a "
                    "fixed order, not in that of a set"
                )


def differing(
    one: Mapping[str, Any], other: Mapping[str, Any], spared: Collection[str] = ()
) -> str | None:
    """Return the first name under which two have different values, but those that are spared."""
    names = (name for name in dict.fromkeys([*other, *one]) if name.split(" of ")[0] not in spared)
    return next((name for name in names if one.get(name) != other.get(name)), None)


def _called(worker: int) -> str:
    return "the newcomer" if worker < 0 else f"worker {worker}"
