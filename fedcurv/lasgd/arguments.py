"""What LASGD's arguments may be."""

import math
from typing import Literal, get_args

from fedcurv.lasgd.plane import Backend
from fedcurv.lasgd.weights import Weights

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
