"""A node's part in a secure sum: what it answers at each stage, and what it refuses.

For each neighbour a node ever gives one share of two: of that one's own mask, or of its key. As
more than half of the neighbours are needed for either, a server learns one of the two at most.
"""

import os
from collections.abc import Sequence
from dataclasses import replace

from fedcurv.clients.secure.identity import Anybody, Identity
from fedcurv.clients.secure.memory import Memory
from fedcurv.strategies.wire.identity import client_id_order
from fedcurv.strategies.wire.secure.keys import (
    KEY_BYTES,
    KeyPair,
    agreed_key,
    derived_key,
    seal,
    unseal,
)
from fedcurv.strategies.wire.secure.neighbours import (
    DEFAULT_NEIGHBOURS,
    SMALLEST_THRESHOLD,
    neighbours,
    number_of_neighbours,
    require_majority,
    shares_needed,
)
from fedcurv.strategies.wire.secure.shamir import SHARE_BYTES, split
from fedcurv.strategies.wire.secure.stages import (
    AskForKeys,
    AskForMasked,
    AskForShares,
    AskForUnmasking,
    Keys,
    Revealed,
    Shares,
    Stage,
    is_name,
)
from fedcurv.strategies.wire.secure.statements import (
    bound_to,
    commitment_of,
    pair_purpose,
    seal_purpose,
    signed_statement,
    single_purpose,
)
from fedcurv.strategies.wire.secure.words import Words

SMALLEST_GROUP = 3

# sessions of servers that are over, as far as a node remembers them
_MOST_SESSIONS = 32


class RefusedByNode(ValueError):
    """A server asks for something that a node gives to nobody."""


