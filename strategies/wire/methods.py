"""Wire format of methods with two sides: SCAFFOLD, FedDyn, FedNova.

To a client, beside Flower's own records:
    ``fedcurv.method``
        ConfigRecord: the wire's version, the method, this round, names for the federation and for
        this sending, whether there are checkpoints, the method's number if it has one, and which of
        the client's states the server's sum holds, now and in the latest checkpoint
    ``fedcurv.control``
        ArrayRecord: SCAFFOLD's control variate by parameter name; left out while it is zero
From a client, beside its own arrays and metrics:
    ``fedcurv``
        ConfigRecord: the client's id
    ``fedcurv.method``
        ConfigRecord: the wire's version, the method, the id of the message that it answers, the
        names of the parameters that it trained, how far its steps went, and the state that it began
        from

What a client remembers is never sent: the server forms the change of it from the reply's arrays.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedcurv.strategies.wire.arrays import pack_tensors, unpack_floats

METHOD, CONTROL = "fedcurv.method", "fedcurv.control"

_VERSION, _VERSION_KEY = 1, "wire-version"
_SAME = "let server and clients have the same version of fedcurv"


@dataclass(frozen=True)
class State:
    """Which of its states a client is in: after its answer to a message.

    Attributes:
        server_round: that the message belonged to.
        message_id: of the message.
    """

    server_round: int
    message_id: str


@dataclass(frozen=True)
class Told:
    """What the server tells a client for one round.

    Attributes:
        method: its name.
        server_round: the round.
        federation: a name for the training, the same over restarts of the server.
        sending: the server's name for this sending, see ``Instruction``.
        resumable: whether a later run may go on from a checkpoint.
        number: the method's own, such as FedDyn's α.
        known: the client's state that the server's sum holds; None for none.
        saved: that the sum in the latest checkpoint holds, likewise.
        control: SCAFFOLD's c; nothing while it is zero.
    """

    method: str
    server_round: int
    federation: str = ""
    sending: str = ""
    resumable: bool = False
    number: float = 0.0
    known: State | None = None
    saved: State | None = None
    control: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a client says of its training.

    Attributes:
        message_id: of the message that it answers.
        parameters: names of those that it trained, all names of tied ones.
        progress: how far its steps would have gone under gradients of 1, > 0.
        began_from: the message id of the state that it began from; empty for zero.
    """

    message_id: str
    parameters: frozenset[str]
    progress: float
    began_from: str = ""


def pack_told(told: Told) -> ConfigRecord:
    """Return the record that tells a client, without the control variate."""
    record = ConfigRecord(
        {
            _VERSION_KEY: _VERSION,
            "method": told.method,
            "server-round": told.server_round,
            "federation": told.federation,
            "sending": told.sending,
            "resumable": told.resumable,
            "number": told.number,
        }
    )
    for name, state in (("known", told.known), ("saved", told.saved)):
        if state is not None:
            record[f"{name}-round"], record[f"{name}-message"] = (
                state.server_round,
                state.message_id,
            )
    return record


def pack_control(control: Mapping[str, Tensor]) -> ArrayRecord:
    """Return the record with SCAFFOLD's control variate."""
    return pack_tensors(control)


def method_in(content: RecordDict) -> str | None:
    """Return the name of the method that the server runs; None for none of these."""
    record = content.config_records.get(METHOD)
    method = None if record is None else record.get("method")
    return method if isinstance(method, str) else None


def unpack_told(content: RecordDict, method: str) -> Told:
    """Return what the server tells.

    Raises:
        ValueError: if it is not this method's, or not what a server sends.
    """
    record = content.config_records.get(METHOD)
    if record is None or record.get("method") != method:
        raise ValueError(
            f"expected the record {METHOD!r} of the method {method!r} in the message, got "
            f"{sorted(content)}; does a mod on the way drop records?"
        )
    _require_version(record)
    control = content.array_records.get(CONTROL)
    return Told(
        method=method,
        server_round=_whole(record, "server-round"),
        federation=_of(record, "federation", str),
        sending=_of(record, "sending", str),
        resumable=_of(record, "resumable", bool),
        number=_of(record, "number", float),
        known=_state(record, "known"),
        saved=_state(record, "saved"),
        control={} if control is None else unpack_floats(control),
    )


def pack_answer(method: str, answer: Answer) -> ConfigRecord:
    """Return the record in which a client answers."""
    return ConfigRecord(
        {
            _VERSION_KEY: _VERSION,
            "method": method,
            "message-id": answer.message_id,
            "parameters": sorted(answer.parameters),
            "progress": answer.progress,
            "began-from": answer.began_from,
        }
    )


def take_answer(content: RecordDict, method: str) -> Answer:
    """Remove a method's record from a reply and return what it says.

    Raises:
        ValueError: if there is none, or it cannot be meant.
    """
    record = content.pop(METHOD, None)
    if not isinstance(record, ConfigRecord) or record.get("method") != method:
        raise ValueError(
            f"expected the record {METHOD!r} of the method {method!r} in the reply, got none; make "
            "a ClientTerm in the client's training function, and let it report"
        )
    _require_version(record)
    progress = _of(record, "progress", float)
    if not 0.0 < progress < math.inf:
        raise ValueError(f"expected steps that go a way > 0, got 'progress' = {progress!r}")
    parameters = _of(record, "parameters", list)
    if not parameters or not all(isinstance(name, str) for name in parameters):
        raise ValueError(f"expected the names of parameters, got {str(parameters)[:100]}")
    return Answer(
        message_id=_of(record, "message-id", str),
        parameters=frozenset(parameters),
        progress=progress,
        began_from=_of(record, "began-from", str),
    )


def _require_version(record: ConfigRecord) -> None:
    if (version := record.get(_VERSION_KEY)) != _VERSION:
        raise ValueError(
            f"expected the record {METHOD!r} in version {_VERSION}, got {version!r:.20}; {_SAME}"
        )


def _state(record: ConfigRecord, name: str) -> State | None:
    if f"{name}-round" not in record:
        return None
    return State(_whole(record, f"{name}-round"), _of(record, f"{name}-message", str))


def _whole(record: ConfigRecord, name: str) -> int:
    number: int = _of(record, name, int)
    if isinstance(number, bool) or number < 0:
        raise ValueError(f"expected a number of rounds for {name!r}, got {number!r}")
    return number


def _of(record: ConfigRecord, name: str, kind: type) -> Any:
    value = record.get(name)
    if not isinstance(value, kind):
        raise ValueError(
            f"expected {kind.__name__} for {name!r} in the record {METHOD!r}, got {value!r:.60}; "
            f"{_SAME}"
        )
    return value
