"""Agreement of workers after they have met: each compares with the first of them that says it."""

import json
from collections.abc import Mapping
from typing import Any

from fedcurv.lasgd.checksum import checksum
from fedcurv.lasgd.control import Control
from fedcurv.lasgd.meeting import differing
from fedcurv.lasgd.shared import Shared, end_if
from fedcurv.lasgd.state import describe_data


def difference_of_loaders(control: Control, description: Mapping[str, Any]) -> str | None:
    """Return in what a worker's loader differs from the first that was made; None for equal."""
    worker, first, own = _first_and_own(control, "loader", description)
    name = differing(own, first)
    if name is None:
        return None
    return (
        f"expected the same loader() at all workers, but {name!r} is {first[name]} at worker "
        f"{worker} and {own[name]} here"
    )


def require_same_beginning(
    shared: Shared, control: Control, data: Mapping[str, Any] | None, *, has_loaded: bool
) -> None:
    """Take the model as it is for the common one; end the training unless all have the same.

    Args:
        shared: of this worker.
        control: a view of the store that nobody waits with.
        data: what is left of the data set, of a saved state.
        has_loaded: whether it goes on from a saved state.

    Raises:
        WorkersDiffer: at every worker, if one's is another.
    """
    end_if(shared.watch.of_tensors(), shared, control)
    common = shared.replica.common
    description = {
        "checksums": {
            **shared.watch.checksums(),
            **{f"outer {n}": checksum(v) for n, v in common.velocity_by_name().items()},
        },
        "data": describe_data(data),
        "loaded": has_loaded,
    }
    worker, first, own = _first_and_own(control, "beginning", description)
    name = differing(own["checksums"], first["checksums"])
    if name is not None or own["data"] != first["data"]:
        one, other = ("after" if d["loaded"] else "without" for d in (first, own))
        what = "which samples are left" if name is None else repr(name)
        change = (
            f"expected the same model at all workers as the with block begins, but {what} differs "
            f"between worker {worker}, {one} load_state_dict(), and this one, {other} "
            "load_state_dict(); load the same state at all workers, and let none change its model "
            "alone between LASGD(...) and the with block"
        )
        end_if(change, shared, control)
    # all may have done the same since they met, such as a first step
    shared.replica.set_anchor(with_buffers=False)


def _first_and_own(
    control: Control, what: str, description: Mapping[str, Any]
) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Return who was the first, and what it and this worker say, both as they come from JSON."""
    text = json.dumps([control.worker, description])
    worker, first = json.loads(control.agree(what, text))
    return worker, first, json.loads(text)[1]
