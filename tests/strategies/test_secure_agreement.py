"""A server that tells nodes of different survivors: what it tries, and what it gets."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcurv.clients.secure import node as node_module
from fedcurv.clients.secure.refused import RefusedByNode
from fedcurv.strategies import RoundFailed
from fedcurv.strategies.wire.secure.keys import (
    agreed_key,
    derived_key,
    is_signed,
    new_signing_pair,
    signature_of,
)
from fedcurv.strategies.wire.secure.neighbours import (
    DEFAULT_NEIGHBOURS,
    DEFAULT_THRESHOLD,
    number_of_neighbours,
    shares_needed,
    signatures_needed,
)
from fedcurv.strategies.wire.secure.stages import AskForAgreement, AskForUnmasking
from fedcurv.strategies.wire.secure.statements import (
    agreed_statement,
    pair_purpose,
    single_purpose,
)
from fedcurv.strategies.wire.secure.words import Words
from tests.oracles import secure as oracle
from tests.strategies.test_secure_round import NAME, Run, numbers_of, plain


def masked_run(**options) -> Run:
    run = Run(**options)
    run.play_keys(), run.play_shares(), run.play_masks()
    return run


class Liar:
    """A server that keeps all it gets, tells each node what it likes, and tries to read one."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.binding = run.nodes[0].memory.binding
        self.signed: dict[int, bytes] = {}
        self.told: dict[int, tuple[int, ...]] = {}
        self.refusals: dict[int, str] = {}
        # by owner, by point, a share of the own mask's secret, and of the masks' key
        self.own: dict[int, dict[int, int]] = {}
        self.keys: dict[int, dict[int, int]] = {}

    def tell(self, node: int, alive: Collection[int]) -> None:
        everybody = range(self.run.clients)
        self.told[node] = tuple(sorted(alive))
        dead = [other for other in everybody if other not in alive]
        asked = AskForAgreement(*NAME, alive=sorted(alive), dead=dead)
        self.signed[node] = self.run.nodes[node].agree(asked).signature

    def ask(self, node: int, signers: Collection[int]) -> None:
        """Ask for shares, with signatures of what these members have signed."""
        alive = set(self.told[node])
        signatures = [self.signed[signer] for signer in sorted(signers)]
        asked = AskForUnmasking(*NAME, signers=sorted(signers), signatures=signatures)
        try:
            reply = self.run.nodes[node].reveal(asked)
        except RefusedByNode as error:
            self.refusals[node] = str(error)
            return
        for owner, share in zip(reply.owners, reply.shares, strict=True):
            by_owner = self.own if owner in alive else self.keys
            by_owner.setdefault(owner, {})[node + 1] = int.from_bytes(share, "big")

    def ask_all(self) -> None:
        """Ask every node with the signatures of all that were told of the same."""
        for node, told in self.told.items():
            self.ask(node, [other for other, list_ in self.told.items() if list_ == told])

    def secret(self, shares: Mapping[int, int], threshold: int) -> bytes | None:
        if len(shares) < threshold:
            return None
        some = dict(list(shares.items())[:threshold])
        return oracle.secret_at_zero(some, 2**521 - 1).to_bytes(32, "big")

    def numbers(self, target: int) -> tuple[list[int], list[int]] | None:
        """Return the numbers of one client, if the shares give all of its masks."""
        server, bound = self.run.server, self.binding
        needed = server._needed
        own = self.secret(self.own.get(target, {}), needed)
        if own is None:
            return None
        words = Words.from_bytes(bytearray(self.run.seen[target]), 15, 300)
        words.subtract_mask(derived_key(own, single_purpose(bound)))
        for other in server._around[target]:
            private = self.secret(self.keys.get(other, {}), needed)
            if private is None:
                return None
            key = agreed_key(private, server._list.masking_keys[target], pair_purpose(bound))
            (words.subtract_mask if target < other else words.add_mask)(key)
        return plain(words)


