"""What travels between server and clients beside Flower's own records.

To a client, with the model of round t:
    ``fedcurv``              ConfigRecord: strength, this round, the round whose sums these are (0:
                             none yet), the ids of the messages whose replies are in them,
                             whether sums must be secure, and the federation's name
    ``fedcurv.precision``    ArrayRecord: P by parameter name
    ``fedcurv.information``  ArrayRecord: Q by parameter name
From a client, beside its own arrays and metrics:
    ``fedcurv``              ConfigRecord: the client's id, and of the message that it answers
    ``fedcurv.precision``    ArrayRecord: its Fisher diagonal by parameter name
    ``fedcurv.information``  ArrayRecord: F·θ̂, where sums must be secure or the reply's arrays are
                             not named like parameters; else the server forms it from those arrays

P and Q are records of their own, keyed by the parameters' own names, so that no name of a user's
parameter can be mistaken for one of them. Statistics travel in float32.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fedcurv.curvature import Curvature

CONFIG = "fedcurv"
PRECISION = "fedcurv.precision"
INFORMATION = "fedcurv.information"

# marks a message whose sums were taken, in the node's own copy of it
_TAKEN = "sums-taken"

# the id of the message for which a report was made
_ANSWERED = "message-id"

# how Flower packs arrays: in NumPy's file format, whose first version has all plain arrays
_NUMPY_FORMAT = "numpy.ndarray"
_MAGIC = np.lib.format.magic(1, 0)

# the action of the query message that asks a node for its stable id
CLIENT_ID_ACTION = "client_id"
CLIENT_ID_QUERY = f"query.{CLIENT_ID_ACTION}"


@dataclass(frozen=True)
class Instruction:
    """What the server tells a client for one round.

    Attributes:
        strength: λ, finite and >= 0.
        server_round: the round that the message belongs to.
        sums_round: the round whose replies ``sums`` holds; 0 while there are none.
        contributors: ids of the messages that those replies answered.
        secure_sums: whether clients must send F·θ̂ themselves.
        federation: a name for this training, the same over restarts of the server.
        sums: P and Q over all contributors, or None.
    """

    strength: float
    server_round: int = 0
    sums_round: int = 0
    contributors: Sequence[str] = ()
    secure_sums: bool = False
    federation: str = ""
    sums: Curvature | None = None


@dataclass(frozen=True)
class Report:
    """What a client tells of its curvature, as it arrived and unchecked.

    Attributes:
        client_id: its stable id.
        message_id: of the message for which it estimated; None where it does not say.
        precision: its Fisher diagonal.
        information: F·θ̂, where the client sent it.
    """

    client_id: str
    message_id: str | None
    precision: ArrayRecord
    information: ArrayRecord | None


def client_id_of(context: Context) -> str:
    """Return the node's name that outlasts runs and restarts, if its owner gave it one.

    That is ``client-id`` of the node's configuration, else ``partition-id``, which Flower's
    simulations set and deployments usually do, else Flower's own node id, which is new at each
    start of a node that does not authenticate itself.
    """
    for key in ("client-id", "partition-id"):
        if key in context.node_config:
            return str(context.node_config[key])
    return f"node-{context.node_id}"


def client_id_order(client_id: str) -> tuple[int, int, str]:
    """Return a sort key: numbers first and by value, then names."""
    is_number = client_id.isdecimal()
    return (0, int(client_id), "") if is_number else (1, 0, client_id)


def pack_client_id(context: Context) -> ConfigRecord:
    """Return the record in which a node tells its id."""
    return ConfigRecord({"client-id": client_id_of(context)})


def unpack_client_id(content: RecordDict) -> str | None:
    """Return the id that a node told, or None."""
    record = content.config_records.get(CONFIG)
    client_id = record.get("client-id") if record is not None else None
    return client_id if isinstance(client_id, str) else None


def pack_instruction(instruction: Instruction) -> RecordDict:
    """Return the records that carry an instruction."""
    config = ConfigRecord(
        {
            "strength": instruction.strength,
            "server-round": instruction.server_round,
            "sums-round": instruction.sums_round,
            "secure-sums": instruction.secure_sums,
            "federation": instruction.federation,
        }
    )
    records = RecordDict({CONFIG: config})
    if instruction.sums is not None:
        config["contributors"] = list(instruction.contributors)
        records[PRECISION] = pack_tensors(instruction.sums.precision)
        records[INFORMATION] = pack_tensors(instruction.sums.information)
    return records


def unpack_instruction(content: RecordDict) -> Instruction | None:
    """Return the server's instruction, or None where the server is no FedCurv server.

    Raises:
        ValueError: if the records contradict each other.
    """
    config = content.config_records.get(CONFIG)
    if config is None or "strength" not in config:
        return None
    if _TAKEN in config:
        raise ValueError(
            "expected a message whose sums nobody has taken yet; make one ClientCurvature for each "
            "training message, and keep it"
        )
    sums = None
    contributors: Sequence[str] = ()
    if PRECISION in content.array_records:
        if INFORMATION not in content.array_records or "contributors" not in config:
            raise ValueError(
                f"expected the records {PRECISION!r}, {INFORMATION!r} and the list of contributors "
                f"together, got {sorted(content.keys())}; does a mod on the way drop records?"
            )
        contributors = [str(i) for i in config["contributors"]]  # type: ignore[union-attr]
        sums = Curvature(
            unpack_tensors(content.array_records[PRECISION]),
            unpack_tensors(content.array_records[INFORMATION]),
        )
    return Instruction(
        strength=float(config["strength"]),  # type: ignore[arg-type]
        server_round=int(config["server-round"]),  # type: ignore[arg-type]
        sums_round=int(config["sums-round"]),  # type: ignore[arg-type]
        contributors=contributors,
        secure_sums=bool(config["secure-sums"]),
        federation=str(config["federation"]),
        sums=sums,
    )


def take_instruction(content: RecordDict) -> Instruction | None:
    """Return the server's instruction as ``unpack_instruction`` does, and let go of its sums.

    They weigh two models, for as long as somebody holds the message.

    Raises:
        ValueError: also if they were taken before.
    """
    instruction = unpack_instruction(content)
    if instruction is not None and instruction.sums is not None:
        del content[PRECISION], content[INFORMATION]
        content.config_records[CONFIG][_TAKEN] = True
    return instruction


def add_report(
    content: RecordDict,
    context: Context,
    curvature: Curvature,
    *,
    message_id: str,
    with_information: bool,
) -> None:
    """Add a node's own curvature to its reply to a message, P alone or P and Q."""
    content[CONFIG] = pack_client_id(context)
    content.config_records[CONFIG][_ANSWERED] = message_id
    content[PRECISION] = pack_tensors(curvature.precision)
    if with_information:
        content[INFORMATION] = pack_tensors(curvature.information)


