"""The server's part in one secure sum, without any network: what it asks, and what it makes of it.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning",
2017, with the neighbours of Bell et al., 2020.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedcurv.strategies.replies.check import RoundFailed
from fedcurv.strategies.secure.recovery import Recovery
from fedcurv.strategies.wire.identity import client_id_order
from fedcurv.strategies.wire.secure.form import Form, Layout, Shape
from fedcurv.strategies.wire.secure.keys import (
    KEY_BYTES,
    SEAL_BYTES,
    agreed_key,
    derived_key,
    is_fit_key,
    is_signed,
)
from fedcurv.strategies.wire.secure.neighbours import (
    neighbours,
    number_of_neighbours,
    shares_needed,
    signatures_needed,
)
from fedcurv.strategies.wire.secure.plan import Plan
from fedcurv.strategies.wire.secure.shamir import SHARE_BYTES, is_share
from fedcurv.strategies.wire.secure.stages import (
    Agreed,
    AskForAgreement,
    AskForKeys,
    AskForMasked,
    AskForShares,
    AskForUnmasking,
    Keys,
    Masked,
    Revealed,
    Shares,
    Stage,
    is_name,
)
from fedcurv.strategies.wire.secure.statements import (
    agreed_statement,
    pair_purpose,
    single_purpose,
)
from fedcurv.strategies.wire.secure.words import Words

_SEALED_BYTES = 2 * SHARE_BYTES + SEAL_BYTES
# ECDSA's on the largest curve have 139 bytes
_LONGEST_SIGNATURE = 256


@dataclass
class _Group:
    """Members whose numbers have one form, and the sum of these under their masks."""

    total: Words
    members: list[int] = field(default_factory=list)


class SecureRound:
    """Goes through the stages of one round; each takes replies and then asks for the next.

    Args:
        round_name: federation, session and number.
        neighbours: how many each member has, if there are more members.
        threshold: the share of a member's neighbours that must answer, > 1/2.
        smallest_group: how many members a sum must have.

    Attributes:
        misfits: reason by client whose share of a secret did not fit to the others'.

    What a method of the kind ``add_...`` raises as a ValueError is wrong with one reply: the round
    goes on without it. RoundFailed says that too few are left.
    """

    def __init__(
        self,
        round_name: tuple[str, str, int],
        *,
        neighbours: int,
        threshold: float,
        smallest_group: int,
    ) -> None:
        self._name = round_name
        self._wanted, self._share, self._smallest = neighbours, threshold, smallest_group
        self._keys: dict[str, Keys] = {}
        self._public_keys: set[bytes] = set()
        self._members: list[str] = []
        self._around: list[list[int]] = []
        self._sealed: dict[int, dict[int, bytes]] = {}
        self._groups: dict[str, _Group] = {}
        self._signatures: dict[int, bytes] = {}
        self._revealed: dict[int, dict[int, bytes]] = {}
        self._alive: list[int] = []
        self.misfits: dict[str, str] = {}

    def ask_for_keys(self) -> AskForKeys:
        """Return what every node is asked."""
        return AskForKeys(*self._name)

    def add_keys(self, keys: Keys) -> None:
        """Take a node's keys."""
        self._require_this_round(keys)
        if not is_name(keys.client_id):
            raise ValueError("expected a client id that can be printed, of at most 200 characters")
        if keys.client_id in self._keys:
            raise ValueError(f"several nodes say that they are client {keys.client_id}")
        three = [keys.sealing_key, keys.masking_key, keys.agreeing_key]
        lengths = [len(key) for key in (*three, keys.commitment)]
        if lengths != 4 * [KEY_BYTES]:
            raise ValueError(f"expected keys of {KEY_BYTES} bytes, got {lengths}")
        if not all(map(is_fit_key, three[:2])):
            raise ValueError("expected public keys of X25519, got one that cannot be used")
        if len(set(three)) < 3 or not self._public_keys.isdisjoint(three):
            raise ValueError("expected new keys, each of its own, got one that is there already")
        if len(keys.signature) > _LONGEST_SIGNATURE:
            raise ValueError(
                f"expected a signature of at most {_LONGEST_SIGNATURE} bytes, got "
                f"{len(keys.signature)}"
            )
        self._public_keys.update(three)
        self._keys[keys.client_id] = keys

    def ask_for_shares(self) -> AskForShares:
        """Return what each member is asked."""
        self._require_group(len(self._keys), "sent their keys")
        self._members = sorted(self._keys, key=client_id_order)
        number = number_of_neighbours(len(self._members), self._wanted)
        self._needed = shares_needed(number, self._share)
        all_keys = [self._keys[client_id] for client_id in self._members]
        self._list = AskForShares(
            *self._name,
            client_ids=self._members,
            sealing_keys=[keys.sealing_key for keys in all_keys],
            masking_keys=[keys.masking_key for keys in all_keys],
            agreeing_keys=[keys.agreeing_key for keys in all_keys],
            signatures=[keys.signature for keys in all_keys],
            neighbours=number,
            threshold=self._needed,
        )
        self._around = neighbours(len(self._members), number, self._list.digest())
        return self._list

    def add_shares(self, client_id: str, shares: Shares) -> None:
        """Take the sealed shares of a member."""
        self._require_this_round(shares)
        index = self._members.index(client_id)
        if shares.holders != self._around[index] or len(shares.sealed) != len(shares.holders):
            raise ValueError("expected a sealed share for each neighbour")
        if any(len(sealed) != _SEALED_BYTES for sealed in shares.sealed):
            raise ValueError(f"expected two shares in each of {_SEALED_BYTES} bytes under a seal")
        self._sealed[index] = dict(zip(shares.holders, shares.sealed, strict=True))

    def ask_for_masked(
        self, plan: Plan, summed: Mapping[str, Shape], sums_plan: str = ""
    ) -> dict[str, AskForMasked]:
        """Return by member what those are asked whose shares came.

        Args:
            plan: of the round.
            summed: shapes of the arrays that are summed up, by name.
            sums_plan: text of the plan of the sums that are sent; empty for none.
        """
        present = sorted(self._sealed)
        self._require_group(len(present), "sent their shares")
        for index in present:
            there = sum(other in self._sealed for other in self._around[index])
            if there < self._needed:
                raise RoundFailed(
                    f"round {self._name[2]}: client {self._members[index]} has {there} neighbours "
                    f"that sent their shares, and {self._needed} are needed"
                )
        self._present, self._plan, self._summed = present, plan, summed
        plan_text = plan.to_text()
        asked = {}
        for index in present:
            senders = [other for other in self._around[index] if other in self._sealed]
            asked[self._members[index]] = AskForMasked(
                *self._name,
                present=present,
                senders=senders,
                sealed=[self._sealed[other][index] for other in senders],
                plan=plan_text,
                sums_plan=sums_plan,
            )
        self._asked_for_masked = asked[self._members[present[0]]]
        return asked

    def add_masked(self, client_id: str, masked: Masked, packed: bytes | memoryview) -> None:
        """Add a member's masked numbers to the sum."""
        self._require_this_round(masked)
        index = self._members.index(client_id)
        if index not in self._sealed or any(index in g.members for g in self._groups.values()):
            raise ValueError("expected masked numbers once, of a client that was asked for them")
        layout = Layout(self._plan, self._summed, Form.from_text(masked.form))
        words = Words.from_bytes(packed, layout.wide, layout.narrow)
        if (group := self._groups.get(masked.form)) is None:
            group = _Group(Words.zeros(layout.wide, layout.narrow))
            self._groups[masked.form] = group
        group.total.add(words)
        group.members.append(index)

    def odd(self) -> dict[str, str]:
        """Return by client why its numbers, of another form than most, are not summed up."""
        chosen = self._chosen() if self._groups else None
        return {
            self._members[index]: "expected metrics and statistics of the same names and shapes as "
            "the other clients'"
            for group in self._groups.values()
            if group is not chosen
            for index in group.members
        }

    def ask_for_agreement(self, sent: bytes) -> tuple[list[str], AskForAgreement]:
        """Return the ids of the clients whose numbers are in the sum, and what they are asked.

        Args:
            sent: digest of the message to train.
        """
        self._alive = sorted(self._chosen().members) if self._groups else []
        self._require_group(len(self._alive), "sent their numbers")
        self._binding = self._asked_for_masked.binding(self._list.digest(), sent)
        dead = sorted(set(self._present) - set(self._alive))
        asked = AskForAgreement(*self._name, alive=self._alive, dead=dead)
        return [self._members[index] for index in self._alive], asked

    def add_agreed(self, client_id: str, agreed: Agreed) -> None:
        """Take a member's signature of who is in the sum."""
        self._require_this_round(agreed)
        index = self._members.index(client_id)
        statement = agreed_statement(self._name, self._binding, self._alive)
        if not is_signed(self._list.agreeing_keys[index], statement, agreed.signature):
            raise ValueError(
                "expected its signature of who is in the sum, got another: was it told of other "
                "members, or of another message to train?"
            )
        self._signatures[index] = agreed.signature

    def ask_for_unmasking(self) -> tuple[list[str], AskForUnmasking]:
        """Return the ids of the clients that have signed, and what they are asked."""
        members = len(self._members)
        needed = signatures_needed(members, len(self._around[0]), self._needed)
        if len(self._signatures) < needed:
            raise RoundFailed(
                f"round {self._name[2]}: {len(self._signatures)} of {members} clients signed who "
                f"is in the sum, and {needed} are needed before any gives its shares"
            )
        # the nodes look at each: as many as they need will do
        signers = sorted(self._signatures)[:needed]
        signatures = [self._signatures[index] for index in signers]
        asked = AskForUnmasking(*self._name, signers=signers, signatures=signatures)
        return [self._members[index] for index in sorted(self._signatures)], asked

    def add_revealed(self, client_id: str, revealed: Revealed) -> None:
        """Take a member's shares of its neighbours' secrets."""
        self._require_this_round(revealed)
        index = self._members.index(client_id)
        there = [other for other in self._around[index] if other in self._sealed]
        if revealed.owners != there or len(revealed.shares) != len(there):
            raise ValueError("expected a share of each neighbour that was present")
        if not all(map(is_share, revealed.shares)):
            raise ValueError("expected shares, got what is none")
        self._revealed[index] = dict(zip(there, revealed.shares, strict=True))

    def total(self) -> tuple[Form, Words]:
        """Return the sum without masks, and what it holds.

        Raises:
            WronglyDealt: if a client has given shares of what is not its secret.
            RoundFailed: if secrets cannot be found.
        """
        ((text, group),) = [(t, g) for t, g in self._groups.items() if g is self._chosen()]
        bound, recovery = self._binding, self._recovery()
        total, alive = group.total, set(self._alive)
        for index in self._alive:
            commitment = self._keys[self._members[index]].commitment
            secret = recovery.own_secret(index, commitment)
            total.subtract_mask(derived_key(secret, single_purpose(bound)))
        for index in self._present:
            others = [other for other in self._around[index] if other in alive]
            if index in alive or not others:
                continue
            private = recovery.masking_private(index, self._list.masking_keys[index])
            for other in others:
                key = agreed_key(private, self._list.masking_keys[other], pair_purpose(bound))
                # what the one that is left had added or taken off
                (total.subtract_mask if other < index else total.add_mask)(key)
        self.misfits = recovery.misfits
        return Form.from_text(text), total

    def _chosen(self) -> _Group:
        """Return the group of the form that most have, the first among equals."""
        return max(self._groups.values(), key=lambda group: len(group.members))

    def _recovery(self) -> Recovery:
        around = {index: self._around[index] for index in self._present}
        return Recovery(self._name[2], self._members, around, self._needed, self._revealed)

    def _require_this_round(self, reply: Stage) -> None:
        if reply.round_name != self._name:
            raise ValueError("expected a reply of this round, got one of another")

    def _require_group(self, number: int, what: str) -> None:
        if number < max(2, self._smallest):
            raise RoundFailed(
                f"round {self._name[2]}: {number} clients {what}, and a group of {self._smallest} "
                "is the smallest that is summed up (smallest_group)"
            )