def lie_about_the_neighbours_of(liar: Liar, target: int) -> None:
    """Tell each node that the target's neighbours are dead, except for itself."""
    around = set(liar.run.server._around[target])
    for node in range(liar.run.clients):
        liar.tell(node, [i for i in range(liar.run.clients) if i not in around or i == node])


@pytest.mark.parametrize("checked", [False, True])
def test_a_server_with_many_lists_reads_one_client_unless_nodes_compare_them(checked, monkeypatch):
    """Of 20 clients with 6 neighbours each; without the comparison it reads that client alone."""
    if not checked:
        monkeypatch.setattr(node_module, "signatures_needed", lambda *numbers: 1)
    run = masked_run(clients=20, neighbours=6, threshold=0.66)
    liar = Liar(run)
    lie_about_the_neighbours_of(liar, target=7)
    liar.ask_all()
    if not checked:
        assert liar.numbers(7) == tuple(numbers_of(7))
        return
    assert liar.numbers(7) is None
    assert set(liar.refusals) == set(run.server._around[7])
    assert "expected 14 of 20 members to have signed who is in the sum, got 1" in next(
        iter(liar.refusals.values())
    )
    # who believes it gives shares of no secret of the one that was to be read
    assert not liar.own.get(7)
    assert not liar.keys.get(7)


@pytest.mark.parametrize("checked", [False, True])
def test_two_lists_that_overlap_give_no_difference_of_two_sums(checked, monkeypatch):
    """All are neighbours; half is told that client 0 is alive, half that it is dead."""
    if not checked:
        monkeypatch.setattr(node_module, "signatures_needed", lambda *numbers: 1)
    run = masked_run(clients=9)
    liar = Liar(run)
    for node in range(9):
        liar.tell(node, range(9) if node < 5 else range(1, 9))
    liar.ask_all()
    assert len(liar.refusals) == (9 if checked else 0)
    # a share of both secrets of client 0, of different nodes
    assert bool(liar.own.get(0)) == bool(liar.keys.get(0)) == (not checked)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nodes_that_give_shares_give_them_for_one_list_up_to_a_bound_of_colluders(data):
    """By counting alone: honest nodes sign one list, those in league all, in any way."""
    members = data.draw(st.integers(3, 40))
    neighbours = number_of_neighbours(members, data.draw(st.integers(2, 64)))
    share = data.draw(st.floats(0.501, 1.0))
    needed = shares_needed(neighbours, share)
    wanted = signatures_needed(members, neighbours, needed)
    if 2 * needed <= neighbours or wanted > members:
        return
    in_league = data.draw(st.integers(0, max(0, 2 * wanted - members - 1)))
    lists = data.draw(st.integers(2, 4))
    honest = members - in_league
    signs = data.draw(st.lists(st.integers(0, lists - 1), min_size=honest, max_size=honest))
    signatures = [signs.count(one) + in_league for one in range(lists)]
    assert sum(number >= wanted for number in signatures) <= 1
    # and with one more there is a way to have two
    if 2 * wanted - members <= members:
        most = members - (2 * wanted - members)
        assert most // 2 + (2 * wanted - members) >= wanted


@pytest.mark.parametrize("members", [*range(3, 80), 200, 1000])
def test_more_than_half_of_all_must_have_signed_whatever_the_threshold(members):
    for wanted in (2, 3, 6, DEFAULT_NEIGHBOURS, members - 1):
        neighbours = number_of_neighbours(members, wanted)
        for share in (0.501, 0.66, DEFAULT_THRESHOLD, 0.9, 1.0):
            needed = shares_needed(neighbours, share)
            number = signatures_needed(members, neighbours, needed)
            assert members / 2 < number <= members
            assert number == 1 + math.ceil(needed / neighbours * (members - 1) - 1e-9)
            if neighbours == members - 1:
                assert number == needed + 1


