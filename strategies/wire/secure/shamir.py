"""Shamir's shares of a secret: any ``threshold`` of them give it, fewer say nothing of it.

A secret s is the value at 0 of a polynomial of degree threshold − 1 over the integers modulo the
prime 2^521 − 1, whose other coefficients are drawn at random; a share is its value at one point.

Source: Shamir, "How to share a secret", 1979.
"""

import secrets
from collections.abc import Iterable, Mapping

PRIME = 2**521 - 1
SECRET_BYTES, SHARE_BYTES = 32, 66


def split(secret: bytes, points: Iterable[int], threshold: int) -> dict[int, bytes]:
    """Return a share for each point.

    Args:
        secret: 32 bytes.
        points: of the holders, different numbers >= 1.
        threshold: how many shares give the secret back, >= 1 and at most as many as points.

    Raises:
        ValueError: for what is out of range.
    """
    holders = list(points)
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"expected a secret of {SECRET_BYTES} bytes, got {len(secret)}")
    if len(set(holders)) < len(holders) or not all(0 < point < PRIME for point in holders):
        raise ValueError("expected different points >= 1")
    if not 1 <= threshold <= len(holders):
        raise ValueError(f"threshold must be from 1 to {len(holders)}, got {threshold}")
    rest = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    coefficients = [*rest, int.from_bytes(secret, "big")]  # the highest power first
    return {point: _value(coefficients, point).to_bytes(SHARE_BYTES, "big") for point in holders}


def combine(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret of which these are shares, by point: as many as its threshold, or more.

    Raises:
        ValueError: if they cannot be shares of one secret.
    """
    values = {point: int.from_bytes(share, "big") for point, share in shares.items()}
    if not values or not all(0 < point < PRIME for point in values):
        raise ValueError("expected shares at points >= 1")
    if any(len(shares[p]) != SHARE_BYTES or value >= PRIME for p, value in values.items()):
        raise ValueError(f"expected shares of {SHARE_BYTES} bytes, numbers below 2^521 - 1")
    secret = 0
    for point, value in values.items():
        above, below = 1, 1
        for other in values:
            if other != point:
                above, below = above * other % PRIME, below * (other - point) % PRIME
        secret += value * above * pow(below, -1, PRIME)
    secret %= PRIME
    if secret >> 8 * SECRET_BYTES:
        raise ValueError("these are no shares of one secret")
    return secret.to_bytes(SECRET_BYTES, "big")


def _value(coefficients: Iterable[int], point: int) -> int:
    value = 0
    for coefficient in coefficients:
        value = (value * point + coefficient) % PRIME
    return value
