"""A training's saved state, and its check."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedcurv.lasgd.checksum import checksum
from fedcurv.lasgd.replica import Replica

logger = logging.getLogger(__name__)

_ALWAYS = {"model", "data"}
_EXPECTED = "expected what state_dict() of LASGD has returned"


def state_of(replica: Replica, data: Mapping[str, Any] | None, worker: int) -> dict[str, Any]:
    """Return the state of a common model and of its data, and where there are any a velocity.

    And what this worker has not sent, under its id.
    """
    state = {"model": replica.anchor_by_name(), "data": data}
    if velocity := replica.common.velocity_by_name():
        state["outer"] = velocity
    if replica.coder is not None:
        state["unsent"] = {"worker": worker, "progress": replica.coder.unsent.clone()}
    return state


def load_state(replica: Replica, state: Mapping[str, Any], worker: int) -> None:
    """Set a replica to a state that has been checked.

    An outer optimizer that the state knows nothing of begins anew, and what it has of one that is
    no longer wanted is left; both are told. What another worker had not sent is that one's.

    Raises:
        ValueError: if it is of another model.
    """
    replica.load_anchor(state["model"])
    velocity = state.get("outer", {})
    replica.common.load_velocity(velocity)
    has_one = "velocity" in replica.common.in_common
    if has_one and not velocity:
        logger.warning("the saved state has no outer optimizer's velocity: it begins with none")
    unsent = state.get("unsent")
    if unsent is not None and replica.coder is not None and unsent["worker"] == worker:
        replica.coder.load(unsent["progress"])
    if velocity and not has_one:
        logger.warning("the saved state's outer velocity is left out: outer is off here")
    replica.streams.after_training_wrote()


def require_state(state: object) -> None:
    """Raise a ValueError unless it is what ``LASGD.state_dict`` has returned, for any model."""
    if not isinstance(state, Mapping) or state.keys() - {"outer", "unsent"} != _ALWAYS:
        raise ValueError(
            f"{_EXPECTED}, a dict of 'model' and 'data', got {_told(state)}; a model's own state "
            "is for the load_state_dict() of the model, before LASGD(...) is made"
        )
    for part in state.keys() & {"model", "outer"}:
        values = state[part]
        if not isinstance(values, Mapping) or not all(
            isinstance(v, Tensor) and v.is_floating_point() for v in values.values()
        ):
            raise ValueError(f"{_EXPECTED}, got under {part!r} no floating-point tensors by name")
    unsent = state.get("unsent")
    if unsent is not None and not _is_unsent(unsent):
        raise ValueError(f"{_EXPECTED}, got under 'unsent' no worker and its flat progress")
    data = state["data"]
    if data is not None and not _is_of_data(data):
        raise ValueError(
            f"{_EXPECTED}, got under 'data' no num_samples, first epoch and rests that fit together"
        )


def _is_unsent(unsent: object) -> bool:
    if not isinstance(unsent, Mapping) or unsent.keys() != {"worker", "progress"}:
        return False
    progress = unsent["progress"]
    is_flat = isinstance(progress, Tensor) and progress.is_floating_point() and progress.dim() == 1
    return _is_natural(unsent["worker"]) and is_flat


def _is_of_data(data: object) -> bool:
    if not isinstance(data, Mapping) or data.keys() != {"num_samples", "first", "rests"}:
        return False
    number, first, rests = data["num_samples"], data["first"], data["rests"]
    if not (_is_natural(number) and _is_natural(first) and isinstance(rests, Mapping)):
        return False
    return all(
        _is_natural(epoch) and epoch >= first and _is_part_of(rest, number)
        for epoch, rest in rests.items()
    )


def _is_natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_part_of(rest: object, num_samples: int) -> bool:
    """Return whether these are indices of samples, each at most once."""
    if not isinstance(rest, Tensor) or rest.dtype != torch.int64 or rest.dim() != 1:
        return False
    in_range = bool(((rest >= 0) & (rest < num_samples)).all())
    return in_range and bool((rest.bincount(minlength=1) <= 1).all())


def describe_data(data: Mapping[str, Any] | None) -> str:
    """Return a text that tells what is left of data sets apart."""
    if data is None:
        return "all"
    rests = {epoch: checksum(rest) for epoch, rest in sorted(data["rests"].items())}
    return f"{data['num_samples']} samples, from epoch {data['first']}, {rests}"


def _told(state: object) -> str:
    if not isinstance(state, Mapping):
        return f"one of class {type(state).__name__}"
    names = [repr(name)[:60] for name in state]
    return f"one of {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
