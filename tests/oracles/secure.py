"""Secure sums, from their definitions: sums in the clear, whole numbers one by one, secrets."""

import math
from fractions import Fraction


def whole(number: float, exponent: int, limit: int) -> int:
    """Return the nearest whole number to number·2^exponent, ties to even, clipped."""
    exact = Fraction(number) * Fraction(2) ** exponent
    return max(-limit, min(limit, round(exact)))


def sum_modulo(vectors: list[list[int]], bits: int) -> list[int]:
    """Return the sums of whole numbers as signed ones modulo 2^bits."""
    modulus = 2**bits
    sums = [sum(column) % modulus for column in zip(*vectors, strict=True)]
    return [s - modulus if s >= modulus // 2 else s for s in sums]


def secret_at_zero(shares: dict[int, int], prime: int) -> int:
    """Return the value at 0 of the polynomial through these points, in Lagrange's form."""
    total = 0
    for i, y in shares.items():
        weight = math.prod(j for j in shares if j != i)
        inverse = pow(math.prod(j - i for j in shares if j != i), prime - 2, prime)
        total += y * weight * inverse
    return total % prime
