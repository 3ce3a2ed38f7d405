"""What a node looks at in a list of members before it shares its secrets with them."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedcurv.clients.secure.identity import Identity
from fedcurv.clients.secure.refused import RefusedByNode
from fedcurv.strategies.wire.identity import client_id_order
from fedcurv.strategies.wire.secure.keys import KEY_BYTES
from fedcurv.strategies.wire.secure.neighbours import (
    DEFAULT_NEIGHBOURS,
    SMALLEST_THRESHOLD,
    number_of_neighbours,
    require_majority,
    shares_needed,
)
from fedcurv.strategies.wire.secure.stages import AskForShares, is_name
from fedcurv.strategies.wire.secure.statements import keys_statement

SMALLEST_GROUP = 3


@dataclass(frozen=True)
class Floors:
    """Numbers of a node's owner, below which it takes no part.

    Attributes:
        smallest_group: how many members a sum must have, >= 2.
        fewest_neighbours: how many it must share its secrets among, or all others if there are no
            more.
        smallest_threshold: the share of them that must be needed, in (1/2, 1].

    Every method raises RefusedByNode.
    """

    smallest_group: int = SMALLEST_GROUP
    fewest_neighbours: int = DEFAULT_NEIGHBOURS
    smallest_threshold: float = SMALLEST_THRESHOLD

    def require_group(self, number: int, what: str) -> None:
        """Refuse a sum of too few."""
        if number < self.smallest_group:
            raise RefusedByNode(
                f"expected a group of {self.smallest_group} at least, got {number} that {what}: "
                "in a smaller one a sum says too much of each (smallest_group)"
            )

    def require_neighbours(self, members: int, number: int, threshold: int) -> None:
        """Refuse too few neighbours, and a threshold that is too low."""
        try:
            require_majority(threshold, number)
        except ValueError as error:
            raise RefusedByNode(str(error)) from error
        if number < (fewest := number_of_neighbours(members, self.fewest_neighbours)):
            raise RefusedByNode(
                f"expected {fewest} neighbours of {members} members at least, got {number}: few "
                "can all be in league with a server (fewest_neighbours)"
            )
        if threshold < (needed := shares_needed(number, self.smallest_threshold)):
            raise RefusedByNode(
                f"expected a threshold of {needed} of {number} neighbours at least, got "
                f"{threshold}: so few that are in league with a server read a node "
                "(smallest_threshold)"
            )


def own_index(asked: AskForShares, client_id: str, own_keys: Sequence[bytes]) -> int:
    """Return a node's number among the members.

    Args:
        asked: the list of members.
        client_id: of the node.
        own_keys: its keys of this round.

    Raises:
        RefusedByNode: for a list that cannot be right.
    """
    ids, number = asked.client_ids, len(asked.client_ids)
    key_lists = [asked.sealing_keys, asked.masking_keys, asked.agreeing_keys]
    lists = [*key_lists, asked.signatures]
    keys = [key for one in key_lists for key in one]
    if any(len(one) != number for one in lists) or not all(map(is_name, ids)):
        raise RefusedByNode("expected three keys and a signature of each member")
    if len(set(ids)) < number or len(set(keys)) < len(keys):
        raise RefusedByNode("expected every member and every key once")
    if ids != sorted(ids, key=client_id_order):
        raise RefusedByNode("expected the members in order: who chooses it, chooses neighbours")
    if any(len(key) != KEY_BYTES for key in keys):
        raise RefusedByNode(f"expected keys of {KEY_BYTES} bytes")
    if client_id not in ids:
        raise RefusedByNode("expected this node in the list of members")
    index = ids.index(client_id)
    if [one[index] for one in key_lists] != list(own_keys):
        raise RefusedByNode("expected this node's own keys in the list, got others")
    return index


def verify_others(asked: AskForShares, client_id: str, identity: Identity) -> None:
    """Refuse a list in which a member's keys are not its own, as far as that can be known.

    Args:
        asked: the list of members.
        client_id: of the node itself.
        identity: knows the others' keys.

    Raises:
        RefusedByNode: for keys that are not signed.
    """
    for one, *keys, signature in zip(
        asked.client_ids,
        asked.sealing_keys,
        asked.masking_keys,
        asked.agreeing_keys,
        asked.signatures,
        strict=True,
    ):
        if one == client_id:
            continue
        try:
            identity.verify(one, keys_statement(asked.round_name, one, keys), signature)
        except ValueError as error:
            raise RefusedByNode(str(error)) from error
