"""A node's part in a secure sum: what it answers at each stage, and what it refuses.

For each neighbour a node ever gives one share of two: of that one's own mask, or of its key. As
more than half of the neighbours are needed for either, a server learns one of the two at most.
Whose is whose is the server's word, which a node believes when it has seen signatures of the same
list by more than half of all members: no two lists can have them (see ``signatures_needed``).
"""

import os
from dataclasses import replace

from fedcurv.clients.secure.identity import Anybody, Identity
from fedcurv.clients.secure.members import Floors, own_index, verify_others
from fedcurv.clients.secure.memory import Memory
from fedcurv.clients.secure.refused import RefusedByNode
from fedcurv.strategies.wire.secure.keys import (
    KEY_BYTES,
    KeyPair,
    agreed_key,
    derived_key,
    is_signed,
    new_signing_pair,
    seal,
    signature_of,
    signing_pair_of,
    unseal,
)
from fedcurv.strategies.wire.secure.neighbours import (
    neighbours,
    number_of_neighbours,
    signatures_needed,
)
from fedcurv.strategies.wire.secure.shamir import SHARE_BYTES, split
from fedcurv.strategies.wire.secure.stages import (
    Agreed,
    AskForAgreement,
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
    agreed_statement,
    bound_to,
    commitment_of,
    keys_statement,
    pair_purpose,
    seal_purpose,
    single_purpose,
)
from fedcurv.strategies.wire.secure.words import Words

# sessions of servers that are over, as far as a node remembers them
_MOST_SESSIONS = 32


