"""Every place where this project touches what Flower does not promise to keep."""

import functools
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as PackedRecords
from flwr.serverapp.strategy import dp_adaptive_clipping
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "CLIENT_APP_RAISED_EXCEPTION",
    "MOD_FAILED_PRECONDITION",
    "NORM_BIT",
    "Run",
    "empty_run",
    "let_unmoved_models_be_clipped",
    "packed_records",
    "set_message_id",
    "task_identity",
    "unpacked_records",
    "who_called",
]

CLIENT_APP_RAISED_EXCEPTION: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
MOD_FAILED_PRECONDITION: int = ErrorCode.MOD_FAILED_PRECONDITION
_ADAPTIVE: Any = dp_adaptive_clipping
# what adaptive clipping at the clients counts, among a reply's metrics
NORM_BIT: str = _ADAPTIVE.KEY_NORM_BIT
# the module with Flower's clipping, which moves
_CLIPPING: Any = sys.modules[_ADAPTIVE.adaptive_clip_inputs_inplace.__module__]


@contextmanager
def task_identity(*, run_id: int, node_id: int) -> Iterator[None]:
    """Let this process make instruction messages, as only Flower's own engines do."""
    before = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = 0, run_id, node_id
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message the id that Flower's own grids assign when they send it."""
    message.metadata.__dict__["_message_id"] = message_id


def empty_run(run_id: int) -> Run:
    """Return the description of a run that no SuperLink knows."""
    return Run.create_empty(run_id)


def who_called(method: str, kinds: tuple[type, ...]) -> Any:
    """Return the object of one of these kinds whose method of this name is being carried out.

    Flower's wrappers do not tell a strategy that they wrap it, neither when they are made nor in
    what they hand on; the calls that lead here do.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == method:
            caller = frame.f_locals.get("self")
            if isinstance(caller, kinds):
                return caller
        frame = frame.f_back
    return None


def let_unmoved_models_be_clipped() -> None:
    """Let Flower's clipping take an update of 0, in this process from now on.

    It divides by the update's norm, so that one client whose training changes nothing ends a
    training with differential privacy. All other updates are clipped as before.
    """
    flowers = _CLIPPING.get_norm
    if hasattr(flowers, "__wrapped__"):
        return

    @functools.wraps(flowers)
    def norm_above_zero(input_arrays: list[Any]) -> float:
        if (norm := float(flowers(input_arrays))) > 0.0:
            return norm
        # squares of small numbers are 0 before the numbers are
        wide = [np.asarray(array, np.float64) for array in input_arrays]
        return float(flowers(wide)) or sys.float_info.min

    _CLIPPING.get_norm = norm_above_zero


def packed_records(records: RecordDict) -> bytes:
    """Return records of any kind as bytes, as Flower sends them."""
    packed: bytes = recorddict_to_proto(records).SerializeToString()
    return packed


def unpacked_records(packed: bytes) -> RecordDict:
    """Return the records that were packed."""
    return recorddict_from_proto(PackedRecords.FromString(packed))
