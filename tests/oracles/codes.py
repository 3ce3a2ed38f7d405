"""Codes of few bits, one number at a time, by the list of their levels."""

import bisect
import struct


def precision_levels(bits: int) -> list[float]:
    """The levels of a block whose largest number is 1, smallest first; a code is an index."""
    if bits == 4:
        return [0.0, *(2.0**-k for k in range(14, -1, -1))]
    steps = [k / 16 for k in range(16)]
    below = [2.0**-14 * step for step in steps]
    return [*below, *(2.0**-k * (1 + step) for k in range(14, 0, -1) for step in steps), 1.0]


def distance_levels(bits: int) -> list[float]:
    most = {4: 7, 8: 127}[bits]
    return [k / most for k in range(-most - 1, most + 1)]


def neighbours(levels: list[float], share: float) -> tuple[float, float]:
    """The levels between which a number lies; twice itself where it is one."""
    index = bisect.bisect_left(levels, share)
    if levels[index] == share:
        return share, share
    return levels[index - 1], levels[index]


def variance(levels: list[float], share: float) -> float:
    """Of a rounding to either neighbour whose mean is the number."""
    low, high = neighbours(levels, share)
    return (share - low) * (high - share)


def read(data: bytes, number: int, bits: int, levels: list[float]) -> list[float]:
    """What the bytes of an array stand for: scales of its blocks of 256, then codes."""
    blocks = -(-number // 256)
    scales = struct.unpack(f"<{blocks}f", data[: 4 * blocks])
    packed = data[4 * blocks :]
    found = []
    for index in range(number):
        if bits == 8:
            code = packed[index]
        else:
            code = packed[index // 2] >> 4 if index % 2 else packed[index // 2] & 15
        found.append(scales[index // 256] * levels[code])
    assert len(packed) == -(-number * bits // 8)
    return found
