"""The server's sums P and Q as they travel to a client, in float32 or in codes of a few bits.

In codes, P has its own and in the place of Q travels the distance d = Q/P − θ̄ from the arrays θ̄ of
the same message, for what P is not zero of. The client forms Q = P(θ̄ + d), so that an error of P
makes the pull weaker or stronger and does not move where it goes to.

Source: ours.
"""

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor

from fedcurv.curvature import Curvature, shapes_of
from fedcurv.parameters import listed
from fedcurv.strategies.wire.arrays import pack_tensors, unpack_floats, unpack_tensors
from fedcurv.strategies.wire.coded_arrays import (
    Bounds,
    is_coded,
    pack_coded,
    rounding,
    unpack_coded,
)
from fedcurv.strategies.wire.codes import EXACT_BITS

PRECISION = "fedcurv.precision"
WEIGHTED = "fedcurv.weighted-parameters"
DISTANCE = "fedcurv.distance"
STATISTICS = (PRECISION, WEIGHTED, DISTANCE)

# of a solution from the model, where neither holds a number above half of it
_FARTHEST = 2e18


@dataclass(frozen=True)
class ReceivedSums:
    """The server's sums as a client got them.

    Attributes:
        sums: P and Q.
        bounds: what the precision can have been before it was rounded; None for sums that were
            not.
    """

    sums: Curvature
    bounds: Bounds | None = None


def names_of_arrays(content: RecordDict) -> frozenset[str]:
    """Return the names of the arrays in a message or a reply, less those of this project."""
    records = (record for key, record in content.array_records.items() if key not in STATISTICS)
    return frozenset(name for record in records for name in record)


def pack_precision(
    precision: Mapping[str, Tensor], bits: int, client_id: str, server_round: int
) -> tuple[ArrayRecord, Mapping[str, Tensor]]:
    """Return the record that carries a client's precision, and what its reader makes of it.

    Args:
        precision: P_j, in float32.
        bits: of a number; with 32 it travels as it is.
        client_id: decides with the round and the names how codes are rounded.
        server_round: see there.
    """
    if bits == EXACT_BITS:
        return pack_tensors(precision), precision
    record = pack_coded(precision, "precision", bits, rounding("client", client_id, server_round))
    return record, unpack_coded(record, "precision")


def pack_sums(
    sums: Curvature, bits: int, content: RecordDict | None, server_round: int
) -> dict[str, ArrayRecord]:
    """Return the records that carry the sums.

    Args:
        sums: over all contributors, in float32.
        bits: of a number.
        content: of the message that will carry them, with the arrays that distances are from. Where
            they have other names or shapes than the sums, these stay in float32, as do those of a
            model with no tensor of 256 numbers.
        server_round: decides with the names how codes are rounded.
    """
    plain = {PRECISION: sums.precision, WEIGHTED: sums.weighted_parameters}
    centre = None if content is None or bits == EXACT_BITS else arrays_like(sums.precision, content)
    if centre is None:
        return {name: pack_tensors(tensors) for name, tensors in plain.items()}
    generator = rounding("server", server_round)
    precision = pack_coded(sums.precision, "precision", bits, generator)
    if not is_coded(precision):  # of a model that is as small as that
        return {name: pack_tensors(tensors) for name, tensors in plain.items()}
    distance = {}
    for name, coded in unpack_coded(precision, "precision").items():
        away = sums.weighted_parameters[name] / sums.precision[name] - centre[name]
        away = torch.where(coded > 0, away, 0).clamp_(-_FARTHEST, _FARTHEST)
        distance[name] = away
    return {
        PRECISION: precision,
        DISTANCE: pack_coded(distance, "distance", bits, generator),
    }


def unpack_sums(content: RecordDict, checksum: object = None) -> ReceivedSums | None:
    """Return the server's sums; None if there are none.

    Args:
        content: of the message.
        checksum: of the arrays that distances are from, as the server sent them; None where it did
            not say.

    Raises:
        ValueError: if one record is there without its other half, or is not what a server sends, or
            if the arrays that distances are from are not among the message's, or were changed.
    """
    if not any(name in content for name in STATISTICS):
        return None
    records = {name: content.array_records.get(name) for name in STATISTICS}
    precision, weighted, distance = records.values()
    if precision is not None and weighted is not None and distance is None:
        return ReceivedSums(Curvature(unpack_floats(precision), unpack_floats(weighted)))
    if precision is None or distance is None or weighted is not None:
        raise ValueError(
            f"expected the record {PRECISION!r} with either {WEIGHTED!r} or {DISTANCE!r}, got "
            f"{sorted(content.keys())}; does a mod on the way drop records?"
        )
    coded = Curvature(unpack_coded(precision, "precision"), unpack_coded(distance, "distance"))
    centre = arrays_like(coded.precision, content)
    if centre is None:
        raise ValueError(
            f"expected the model's arrays ({listed(list(coded.precision))}) in the message that "
            f"the server's sums came with, got {listed(sorted(names_of_arrays(content)))}; make "
            "the ClientCurvature before the app takes them out, or let the server send float32 by "
            "FedCurv(bits=32)"
        )
    if checksum not in (None, checksum_of_arrays(coded.precision, content)):
        raise ValueError(
            "expected the model's arrays as the server sent them, since its sums are told as "
            "distances from them, got changed ones; make the ClientCurvature before the app or a "
            "mod changes them, or let the server send float32 by FedCurv(bits=32)"
        )
    weighted_parameters = {
        name: (centre[name] + away).mul_(coded.precision[name])
        for name, away in coded.weighted_parameters.items()
    }
    return ReceivedSums(Curvature(coded.precision, weighted_parameters), Bounds(precision))


def checksum_of_arrays(named: Collection[str], content: RecordDict) -> int:
    """Return a checksum of the message's own arrays of these names, from which distances are."""
    total = 0
    for name, array in sorted(_arrays_of(named, content).items()):
        total = zlib.crc32(array.data, zlib.crc32(name.encode("utf-8", "surrogatepass"), total))
    return total


def _arrays_of(named: Collection[str], content: RecordDict) -> dict[str, Array]:
    """Return the message's own arrays of these names; none where a name comes twice."""
    found: dict[str, Array] = {}
    for key, record in content.array_records.items():
        if key in STATISTICS:
            continue
        arrays = {name: array for name, array in record.items() if name in named}
        if not found.keys().isdisjoint(arrays):  # which of them is the model's is not known
            return {}
        found |= arrays
    return found


def arrays_like(named: Mapping[str, Tensor], content: RecordDict) -> dict[str, Tensor] | None:
    """Return the message's own arrays of these names in float32; None if one is not there."""
    found = _arrays_of(named, content)
    if found.keys() != named.keys():
        return None
    tensors = unpack_tensors(ArrayRecord(found))
    fits = shapes_of(tensors) == shapes_of({name: named[name] for name in tensors})
    if not fits or not all(tensor.is_floating_point() for tensor in tensors.values()):
        return None
    return {name: tensor.float() for name, tensor in tensors.items()}
