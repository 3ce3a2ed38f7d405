"""What LASGD's arguments may be."""

import math
from typing import Literal, get_args

import torch
from torch import nn

from fedcurv.lasgd.plane import Backend
from fedcurv.lasgd.weights import Weights
from fedcurv.parameters import listed

Averaging = Literal["average", "local"]


def check_arguments(
    sync_every: int,
    weights: str,
    momentum: str,
    buffers: str,
    max_in_flight: int,
    timeout_s: float,
    backend: str,
) -> None:
    """Raise a ValueError that names every argument of LASGD that is out of range."""
    rules = [
        ("sync_every", sync_every, _is_count(sync_every), "an integer >= 1"),
        ("max_in_flight", max_in_flight, _is_count(max_in_flight), "an integer >= 1"),
        ("weights", weights, weights in get_args(Weights), "gradient, steps or worker"),
        ("momentum", momentum, momentum in get_args(Averaging), "average or local"),
        ("buffers", buffers, buffers in get_args(Averaging), "average or local"),
        ("backend", backend, backend in get_args(Backend), "gloo or nccl"),
        ("timeout_s", timeout_s, 0 < timeout_s < math.inf, "> 0 and finite"),
    ]
    faults = [f"{name} must be {want}, got {value!r}" for name, value, ok, want in rules if not ok]
    if faults:
        raise ValueError("; ".join(faults))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 1


def require_all(named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Raise a ValueError unless an optimizer holds these parameters, and no others that train."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    missing = [name for name, parameter in named.items() if id(parameter) not in held]
    foreign = len(held - {id(parameter) for parameter in named.values()})
    if missing or foreign:
        raise ValueError(
            "expected an optimizer over the model's trainable parameters, got one without "
            f"{listed(missing) or 'none of them'} and with {foreign} that are not the model's; "
            "build it from model.parameters()"
        )


def require_begun(has_begun: bool) -> None:
    """Raise a RuntimeError for a wait that nothing would end."""
    if not has_begun:
        raise RuntimeError(
            "expected it inside of the with block of LASGD, got it before; write the training loop "
            "into `with LASGD(...) as lasgd:`"
        )
