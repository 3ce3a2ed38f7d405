"""Wire format of FedCurv: what travels beside Flower's own records.

To a client, with the model of round t:
    ``fedcurv``
        ConfigRecord: the wire's version, strength, this round, the round whose sums these are (0:
        none yet), the ids of the messages whose replies are in them (``nobody`` where none is as
        it was sent, since the sums are trimmed), whether sums must be secure, how many bits a
        number has if not 32, names for the federation and for this sending, the round whose sums
        the latest checkpoint holds, whether there are checkpoints, and a checksum of θ̄ beside d
    ``fedcurv.precision``
        ArrayRecord: P by parameter name
    ``fedcurv.weighted-parameters``
        ArrayRecord: Q by parameter name; or, where P is in codes,
    ``fedcurv.distance``
        ArrayRecord: d = Q/P − θ̄ by parameter name
From a client, beside its own arrays and metrics:
    ``fedcurv``
        ConfigRecord: the wire's version, the client's id, and of the message that it answers
    ``fedcurv.precision``
        ArrayRecord: its Fisher diagonal by parameter name
    ``fedcurv.weighted-parameters``
        ArrayRecord: F·θ̂, where sums must be secure or the reply's arrays are not named like
        parameters; else the server forms it from those arrays

P and Q are records of their own, keyed by the parameters' own names, so that no name of a user's
parameter can be mistaken for one of them. Statistics travel in float32 (version 2 of the wire) or
in codes of 4 or 8 bits (version 3). A server with ``bits=32`` sends version 2, and so it talks with
clients that know no codes; what a client answers may be of either version, whatever it was asked.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict

from fedcurv.curvature import Curvature
from fedcurv.strategies.wire.arrays import pack_tensors as pack_tensors
from fedcurv.strategies.wire.arrays import unpack_tensors as unpack_tensors
from fedcurv.strategies.wire.coded_arrays import Bounds, is_coded
from fedcurv.strategies.wire.codes import CODE_BITS, EXACT_BITS
from fedcurv.strategies.wire.identity import CONFIG as CONFIG
from fedcurv.strategies.wire.identity import client_id_of as client_id_of
from fedcurv.strategies.wire.identity import client_id_order as client_id_order
from fedcurv.strategies.wire.identity import pack_client_id as pack_client_id
from fedcurv.strategies.wire.identity import unpack_client_id as unpack_client_id
from fedcurv.strategies.wire.sums import DISTANCE as DISTANCE
from fedcurv.strategies.wire.sums import PRECISION as PRECISION
from fedcurv.strategies.wire.sums import STATISTICS, checksum_of_arrays, pack_sums, unpack_sums
from fedcurv.strategies.wire.sums import WEIGHTED as WEIGHTED

Value = TypeVar("Value")

# of the wire's format: 1 had no number, and other names; 2 has no codes
_PLAIN, _CODED = 2, 3
_VERSION, _CHECKSUM = "wire-version", "arrays-checksum"

# the key of the messages' config under which a strategy names its local term
LOCAL_TERM = "local-term"

# marks a message whose sums were taken, in the node's own copy of it
_TAKEN = "sums-taken"

# stands in the place of contributors where nobody's own terms are to be taken off the sums:
# Flower's count of bytes fails at an empty list
_NOBODY = "nobody"

# the id of the message for which a report was made
_ANSWERED = "message-id"

# the action of the query message that asks a node for its stable id
CLIENT_ID_ACTION = "client_id"
CLIENT_ID_QUERY = f"query.{CLIENT_ID_ACTION}"

# what the mod of a secure sum tells the app, in the node's own copy of a message
SECURE_PLAN = "secure-plan"

_LARGEST_FLOAT = sys.float_info.max


@dataclass(frozen=True)
class Instruction:
    """What the server tells a client for one round.

    Attributes:
        strength: λ, finite and >= 0.
        server_round: the round that the message belongs to.
        sums_round: the round whose replies ``sums`` holds; 0 while there are none.
        contributors: ids of the messages that those replies answered; none where the sums hold no
            client's own terms as it sent them, since they were trimmed.
        secure_sums: whether clients must send F·θ̂ themselves.
        federation: a name for this training, the same over restarts of the server.
        sums: P and Q over all contributors, or None.
        sending: the server's name for this sending of a round: its own, a slash, and a number.
        saved_round: the ``sums_round`` of the state that was saved last, to which the server may
            return; None where none was.
        resumable: whether a later run may go on from there: what is remembered must outlive this
            one.
        bits: of a number, in which clients shall send their statistics: 4, 8 or 32.
        bounds: what the sums' precision can have been, where it was rounded on its way.
        secure_plan: how statistics become whole numbers, which a node's own mod says.
    """

    strength: float
    server_round: int = 0
    sums_round: int = 0
    contributors: Sequence[str] = ()
    secure_sums: bool = False
    federation: str = ""
    sums: Curvature | None = None
    sending: str = ""
    saved_round: int | None = None
    resumable: bool = False
    bits: int = EXACT_BITS
    bounds: Bounds | None = None
    secure_plan: str = ""


@dataclass(frozen=True)
class Report:
    """What a client tells of its curvature, as it arrived and unchecked.

    Attributes:
        client_id: its stable id.
        message_id: of the message for which it estimated; None where it does not say.
        precision: its Fisher diagonal.
        weighted_parameters: F·θ̂, where the client sent it.
    """

    client_id: str
    message_id: str | None
    precision: ArrayRecord
    weighted_parameters: ArrayRecord | None


def pack_instruction(instruction: Instruction, content: RecordDict | None = None) -> RecordDict:
    """Return the records that carry an instruction.

    Args:
        instruction: to be carried.
        content: of the message that carries it, see ``pack_sums``; None leaves sums in float32.
    """
    bits = instruction.bits
    config = ConfigRecord(
        {
            _VERSION: _PLAIN if bits == EXACT_BITS else _CODED,
            "strength": instruction.strength,
            "server-round": instruction.server_round,
            "sums-round": instruction.sums_round,
            "secure-sums": instruction.secure_sums,
            "federation": instruction.federation,
            "sending": instruction.sending,
            "resumable": instruction.resumable,
        }
    )
    if instruction.saved_round is not None:
        config["saved-round"] = instruction.saved_round
    if bits != EXACT_BITS:
        config["bits"] = bits
    records = RecordDict({CONFIG: config})
    if instruction.sums is not None:
        config["contributors"] = list(instruction.contributors) or [_NOBODY]
        records.update(pack_sums(instruction.sums, bits, content, instruction.server_round))
        if DISTANCE in records and content is not None:
            config[_CHECKSUM] = checksum_of_arrays(instruction.sums.precision, content)
    return records


def unpack_instruction(content: RecordDict) -> Instruction | None:
    """Return the server's instruction, or None where the server is no FedCurv server.

    Raises:
        ValueError: if the records contradict each other, or one is not what a server sends.
    """
    config = content.config_records.get(CONFIG)
    if config is None or "strength" not in config:
        return None
    if (version := config.get(_VERSION, 1)) not in (_PLAIN, _CODED):
        raise ValueError(
            f"expected FedCurv's records in version {_PLAIN} or {_CODED} of the wire, got "
            f"{version!r:.20}; let server and clients have the same version of fedcurv"
        )
    if _TAKEN in config:
        raise ValueError(
            "expected a message whose sums nobody has taken yet; make one ClientCurvature for each "
            "training message, and keep it"
        )
    received = unpack_sums(content, config.get(_CHECKSUM))
    contributors: Sequence[str] = ()
    if received is not None:
        contributors = _told(config, "contributors", list)
        if not all(isinstance(name, str) for name in contributors):
            raise ValueError(f"expected contributors by name, got {contributors[:3]!r}")
        contributors = [name for name in contributors if name != _NOBODY]
    bits = config.get("bits", EXACT_BITS)
    if bits not in (*CODE_BITS, EXACT_BITS):
        raise ValueError(
            f"expected 4, 8 or 32 bits for a number, got {bits!r:.20}; let server and clients have "
            "the same version of fedcurv"
        )
    strength = config["strength"]
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        raise ValueError(f"expected a number for 'strength', got {strength!r}")
    if not 0.0 <= strength <= _LARGEST_FLOAT:
        raise ValueError(f"expected a finite strength >= 0, got {strength!r}")
    saved_round = _told_round(config, "saved-round") if "saved-round" in config else None
    return Instruction(
        strength=float(strength),
        server_round=_told_round(config, "server-round"),
        sums_round=_told_round(config, "sums-round"),
        contributors=contributors,
        secure_sums=_told(config, "secure-sums", bool),
        federation=_told(config, "federation", str),
        sums=None if received is None else received.sums,
        sending=_told(config, "sending", str),
        saved_round=saved_round,
        resumable=_told(config, "resumable", bool),
        bits=int(bits),
        bounds=None if received is None else received.bounds,
        secure_plan=str(config.get(SECURE_PLAN, "")),
    )


def _told(config: ConfigRecord, name: str, kind: type[Value]) -> Value:
    value = config.get(name)
    if not isinstance(value, kind):
        raise ValueError(
            f"expected {kind.__name__} for {name!r} in the record {CONFIG!r}, got {value!r}; do "
            "server and client have the same version of fedcurv?"
        )
    return value


def _told_round(config: ConfigRecord, name: str) -> int:
    number = _told(config, name, int)
    if isinstance(number, bool) or number < 0:
        raise ValueError(f"expected a number of rounds for {name!r}, got {number!r}")
    return number


def rounds_told_of(content: RecordDict) -> tuple[int, frozenset[int]] | None:
    """Return an instruction's round, and those whose contributions the server may still send.

    None where it is no instruction, or says neither.
    """
    config = content.config_records.get(CONFIG, ConfigRecord())
    told = [config.get(f"{name}-round") for name in ("server", "sums", "saved")]
    first, *others = (number if type(number) is int else None for number in told)
    if first is None or others[0] is None:
        return None
    return first, frozenset(number for number in others if number is not None)


def take_instruction(content: RecordDict) -> Instruction | None:
    """Return the server's instruction as ``unpack_instruction`` does, and let go of its sums.

    They weigh two models, for as long as somebody holds the message.

    Raises:
        ValueError: also if they were taken before.
    """
    instruction = unpack_instruction(content)
    if instruction is not None and instruction.sums is not None:
        for name in STATISTICS:
            content.pop(name, None)
        content.config_records[CONFIG][_TAKEN] = True
    return instruction


def add_report(
    content: RecordDict,
    context: Context,
    precision: ArrayRecord,
    weighted: ArrayRecord | None,
    *,
    message_id: str,
) -> None:
    """Add a node's own curvature to its reply to a message, P alone or P and Q."""
    content[CONFIG] = pack_client_id(context)
    content.config_records[CONFIG][_ANSWERED] = message_id
    content.config_records[CONFIG][_VERSION] = _CODED if is_coded(precision) else _PLAIN
    content[PRECISION] = precision
    if weighted is not None:
        content[WEIGHTED] = weighted


def config_of_sums() -> ConfigRecord:
    """Return what stands beside sums of reports that the server has formed without seeing them."""
    return ConfigRecord({_VERSION: _PLAIN})


def take_report(content: RecordDict) -> Report | None:
    """Remove this project's records from a reply and return them; None if it has none.

    Raises:
        ValueError: for statistics of another version of the wire.
    """
    client_id = unpack_client_id(content)
    config = content.pop(CONFIG, None)
    answered = config.get(_ANSWERED) if isinstance(config, ConfigRecord) else None
    precision = content.pop(PRECISION, None)
    weighted = content.pop(WEIGHTED, None)
    if not isinstance(precision, ArrayRecord):
        return None
    version = config.get(_VERSION, 1) if isinstance(config, ConfigRecord) else 1
    if version not in (_PLAIN, _CODED):
        raise ValueError(
            f"expected statistics in version {_PLAIN} or {_CODED} of the wire, got "
            f"{version!r:.20}; install the server's version of fedcurv on the client"
        )
    return Report(
        client_id=client_id or "",
        message_id=answered if isinstance(answered, str) else None,
        precision=precision,
        weighted_parameters=weighted if isinstance(weighted, ArrayRecord) else None,
    )
