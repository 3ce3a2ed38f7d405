"""Shamir's shares of a secret: any ``threshold`` of them give it, fewer say nothing of it.

A secret s is the value at 0 of a polynomial of degree threshold − 1 over the integers modulo the
prime 2^521 − 1, whose other coefficients are drawn at random; a share is its value at one point.

Source: Shamir, "How to share a secret", 1979.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import islice

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


def is_share(share: bytes) -> bool:
    """Return whether bytes can be a share of anything."""
    return len(share) == SHARE_BYTES and int.from_bytes(share, "big") < PRIME


def combine(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret of which these are shares, by point: as many as its threshold, or more.

    Raises:
        ValueError: if they cannot be shares of one secret.
    """
    secret = sum(_terms(shares).values()) % PRIME
    if secret >> 8 * SECRET_BYTES:
        raise ValueError("these are no shares of one secret")
    return secret.to_bytes(SECRET_BYTES, "big")


def combine_all_but_one(shares: Mapping[int, bytes]) -> dict[int, bytes]:
    """Return, by each point that may be left out, the secret that the other shares give.

    With L_j the terms of Lagrange's sum for all points, the others' sum without the point p is
    Σ L_j (p - x_j) / p: dropping a point divides it out of every other term.

    Args:
        shares: by point, one more than the threshold.

    Raises:
        ValueError: if they are no shares at all.
    """
    terms = _terms(shares)
    total = sum(terms.values())
    by_point = sum(term * point for point, term in terms.items())
    secrets_without = {p: (total - by_point * pow(p, -1, PRIME)) % PRIME for p in terms}
    return {
        point: secret.to_bytes(SECRET_BYTES, "big")
        for point, secret in secrets_without.items()
        if not secret >> 8 * SECRET_BYTES
    }


def are_of_one_secret(shares: Mapping[int, bytes], threshold: int) -> bool:
    """Return whether shares are values of one polynomial of a degree below the threshold.

    Args:
        shares: by point, more than the threshold.
        threshold: how many give the secret back.
    """
    given = {point: int.from_bytes(share, "big") for point, share in shares.items()}
    base = dict(islice(given.items(), threshold))
    return all(_between(base, point) == value for point, value in given.items())


def recovered(
    shares: Mapping[int, bytes], threshold: int, is_it: Callable[[bytes], bool]
) -> tuple[bytes, int | None]:
    """Return a secret, and the point of a wrong share that was found, or None.

    Args:
        shares: by point, those that are believed most first.
        threshold: how many give the secret back, at most as many as there are.
        is_it: tells the secret from other ones.

    Raises:
        ValueError: if more than one is wrong, or one and no other is to spare.
    """
    with suppress(ValueError):  # they are no shares of one secret: one is wrong
        if is_it(secret := combine(dict(islice(shares.items(), threshold)))):
            return secret, None
    if len(shares) > threshold:
        without = combine_all_but_one(dict(islice(shares.items(), threshold + 1)))
        for point, secret in without.items():
            if is_it(secret):
                return secret, point
    raise ValueError("the shares do not fit")


def _terms(shares: Mapping[int, bytes]) -> dict[int, int]:
    """Return by point the terms of Lagrange's sum for the value at 0."""
    if not shares or not all(0 < point < PRIME for point in shares):
        raise ValueError("expected shares at points >= 1")
    if not all(map(is_share, shares.values())):
        raise ValueError(f"expected shares of {SHARE_BYTES} bytes, numbers below 2^521 - 1")
    terms = {}
    for point, share in shares.items():
        above, below = 1, 1
        for other in shares:
            if other != point:
                above, below = above * other % PRIME, below * (other - point) % PRIME
        terms[point] = int.from_bytes(share, "big") * above * pow(below, -1, PRIME) % PRIME
    return terms


def _between(values: Mapping[int, int], at: int) -> int:
    """Return the value at a point of the polynomial through others, by Lagrange's sum."""
    total = 0
    for point, value in values.items():
        above, below = 1, 1
        for other in values:
            if other != point:
                above, below = above * (at - other) % PRIME, below * (point - other) % PRIME
        total += value * above * pow(below, -1, PRIME)
    return total % PRIME


def _value(coefficients: Iterable[int], point: int) -> int:
    value = 0
    for coefficient in coefficients:
        value = (value * point + coefficient) % PRIME
    return value
