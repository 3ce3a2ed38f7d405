"""Checks of LASGD's arguments."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import Store  # type: ignore[attr-defined]

from fedcurv.errors import told
from fedcurv.lasgd.coding import Compression
from fedcurv.lasgd.outer import faults_of
from fedcurv.lasgd.plane import Backend
from fedcurv.lasgd.weights import Weights
from fedcurv.parameters import listed

Averaging = Literal["average", "local"]

# thirty years; torch's clocks end at some hundred
_LONGEST_S = 1e9


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise a ValueError that names every argument of LASGD that cannot be.

    Args:
        arguments: all of them, by name.
    """
    faults = [
        f"{name} must be {wanted}, got {told(arguments[name])}"
        for name, (holds, wanted) in _RULES.items()
        if not holds(arguments[name])
    ]
    for name, wanted in _superfluous(arguments).items():
        if arguments[name] is not None:
            faults.append(f"{name} must be left out {wanted}, got {told(arguments[name])}")
    faults += faults_of(arguments["outer"], arguments["outer_lr"], arguments["outer_momentum"])
    if faults:
        raise ValueError("; ".join(faults))


def _superfluous(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return what has no meaning beside the other arguments, and why."""
    if arguments["join"] is True:
        why = "with join=True, which takes the training's store and no more"
        return dict.fromkeys(("rank", "world_size", "process_group"), why)
    if arguments["store"] is not None:
        return {"process_group": "where a store is given"}
    why = "without a store, as torchrun's environment and a process group have their own"
    return dict.fromkeys(("rank", "world_size"), why)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_time(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value <= _LONGEST_S  # type: ignore[operator]


def _is_one_of(kind: Any) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and value in get_args(kind)


def _is_a(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind)


def _calls_hooks(optimizer: object) -> bool:
    # which torch's own constructor makes
    return hasattr(optimizer, "_optimizer_step_pre_hooks") and hasattr(optimizer, "param_groups")


def _or_none(holds: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or holds(value)


_RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "model": (_is_a(nn.Module), "a torch.nn.Module"),
    "optimizer": (_calls_hooks, "a torch.optim.Optimizer, whose steps call hooks"),
    "sync_every": (lambda v: _is_count(v, 1), "an integer >= 1"),
    "overlap": (_is_a(bool), "True or False"),
    "weights": (_is_one_of(Weights), "gradient, steps or worker"),
    "momentum": (_is_one_of(Averaging), "average or local"),
    "buffers": (_is_one_of(Averaging), "average or local"),
    "compression": (_or_none(_is_one_of(Compression)), "int8, int4 or None"),
    "max_in_flight": (lambda v: _is_count(v, 1), "an integer >= 1"),
    "timeout_s": (_is_time, f"a number > 0 and <= {_LONGEST_S:g}"),
    "store": (_or_none(_is_a(Store)), "a torch.distributed.Store"),
    "rank": (_or_none(lambda v: _is_count(v, 0)), "an integer >= 0"),
    "world_size": (_or_none(lambda v: _is_count(v, 1)), "an integer >= 1"),
    "process_group": (
        _or_none(_is_a(dist.ProcessGroup)),
        "a torch.distributed.ProcessGroup that this process is in",
    ),
    "join": (_is_a(bool), "True or False"),
    "backend": (_is_one_of(Backend), "gloo or nccl"),
}


def require_all(named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Raise a ValueError unless an optimizer holds these parameters, and no others that train.

    They must be real as well: sums are.
    """
    if unreal := [name for name, parameter in named.items() if parameter.is_complex()]:
        raise ValueError(
            f"expected real parameters, got complex {listed(unreal)}; keep real and imaginary part "
            "as two real parameters, or freeze them"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    missing = [name for name, parameter in named.items() if id(parameter) not in held]
    foreign = len(held - {id(parameter) for parameter in named.values()})
    if missing or foreign:
        raise ValueError(
            "expected an optimizer over the model's trainable parameters, got one without "
            f"{listed(missing) or 'none of them'} and with {foreign} that are not the model's; "
            "build it from model.parameters()"
        )


def require_device(device: torch.device, backend: str) -> None:
    """Raise a ValueError for a model that a backend cannot sum."""
    if backend == "nccl" and device.type != "cuda":
        raise ValueError(
            f"backend nccl must have a model on a GPU, got one on {device}; take gloo, or move "
            "the model before its optimizer is made"
        )
