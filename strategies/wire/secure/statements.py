"""What keys, seals, signatures and commitments of secure sums are for, in bytes.

Every use of a secret names its purpose, so that what was made for one stage, round or pair of nodes
is of no use in another.
"""

import hashlib
import json
from collections.abc import Sequence

_PROTOCOL = b"fedcurv secure sums 2: "


def keys_statement(
    round_name: tuple[str, str, int], client_id: str, keys: Sequence[bytes]
) -> bytes:
    """Return what a node signs by its own key: that these are its keys in this round."""
    told = [*round_name, client_id, *(key.hex() for key in keys)]
    return _PROTOCOL + b"keys " + json.dumps(told).encode()


def agreed_statement(
    round_name: tuple[str, str, int], binding: bytes, alive: Sequence[int]
) -> bytes:
    """Return what a node signs by its key of the round: that these are the members in the sum.

    Args:
        round_name: federation, session and number.
        binding: of the masks; it has the members, those present, the plan and what was sent.
        alive: numbers of the members in the sum, in order.
    """
    told = [*round_name, binding.hex(), list(alive)]
    return _PROTOCOL + b"in the sum " + json.dumps(told).encode()


def commitment_of(secret: bytes) -> bytes:
    """Return a hash by which a secret can be recognised; a random one cannot be found by it."""
    return hashlib.sha256(_PROTOCOL + b"own secret " + secret).digest()


def seal_purpose(members: bytes) -> bytes:
    """Return the purpose of the key between two nodes that seals their shares."""
    return _PROTOCOL + b"shares " + members


def bound_to(members: bytes, sender: int, receiver: int) -> bytes:
    """Return what a sealed share is bound to: the members, and from whom to whom it goes."""
    return members + sender.to_bytes(8, "big") + receiver.to_bytes(8, "big")


def pair_purpose(binding: bytes) -> bytes:
    """Return the purpose of the key of the mask that two nodes share."""
    return _PROTOCOL + b"pair's mask " + binding


def single_purpose(binding: bytes) -> bytes:
    """Return the purpose of the key of the mask that is a node's own."""
    return _PROTOCOL + b"own mask " + binding