@pytest.mark.parametrize(("in_league", "told_less", "believed"), [(4, {6, 7}, 1), (5, {6, 7}, 2)])
def test_two_lists_are_believed_only_if_as_many_as_said_are_in_league(
    in_league, told_less, believed
):
    """Of 9 members 7 must sign, so that it takes 2 * 7 - 9 = 5 who sign both."""
    run = masked_run(clients=9)
    liar = Liar(run)
    honest = range(in_league, 9)
    for node in honest:
        liar.tell(node, range(8) if node in told_less else range(9))
    private = {i: run.nodes[i].memory.agreeing_private for i in range(in_league)}
    lists_believed = set()
    for node in honest:
        told = liar.told[node]
        statement = agreed_statement(NAME, liar.binding, told)
        signed = {i: signature_of(key, statement) for i, key in private.items()}
        signed |= {other: liar.signed[other] for other in honest if liar.told[other] == told}
        asked = AskForUnmasking(*NAME, signers=list(signed), signatures=list(signed.values()))
        with suppress(RefusedByNode):
            run.nodes[node].reveal(asked)
            lists_believed.add(told)
    assert len(lists_believed) == believed


def agreed_run(**options) -> tuple[Run, AskForUnmasking]:
    run = masked_run(**options)
    run.play_agree()
    return run, run.server.ask_for_unmasking()[1]


def refused(says: str):
    return pytest.raises(RefusedByNode, match=says)


def test_a_node_signs_one_list_in_a_round():
    run = masked_run()
    first = AskForAgreement(*NAME, alive=[0, 1, 2, 3, 4, 5], dead=[])
    run.nodes[0].agree(first)
    for asked in (first, AskForAgreement(*NAME, alive=[0, 1, 2, 3, 4], dead=[5])):
        with refused("each stage of a round is played once"):
            run.nodes[0].agree(asked)


def test_no_shares_are_given_before_a_node_has_signed():
    run = masked_run()
    with refused("expected what follows the stage 'masks', got the stage 'unmask'"):
        run.nodes[0].reveal(AskForUnmasking(*NAME, signers=[], signatures=[]))


def test_a_signature_is_of_one_round_one_list_and_one_message_alone():
    bound = bytes(32)
    pair = new_signing_pair()
    signed = signature_of(pair.private, agreed_statement(NAME, bound, [0, 1, 2]))
    assert is_signed(pair.public, agreed_statement(NAME, bound, [0, 1, 2]), signed)
    for other in (
        agreed_statement(("federation", "session", 2), bound, [0, 1, 2]),
        agreed_statement(("federation", "another", 1), bound, [0, 1, 2]),
        agreed_statement(("another", "session", 1), bound, [0, 1, 2]),
        agreed_statement(NAME, bytes([1, *bound[1:]]), [0, 1, 2]),
        agreed_statement(NAME, bound, [0, 1]),
        agreed_statement(NAME, bound, [0, 12]),
        agreed_statement(NAME, bound, [0, 1, 3]),
    ):
        assert not is_signed(pair.public, other, signed)
    for wrong in (b"", bytes(64), signed[:-1], signed + b"0"):
        assert not is_signed(pair.public, agreed_statement(NAME, bound, [0, 1, 2]), wrong)
    assert not is_signed(b"", agreed_statement(NAME, bound, [0, 1, 2]), signed)


def test_signatures_of_another_round_are_refused():
    first, early = agreed_run()
    second = Run(name=("federation", "session", 2), nodes=first.nodes)
    second.play_keys(), second.play_shares(), second.play_masks(), second.play_agree()
    replayed = dataclasses.replace(early, number=2)
    with refused("expected a signature by member 0 of the list that this node was told of"):
        second.nodes[3].reveal(replayed)
    with refused("expected a message of round 2"):
        second.nodes[3].reveal(early)
    second.play_unmask()


