"""Arrays in 4 or 8 bits a number: what ``codes`` makes of tensors, in Flower's arrays.

An array keeps its shape and its name. Its bytes are the scales of its blocks of 256 numbers, in
float32, then its codes, two to a byte where they have 4 bits; both little-endian. What they mean
stands in the array's ``stype``: ``fedcurv.precision-4``, ``fedcurv.distance-8`` and so on. NumPy
cannot read it, and a mod that takes it for a model's array is told so by Flower.

A tensor of fewer than 256 numbers stays as it is, in NumPy's format: its bytes do not count.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

from fedcurv.curvature import extremes
from fedcurv.parameters import listed
from fedcurv.strategies.wire import codes
from fedcurv.strategies.wire.arrays import pack_tensors, reason_of, unpack_floats

# begins the format of arrays with codes
_OURS = "fedcurv."

Kind = Literal["precision", "distance"]

Decode = Callable[[Tensor, Tensor, int], Tensor]

_ENCODE = {"precision": codes.encode_precision, "distance": codes.encode_distance}
_DECODE: Mapping[str, Decode] = {
    "precision": codes.decode_precision,
    "distance": codes.decode_distance,
}

# tensors of fewer stay as they are
_FEWEST_NUMBERS = codes.BLOCK

# small tensors are coded together, as each operation costs more than its numbers
_NUMBERS_AT_ONCE = 2**16


def rounding(*who: object) -> torch.Generator:
    """Return what rounds at random for one sender and round, the same in every run.

    Args:
        who: is sent what: the sender, the round.
    """
    text = "/".join(map(str, who))
    seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return torch.Generator().manual_seed(seed % 2**63)


def pack_coded(
    tensors: Mapping[str, Tensor], kind: Kind, bits: int, generator: torch.Generator
) -> ArrayRecord:
    """Return the tensors as one record, in codes but for small ones.

    Args:
        tensors: floating-point numbers; of the kind ``precision`` none is negative.
        kind: what they are, which decides the levels.
        bits: of a code, 4 or 8.
        generator: of the rounding.
    """
    arrays: dict[str, Array] = {}
    # in an order of their own: on its way a record may change the order of its arrays
    numbers = {name: tensors[name].numel() for name in sorted(tensors)}
    plain = {name: tensors[name].float() for name, n in numbers.items() if n < _FEWEST_NUMBERS}
    for spans in _groups({name: n for name, n in numbers.items() if name not in plain}):
        blocks = _blocks(tensors, spans)
        scales, packed = (part.cpu().numpy() for part in _ENCODE[kind](blocks, bits, generator))
        for span in spans:
            data = scales[span.rows].astype("<f4").tobytes()
            data += packed[span.rows].tobytes()[: _bytes_of_codes(span.number, bits)]
            shape = tuple(tensors[span.name].shape)
            arrays[span.name] = Array("float32", shape, f"{_OURS}{kind}-{bits}", data)
    arrays |= pack_tensors(plain)
    return ArrayRecord({name: arrays[name] for name in tensors})


def unpack_coded(record: ArrayRecord, kind: Kind) -> dict[str, Tensor]:
    """Return the tensors of a record whose arrays are coded or not.

    Raises:
        ValueError: with the array's name, if it is neither of this kind nor of floating-point
            numbers, or not the one that it says it is.
    """
    return _unpacked(record, kind, _DECODE[kind])


class Bounds:
    """What each number of a coded precision can have been before it was rounded, by name.

    Formed when it is asked for: a client without own terms in the sums needs none.

    Args:
        record: that ``unpack_coded`` can read.
    """

    def __init__(self, record: ArrayRecord) -> None:
        self._record = record

    @cached_property
    def least(self) -> Mapping[str, Tensor]:
        """What it was at least; see ``codes``."""
        return _unpacked(self._record, "precision", codes.least_before_coding)

    @cached_property
    def most(self) -> Mapping[str, Tensor]:
        """What it was at most."""
        return _unpacked(self._record, "precision", codes.most_before_coding)


def is_coded(record: ArrayRecord) -> bool:
    """Return whether one of the arrays has codes of this project."""
    return any(array.stype.startswith(_OURS) for array in record.values())


def _unpacked(record: ArrayRecord, kind: Kind, decode: Decode) -> dict[str, Tensor]:
    if not is_coded(record):
        return unpack_floats(record)
    coded = {name: array for name, array in record.items() if array.stype.startswith(_OURS)}
    found = unpack_floats(ArrayRecord({n: a for n, a in record.items() if n not in coded}))
    read = {name: _read(name, array, kind) for name, array in coded.items()}
    for bits in codes.CODE_BITS:
        for spans in _groups({name: one.number for name, one in read.items() if one.bits == bits}):
            scales = np.empty(spans[-1].rows.stop, np.float32)
            packed = np.zeros((len(scales), codes.BLOCK * bits // 8), np.uint8)
            for span in spans:
                one = read[span.name]
                scales[span.rows] = one.scales
                packed[span.rows].reshape(-1)[: len(one.codes)] = one.codes
            numbers = decode(torch.from_numpy(scales), torch.from_numpy(packed), bits)
            for span in spans:
                own = numbers[span.rows].view(-1)[: span.number]
                found[span.name] = own.view(read[span.name].shape)
    return {name: found[name] for name in record}


@dataclass(frozen=True)
class _Coded:
    """What an array holds: its scales in float32, and its codes in bytes."""

    shape: tuple[int, ...]
    number: int
    bits: int
    scales: NDArray[np.float32]
    codes: NDArray[np.uint8]


def _read(name: str, array: Array, kind: Kind) -> _Coded:
    """Return what the array holds, once it is known to be of the size that it tells."""
    try:
        return _parts(array, kind)
    except Exception as error:  # the bytes are a stranger's
        raise ValueError(f"array {name!r} cannot be read: {reason_of(error)}") from error


def _parts(array: Array, kind: Kind) -> _Coded:
    of_kind = {f"{_OURS}{kind}-{bits}": bits for bits in codes.CODE_BITS}
    if (bits := of_kind.get(array.stype)) is None:
        raise ValueError(
            f"expected one of the formats {listed(list(of_kind))}, got {array.stype!r}"
        )
    if array.dtype != "float32":
        raise ValueError(f"expected codes for float32, got {array.dtype!r:.40}")
    shape = tuple(array.shape)
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"expected a shape of sizes >= 0, got {shape!r:.80}")
    number = math.prod(shape)
    begin = 4 * _blocks_of(number)
    expected = begin + _bytes_of_codes(number, bits)
    if len(array.data) != expected:
        raise ValueError(
            f"expected {expected} bytes for the shape {shape} in {bits} bits, got {len(array.data)}"
        )
    scales = np.frombuffer(array.data, "<f4", begin // 4).astype(np.float32)
    least, most = extremes(torch.from_numpy(scales))
    if not 0.0 <= least <= most < math.inf:
        raise ValueError(f"expected scales that are finite and >= 0, got {least:.3g} to {most:.3g}")
    return _Coded(shape, number, bits, scales, np.frombuffer(array.data, np.uint8, offset=begin))


def _blocks_of(number: int) -> int:
    return -(-number // codes.BLOCK)


def _bytes_of_codes(number: int, bits: int) -> int:
    return -(-number * bits // 8)


@dataclass(frozen=True)
class _Span:
    """Where a tensor's numbers lie among the blocks of several."""

    name: str
    number: int
    rows: slice


def _groups(numbers: Mapping[str, int]) -> Iterator[list[_Span]]:
    """Yield spans of tensors that are coded together; a large one is by itself."""
    group: list[_Span] = []
    size = begin = 0
    for name, number in numbers.items():
        if group and size + number > _NUMBERS_AT_ONCE:
            yield group
            group, size, begin = [], 0, 0
        end = begin + _blocks_of(number)
        group.append(_Span(name, number, slice(begin, end)))
        size, begin = size + number, end
    if group:
        yield group


def _blocks(tensors: Mapping[str, Tensor], spans: list[_Span]) -> Tensor:
    """Return the tensors' numbers in blocks, each tensor's last filled up with zeros."""
    blocks = torch.zeros(spans[-1].rows.stop, codes.BLOCK, device=tensors[spans[0].name].device)
    for span in spans:
        place = blocks[span.rows].view(-1)[: span.number]
        place.copy_(tensors[span.name].detach().reshape(-1))
    return blocks