def take_report(content: RecordDict) -> Report | None:
    """Remove this project's records from a reply and return them; None if it has none."""
    client_id = unpack_client_id(content)
    config = content.pop(CONFIG, None)
    answered = config.get(_ANSWERED) if isinstance(config, ConfigRecord) else None
    precision = content.pop(PRECISION, None)
    information = content.pop(INFORMATION, None)
    if not isinstance(precision, ArrayRecord):
        return None
    return Report(
        client_id=client_id or "",
        message_id=answered if isinstance(answered, str) else None,
        precision=precision,
        information=information if isinstance(information, ArrayRecord) else None,
    )


def pack_tensors(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return the tensors as one record, in float32 unless they are of a wider type."""
    return ArrayRecord({name: Array(_for_numpy(tensor)) for name, tensor in tensors.items()})


def unpack_tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """Return the record's arrays as tensors that share its memory: read them, do not write.

    Raises:
        ValueError: if an array cannot be read as numbers; pickles are never loaded.
    """
    with warnings.catch_warnings():
        # they are not written to, so that torch needs not warn of it
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {name: torch.from_numpy(read_array(name, array)) for name, array in record.items()}


def read_array(name: str, array: Array) -> NDArray[Any]:
    """Return an array's numbers without a copy.

    Raises:
        ValueError: if it is no array of numbers, or not the one that it says it is.
    """
    try:
        values = _view(array)
    except (ValueError, TypeError, EOFError, OSError, SyntaxError) as error:
        raise ValueError(f"array {name!r} cannot be read: {error}") from error
    if tuple(values.shape) != tuple(array.shape):
        raise ValueError(
            f"array {name!r}: expected the shape {tuple(array.shape)} that it is said to have, got "
            f"{values.shape}"
        )
    return values


def _view(array: Array) -> NDArray[Any]:
    """Return what NumPy's own file format holds, as a view of the bytes."""
    if array.stype != _NUMPY_FORMAT:
        raise ValueError(f"expected the format {_NUMPY_FORMAT!r}, got {array.stype!r}")
    shape, is_fortran_order, dtype, begin = _header(array.data[: _header_length(array.data)])
    number = math.prod(shape)
    values = np.frombuffer(array.data, dtype, number, begin) if number else np.empty(0, dtype)
    values = values.reshape(shape, order="F" if is_fortran_order else "C")
    return values.astype(dtype.newbyteorder("="), copy=False)


def _header_length(data: bytes) -> int:
    """Return where the numbers begin in NumPy's own file format, version 1."""
    if data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it does not begin as a plain array does")
    return len(_MAGIC) + 2 + int.from_bytes(data[len(_MAGIC) : len(_MAGIC) + 2], "little")


@lru_cache(maxsize=4096)  # all clients' arrays have the same few headers, which are slow to read
def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    file = BytesIO(data)
    np.lib.format.read_magic(file)
    shape, is_fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.kind not in "fiub":
        raise ValueError(f"expected numbers, got dtype {dtype}")
    return shape, is_fortran_order, dtype, file.tell()


def _for_numpy(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    numbers: NDArray[Any] = tensor.numpy()
    return numbers