class Node:
    """Answers a server's messages of secure sums; each method is one stage.

    Args:
        client_id: its stable id.
        memory: of the stage before.
        identity: its key and those it trusts.
        floors: below which it takes no part.

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
        floors: Floors | None = None,
    ) -> None:
        self.client_id = client_id
        self.memory = memory or Memory()
        self._identity = identity or Anybody()
        self._floors = floors or Floors()

    @property
    def knows_others(self) -> bool:
        """Whether members must be known by their keys."""
        return self._identity.knows_others

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
        sealing, masking, agreeing = KeyPair.new(), KeyPair.new(), new_signing_pair()
        secret = os.urandom(KEY_BYTES)
        self.memory = Memory(
            *asked.round_name,
            stage="keys",
            over=over,
            sealing_private=sealing.private,
            masking_private=masking.private,
            agreeing_private=agreeing.private,
            own_secret=secret,
        )
        public = [pair.public for pair in (sealing, masking, agreeing)]
        statement = keys_statement(asked.round_name, self.client_id, public)
        return Keys(
            *asked.round_name,
            client_id=self.client_id,
            sealing_key=sealing.public,
            masking_key=masking.public,
            agreeing_key=agreeing.public,
            signature=self._identity.sign(statement),
            commitment=commitment_of(secret),
        )

    def shares(self, asked: AskForShares) -> Shares:
        """Share the two secrets of the round among the neighbours."""
        memory = self._at("keys", asked)
        own_keys = [KeyPair.of(memory.sealing_private), KeyPair.of(memory.masking_private)]
        own_keys.append(signing_pair_of(memory.agreeing_private))
        index = own_index(asked, self.client_id, [pair.public for pair in own_keys])
        members = len(asked.client_ids)
        number = number_of_neighbours(members, asked.neighbours)
        if number != asked.neighbours:
            raise RefusedByNode(f"expected {number} neighbours, got {asked.neighbours}")
        self._floors.require_group(members, "are members")
        self._floors.require_neighbours(members, number, asked.threshold)
        verify_others(asked, self.client_id, self._identity)
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
            agreeing_keys=asked.agreeing_keys,
        )
        return Shares(*asked.round_name, holders=own, sealed=sealed)

    def accept(self, asked: AskForMasked, sent: bytes) -> None:
        """Take the neighbours' shares; from now on the node answers with masked numbers once.

        Args:
            asked: by the server.
            sent: digest of the message beside that.
        """
        memory = self._at("shares", asked)
        present, members = asked.present, len(memory.agreeing_keys)
        if sorted(set(present)) != present or not all(0 <= i < members for i in present):
            raise RefusedByNode("expected members that are present by their numbers, each once")
        if memory.index not in present:
            raise RefusedByNode("expected this node among those present")
        self._floors.require_group(len(present), "are present")
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
        binding = asked.binding(memory.members, sent)
        self.memory = replace(
            memory, stage="masks", present=present, shares=shares, binding=binding
        )

    def add_masks(self, words: Words) -> None:
        """Put the masks on the node's numbers, in place."""
        memory, binding = self.memory, self.memory.binding
        present = set(memory.present)
        words.add_mask(derived_key(memory.own_secret, single_purpose(binding)))
        for other, masking_key in zip(memory.neighbours, memory.masking_keys, strict=True):
            if other in present:
                key = agreed_key(memory.masking_private, masking_key, pair_purpose(binding))
                (words.add_mask if memory.index < other else words.subtract_mask)(key)

    def agree(self, asked: AskForAgreement) -> Agreed:
        """Sign who is in the sum, once; from now on the node gives shares for this list alone."""
        memory = self._at("masks", asked)
        alive, dead = set(asked.alive), set(asked.dead)
        if both := sorted(alive & dead):
            raise RefusedByNode(
                f"expected members either alive or dead, got {both[:3]} as both: with shares of "
                "both secrets a single node's numbers could be read"
            )
        if sorted([*asked.alive, *asked.dead]) != memory.present:
            raise RefusedByNode("expected all that were present, each once, got others")
        if asked.alive != sorted(asked.alive):
            raise RefusedByNode("expected those alive in order: a list is signed in one")
        if memory.index not in alive:
            raise RefusedByNode("expected this node alive, as it has answered")
        self._floors.require_group(len(alive), "have answered")
        self.memory = replace(memory, stage="agree", alive=asked.alive)
        return Agreed(
            *asked.round_name, signature=signature_of(memory.agreeing_private, self._statement())
        )

    def reveal(self, asked: AskForUnmasking) -> Revealed:
        """Give one share for each neighbour that was present, and forget all secrets."""
        memory = self._at("agree", asked)
        self._require_agreement(asked)
        alive, present = set(memory.alive), set(memory.present)
        there = [other for other in memory.neighbours if other in present]
        shares = []
        for other, both_shares in zip(there, memory.shares, strict=True):
            key_share, secret_share = both_shares[:SHARE_BYTES], both_shares[SHARE_BYTES:]
            shares.append(secret_share if other in alive else key_share)
        self.memory = memory.without_secrets()
        return Revealed(*asked.round_name, owners=there, shares=shares)

    def _statement(self) -> bytes:
        memory = self.memory
        round_name = memory.federation, memory.session, memory.number
        return agreed_statement(round_name, memory.binding, memory.alive)

    def _require_agreement(self, asked: AskForUnmasking) -> None:
        memory, signers = self.memory, asked.signers
        if sorted(set(signers)) != signers or len(asked.signatures) != len(signers):
            raise RefusedByNode("expected members that have signed, each once, in order")
        if not set(signers) <= set(memory.alive):
            raise RefusedByNode("expected signatures of members that are in the sum")
        statement = self._statement()
        for signer, signature in zip(signers, asked.signatures, strict=True):
            if not is_signed(memory.agreeing_keys[signer], statement, signature):
                raise RefusedByNode(
                    f"expected a signature by member {signer} of the list that this node was told "
                    "of, got another: members were told of different ones, or somebody plays it"
                )
        members = len(memory.agreeing_keys)
        needed = signatures_needed(members, len(memory.neighbours), memory.threshold)
        if (number := len({*signers, memory.index})) < needed:
            raise RefusedByNode(
                f"expected {needed} of {members} members to have signed who is in the sum, got "
                f"{number}: the others may have been told of another list"
            )

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
