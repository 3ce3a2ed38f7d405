"""Who holds whose shares and masks with whom: each node with about k others, drawn by a hash.

Nodes stand on a ring in an order that a hash of all members and keys decides, and each is a
neighbour of the k/2 before it and the k/2 after it. So every node finds the same neighbours
by itself, and whoever wants to choose them must try hashes.

Source: that about log n neighbours are enough is Bell et al., "Secure Single-Server Aggregation
with (Poly)Logarithmic Overhead", 2020; the ring and the hash are ours.
"""

import hashlib
import math

DEFAULT_NEIGHBOURS = 64
DEFAULT_THRESHOLD = 2 / 3
# below which a node takes no part, unless its owner says so; 2/3 is often written so
SMALLEST_THRESHOLD = 0.66


def neighbours(members: int, number: int, seed: bytes) -> list[list[int]]:
    """Return every member's neighbours, in ascending order.

    Args:
        members: how many there are; they are called 0, 1, ...
        number: of neighbours of each, an even one; all others if there are no more.
        seed: a hash of all members.
    """
    if number >= members - 1:
        return [[other for other in range(members) if other != one] for one in range(members)]
    ring = sorted(
        range(members), key=lambda i: hashlib.sha256(seed + i.to_bytes(8, "big")).digest()
    )
    steps = [*range(1, number // 2 + 1), *range(-(number // 2), 0)]
    found: list[list[int]] = [[] for _ in range(members)]
    for place, one in enumerate(ring):
        found[one] = sorted(ring[(place + step) % members] for step in steps)
    return found


def number_of_neighbours(members: int, wanted: int) -> int:
    """Return how many neighbours each of so many members has: as many as wanted, or all others."""
    return members - 1 if wanted >= members - 1 else wanted + wanted % 2


def shares_needed(neighbours: int, threshold: float) -> int:
    """Return how many of a node's neighbours must answer, at least two."""
    return max(2, math.ceil(threshold * neighbours - 1e-9))


def require_majority(needed: int, neighbours: int) -> None:
    """Refuse a threshold with which a server could get both of a node's secrets, or neither.

    Raises:
        ValueError: unless more than half of the neighbours are needed, two at least, and no more
            than there are.
    """
    if not (2 <= needed <= neighbours and 2 * needed > neighbours):
        raise ValueError(
            f"expected a threshold of more than half of {neighbours} neighbours, and of two at "
            f"least, got {needed}: with fewer a server could learn both secrets of one node"
        )
