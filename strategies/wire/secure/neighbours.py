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


def signatures_needed(members: int, neighbours: int, threshold: int) -> int:
    """Return how many of all members must have signed one list of those in the sum.

    That is one more than the threshold's share of all others: T of n members, T > n/2. All members
    count, and not a node's neighbours alone: neighbours at one place of the ring may have signed
    another list than those at another place, and then no node knows how few a sum is of.

    No two lists are signed by T each, unless 2T - n members have signed both. A node signs one
    list in a round. So where fewer than 2T - n members are in league with a server, all other nodes
    that give shares give them for one and the same list, of which they themselves are; it has T
    members at least, since only those in a list sign it.

    Then of no member do they give shares of both secrets, and shares of the masks' key of a member
    in the list they do not give at all: what a server that lies gets it would get, too, from the
    truth about a round in which the others were lost.

    Args:
        members: how many there are.
        neighbours: of each.
        threshold: how many of these must answer, more than half.

    Source: the round "ConsistencyCheck" of Bonawitz et al., 2017, where all others are neighbours.
    """
    return 1 + -(-threshold * (members - 1) // neighbours)


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