class Node:
    """Answers a server's messages of secure sums; each method is one stage.

    Args:
        client_id: its stable id.
        memory: of the stage before.
        identity: its key and those it trusts.
        smallest_group: how many members a sum must have, >= 2.
        fewest_neighbours: how many it must share its secrets among, or all others if there are no
            more.
        smallest_threshold: the share of them that must be needed, in (1/2, 1].

    Attributes:
        memory: to be kept until the next stage, at this node and nowhere else.

    Every method raises RefusedByNode, a ValueError, for what would give more than the sum away.
    """

    def __init__(
        self,
        client_id: str,
        memory: Memory | None = None,
        *,
        identity: Identity | None = None,
        smallest_group: int = SMALLEST_GROUP,
        fewest_neighbours: int = DEFAULT_NEIGHBOURS,
        smallest_threshold: float = SMALLEST_THRESHOLD,
    ) -> None:
        self.client_id = client_id
        self.memory = memory or Memory()
        self._identity = identity or Anybody()
        self._smallest_group = smallest_group
        self._fewest, self._smallest_threshold = fewest_neighbours, smallest_threshold

    def keys(self, asked: AskForKeys) -> Keys:
        """Begin a round with new keys."""
        before = self.memory
        over = list(before.over)
        if asked.session == before.session:
            if asked.number <= before.number:
                raise RefusedByNode(
                    f"expected a round after {before.number}, got the keys' stage of round "
                    f"{asked.number}: a round begins once, and none is played again"
                )
        elif asked.session in over:
            raise RefusedByNode("expected a new session, got a message of one that is over")
        elif before.session:
            over = [*over, before.session][-_MOST_SESSIONS:]
        if not (is_name(asked.session) and is_name(asked.federation) and asked.number > 0):
            raise RefusedByNode("expected a federation, a session and a round by their names")
        sealing, masking, secret = KeyPair.new(), KeyPair.new(), os.urandom(KEY_BYTES)
        self.memory = Memory(
            *asked.round_name,
            stage="keys",
            over=over,
            sealing_private=sealing.private,
            masking_private=masking.private,
            own_secret=secret,
        )
        statement = signed_statement(
            asked.round_name, self.client_id, sealing.public, masking.public
        )
        return Keys(
            *asked.round_name,
            client_id=self.client_id,
            sealing_key=sealing.public,
            masking_key=masking.public,
            signature=self._identity.sign(statement),
            commitment=commitment_of(secret),
        )

    def shares(self, asked: AskForShares) -> Shares:
        """Share the two secrets of the round among the neighbours."""
        memory = self._at("keys", asked)
        index = self._own_index(asked)
        members = len(asked.client_ids)
        number = number_of_neighbours(members, asked.neighbours)
        if number != asked.neighbours:
            raise RefusedByNode(f"expected {number} neighbours, got {asked.neighbours}")
        self._require_enough(members, number, asked.threshold)
        self._verify(asked)
        digest = asked.digest()
        own = neighbours(members, number, digest)[index]
        points = [other + 1 for other in own]
        key_shares = split(memory.masking_private, points, asked.threshold)
        secret_shares = split(memory.own_secret, points, asked.threshold)
        sealed = []
        for other in own:
            key = agreed_key(
                memory.sealing_private, asked.sealing_keys[other], seal_purpose(digest)
            )
            text = key_shares[other + 1] + secret_shares[other + 1]
            sealed.append(seal(key, text, bound_to(digest, index, other)))
        self.memory = replace(
            memory,
            stage="shares",
            members=digest,
            index=index,
            threshold=asked.threshold,
            neighbours=own,
            sealing_keys=[asked.sealing_keys[other] for other in own],
            masking_keys=[asked.masking_keys[other] for other in own],
            num_members=members,
        )
        return Shares(*asked.round_name, holders=own, sealed=sealed)

    def accept(self, asked: AskForMasked) -> None:
        """Take the neighbours' shares; from now on the node answers with masked numbers once."""
        memory = self._at("shares", asked)
        present = asked.present
        if sorted(set(present)) != present or not all(0 <= i < memory.num_members for i in present):
            raise RefusedByNode("expected members that are present by their numbers, each once")
        if memory.index not in present:
            raise RefusedByNode("expected this node among those present")
        self._require_group(len(present), "are present")
        there = [other for other in memory.neighbours if other in set(present)]
        if len(there) < memory.threshold:
            raise RefusedByNode(
                f"expected {memory.threshold} neighbours at least, got {len(there)} that are there"
            )
        if asked.senders != there or len(asked.sealed) != len(there):
            raise RefusedByNode("expected a sealed share of each neighbour that is present")
        sealing_keys = dict(zip(memory.neighbours, memory.sealing_keys, strict=True))
        shares = []
        for other, sealed in zip(there, asked.sealed, strict=True):
            key = agreed_key(
                memory.sealing_private, sealing_keys[other], seal_purpose(memory.members)
            )
            try:
                text = unseal(key, sealed, bound_to(memory.members, other, memory.index))
            except ValueError as error:
                raise RefusedByNode(
                    f"member {other} was told of other members or keys, or its shares were changed"
                ) from error
            if len(text) != 2 * SHARE_BYTES:
                raise RefusedByNode(f"expected two shares of member {other}")
            shares.append(text)
        self.memory = replace(memory, stage="masks", present=present, shares=shares)

    def add_masks(self, words: Words, binding: bytes) -> None:
        """Put the masks on the node's numbers.

        Args:
            words: the numbers, changed in place.
            binding: hash of all that nodes must have been told alike.
        """
        memory = self.memory
        present = set(memory.present)
        words.add_mask(derived_key(memory.own_secret, single_purpose(binding)))
        for other, masking_key in zip(memory.neighbours, memory.masking_keys, strict=True):
            if other in present:
                key = agreed_key(memory.masking_private, masking_key, pair_purpose(binding))
                (words.add_mask if memory.index < other else words.subtract_mask)(key)

    def reveal(self, asked: AskForUnmasking) -> Revealed:
        """Give one share for each neighbour that was present, and forget all secrets."""
        memory = self._at("masks", asked)
        alive, dead = set(asked.alive), set(asked.dead)
        if both := sorted(alive & dead):
            raise RefusedByNode(
                f"expected members either alive or dead, got {both[:3]} as both: with shares of "
                "both secrets a single node's numbers could be read"
            )
        if sorted([*asked.alive, *asked.dead]) != memory.present:
            raise RefusedByNode("expected all that were present, each once, got others")
        if memory.index not in alive:
            raise RefusedByNode("expected this node alive, as it has answered")
        self._require_group(len(alive), "have answered")
        there = [other for other in memory.neighbours if other in alive | dead]
        shares = []
        for other, both_shares in zip(there, memory.shares, strict=True):
            key_share, secret_share = both_shares[:SHARE_BYTES], both_shares[SHARE_BYTES:]
            shares.append(secret_share if other in alive else key_share)
        self.memory = memory.without_secrets()
        return Revealed(*asked.round_name, owners=there, shares=shares)

    def _at(self, stage: str, asked: Stage) -> Memory:
        """Return the memory if the stage before was this one, in this round."""
        memory = self.memory
        if asked.round_name != (memory.federation, memory.session, memory.number):
            raise RefusedByNode(
                f"expected a message of round {memory.number} of this session, got one of round "
                f"{asked.number}, another session's or another federation's"
            )
        if memory.stage != stage:
            raise RefusedByNode(
                f"expected what follows the stage {memory.stage!r}, got the stage {asked.stage!r}: "
                "each stage of a round is played once"
            )
        return memory

    def _own_index(self, asked: AskForShares) -> int:
        ids, number = asked.client_ids, len(asked.client_ids)
        lists: Sequence[Sequence[object]] = [
            asked.sealing_keys,
            asked.masking_keys,
            asked.signatures,
        ]
        keys = [*asked.sealing_keys, *asked.masking_keys]
        if any(len(one) != number for one in lists) or not all(map(is_name, ids)):
            raise RefusedByNode("expected two keys and a signature of each member")
        if len(set(ids)) < number or len(set(keys)) < 2 * number:
            raise RefusedByNode("expected every member and every key once")
        if ids != sorted(ids, key=client_id_order):
            raise RefusedByNode("expected the members in order: who chooses it, chooses neighbours")
        if any(len(key) != KEY_BYTES for key in keys):
            raise RefusedByNode(f"expected keys of {KEY_BYTES} bytes")
        self._require_group(number, "are members")
        own = KeyPair.of(self.memory.sealing_private).public
        other = KeyPair.of(self.memory.masking_private).public
        for index, client_id in enumerate(ids):
            if client_id == self.client_id:
                if (asked.sealing_keys[index], asked.masking_keys[index]) != (own, other):
                    raise RefusedByNode("expected this node's own keys in the list, got others")
                return index
        raise RefusedByNode("expected this node in the list of members")

    def _require_group(self, number: int, what: str) -> None:
        if number < self._smallest_group:
            raise RefusedByNode(
                f"expected a group of {self._smallest_group} at least, got {number} that {what}: "
                "in a smaller one a sum says too much of each (smallest_group)"
            )

    def _require_enough(self, members: int, number: int, threshold: int) -> None:
        try:
            require_majority(threshold, number)
        except ValueError as error:
            raise RefusedByNode(str(error)) from error
        if number < (fewest := number_of_neighbours(members, self._fewest)):
            raise RefusedByNode(
                f"expected {fewest} neighbours of {members} members at least, got {number}: few "
                "can all be in league with a server (fewest_neighbours)"
            )
        if threshold < (needed := shares_needed(number, self._smallest_threshold)):
            raise RefusedByNode(
                f"expected a threshold of {needed} of {number} neighbours at least, got "
                f"{threshold}: so few that are in league with a server read a node "
                "(smallest_threshold)"
            )

    def _verify(self, asked: AskForShares) -> None:
        for client_id, sealing, masking, signature in zip(
            asked.client_ids, asked.sealing_keys, asked.masking_keys, asked.signatures, strict=True
        ):
            if client_id == self.client_id:
                continue
            statement = signed_statement(asked.round_name, client_id, sealing, masking)
            try:
                self._identity.verify(client_id, statement, signature)
            except ValueError as error:
                raise RefusedByNode(str(error)) from error
