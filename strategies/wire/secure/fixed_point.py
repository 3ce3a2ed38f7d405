"""Real numbers as whole ones: multiples of a public power of two, bounded so that sums fit."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

# 2^52 is the largest sum of whole numbers that float64 still holds to the last one, with its sign
EXACT_BITS = 53
_MOST_BITS = {32: 32, 64: 63}
# above every limit, and a number of both kinds
_NO_LIMIT = 2.0**62
# of the parts of one number: the first reaches LARGEST in 42 bits, and 2^20 of those fit a word
LARGEST = 2.0**64
_PART_EXPONENTS = (-22, 20, 62)
NUM_PARTS = len(_PART_EXPONENTS)


@dataclass(frozen=True)
class Scale:
    """How numbers of one tensor travel: x as the nearest whole number to x·2^exponent.

    Attributes:
        bits: of a word, 32 or 64; sums are modulo 2^bits.
        exponent: of the power of two.
        limit: the largest magnitude of one client's whole number; larger ones are clipped.
    """

    bits: int
    exponent: int
    limit: int

    @classmethod
    def up_to(cls, largest: float, clients: int, bits: int, sum_bits: int | None = None) -> "Scale":
        """Return the finest scale on which every client's numbers may reach a bound.

        Args:
            largest: magnitude that one client's number may have, > 0 and finite.
            clients: how many are summed up.
            bits: of a word.
            sum_bits: of the sum with its sign, at most ``bits``; None for as many as a word has.
        """
        most = _MOST_BITS[bits] if sum_bits is None else min(sum_bits, _MOST_BITS[bits])
        limit = (2 ** (most - 1) - 1) // clients
        # of largest = m·2^e with m < 1: at least a half of the limit is made use of
        exponent = math.floor(math.log2(limit)) - math.frexp(largest)[1]
        return cls(bits, exponent, limit)

    @property
    def unit(self) -> float:
        """The number that 1 stands for."""
        return math.ldexp(1.0, -self.exponent)

    def whole(self, numbers: NDArray[np.floating]) -> tuple[NDArray[np.int64], int]:
        """Return numbers as whole ones, and how many were clipped.

        Args:
            numbers: finite.
        """
        scaled = np.rint(np.ldexp(numbers.astype(np.float64), self.exponent))
        whole = np.clip(scaled, -_NO_LIMIT, _NO_LIMIT).astype(np.int64)
        clipped = int(np.count_nonzero(np.abs(whole) > self.limit))
        return np.clip(whole, -self.limit, self.limit) if clipped else whole, clipped

    def signed(self, words: NDArray[np.unsignedinteger]) -> NDArray[np.int64]:
        """Return the whole numbers that words stand for."""
        signed = words.view(np.int64 if self.bits == 64 else np.int32)
        return signed.astype(np.int64, copy=False)

    def numbers(self, whole: NDArray[np.int64]) -> Numbers:
        """Return the real numbers that whole ones stand for."""
        return np.ldexp(whole.astype(np.float64), -self.exponent)


def in_parts(numbers: Numbers) -> NDArray[np.int64]:
    """Return each number as ``NUM_PARTS`` whole ones, coarse to fine, whose sums are its sums.

    Nothing need be known of where the numbers lie: they are right to 2^-63.

    Args:
        numbers: of magnitudes up to ``LARGEST``.
    """
    left, parts = numbers.astype(np.float64), []
    for exponent in _PART_EXPONENTS:
        parts.append(np.rint(np.ldexp(left, exponent)))
        left = left - np.ldexp(parts[-1], -exponent)
    return np.stack(parts, axis=-1).astype(np.int64)


def from_parts(parts: NDArray[np.int64]) -> Numbers:
    """Return the numbers that sums of ``in_parts`` stand for."""
    numbers = [
        np.ldexp(parts[..., k].astype(np.float64), -exponent)
        for k, exponent in enumerate(_PART_EXPONENTS)
    ]
    return np.asarray(sum(reversed(numbers)))