def test_forged_signatures_and_those_of_another_member_are_refused():
    for change in (
        lambda s: [bytes(64), *s[1:]],
        lambda s: [b"", *s[1:]],
        lambda s: [s[1], s[0], *s[2:]],
        lambda s: [signature_of(new_signing_pair().private, b"forged"), *s[1:]],
    ):
        run, asked = agreed_run()
        changed = dataclasses.replace(asked, signatures=change(asked.signatures))
        with refused("expected a signature by member 0 of the list that this node was told of"):
            run.nodes[2].reveal(changed)
        run.nodes[2].reveal(asked)  # a refusal is no answer


def test_one_signature_counts_once_and_the_nodes_own_is_counted_for_it():
    run, asked = agreed_run()
    assert asked.signers == [0, 1, 2, 3, 4]  # 5 of 6 are needed
    signatures = asked.signatures

    def shown(*signers):
        return AskForUnmasking(
            *NAME, signers=list(signers), signatures=[signatures[i] for i in signers]
        )

    for signers in ((0, 0, 1, 2, 3), (1, 0, 2, 3, 4)):
        with refused("members that have signed, each once, in order"):
            run.nodes[0].reveal(shown(*signers))
    with refused("members that have signed, each once, in order"):
        run.nodes[0].reveal(dataclasses.replace(asked, signatures=signatures[1:]))
    with refused("expected 5 of 6 members to have signed who is in the sum, got 4"):
        run.nodes[0].reveal(shown(0, 1, 2, 3))
    with refused("expected 5 of 6 members to have signed who is in the sum, got 4"):
        run.nodes[0].reveal(shown(1, 2, 3))
    run.nodes[0].reveal(shown(1, 2, 3, 4))
    run.nodes[5].reveal(shown(0, 1, 2, 3))


def test_only_those_in_the_sum_and_members_at_all_count():
    run = masked_run(clients=9, lost={"masks": [8]})
    run.play_agree()
    asked = run.server.ask_for_unmasking()[1]
    for stranger in (8, 9, -1):
        signers = sorted([*asked.signers, stranger])
        signatures = dict(zip(asked.signers, asked.signatures, strict=True))
        shown = [signatures.get(signer, bytes(64)) for signer in signers]
        with refused("expected signatures of members that are in the sum"):
            run.nodes[0].reveal(AskForUnmasking(*NAME, signers=signers, signatures=shown))


def test_an_honest_server_fails_the_round_where_too_few_sign_or_it_gets_other_signatures():
    run = masked_run(lost={"agree": [0, 1]})
    run.play_agree()
    with pytest.raises(RoundFailed, match="4 of 6 clients signed who is in the sum, and 5 are"):
        run.server.ask_for_unmasking()
    run = masked_run()
    _, asked = run.server.ask_for_agreement(bytes(32))
    reply = run.nodes[0].agree(asked)
    wrong = dataclasses.replace(reply, signature=reply.signature[::-1])
    with pytest.raises(ValueError, match="expected its signature of who is in the sum"):
        run.server.add_agreed("0", wrong)
    run.server.add_agreed("0", reply)


def test_nodes_that_were_told_of_others_present_do_not_sign_for_each_other():
    """A server that splits a group earlier, by who has sent shares, finds no majority for two."""

    def change(stage, client, asked):
        if stage == "masks" and client < 4:
            there = [i for i in asked.present if i != 8]
            kept = [(s, t) for s, t in zip(asked.senders, asked.sealed, strict=True) if s in there]
            senders, sealed = map(list, zip(*kept, strict=True))
            return dataclasses.replace(asked, present=there, senders=senders, sealed=sealed)
        return asked

    run = masked_run(clients=9, change=change)
    liar = Liar(run)
    for node in range(9):
        if node < 4:
            alive = list(range(8))
            asked = AskForAgreement(*NAME, alive=alive, dead=[])
            liar.told[node], liar.signed[node] = (
                tuple(alive),
                run.nodes[node].agree(asked).signature,
            )
        else:
            liar.tell(node, range(8) if node < 8 else range(9))
    for node in range(9):
        liar.ask(node, range(8))
    assert len(liar.refusals) == 9
