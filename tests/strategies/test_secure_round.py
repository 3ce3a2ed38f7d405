"""A secure sum without a network: what is summed, who may be lost, and what nodes refuse."""

import dataclasses
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcurv.clients.secure import node as node_module
from fedcurv.clients.secure.members import Floors
from fedcurv.clients.secure.memory import Memory
from fedcurv.clients.secure.node import Node
from fedcurv.clients.secure.refused import RefusedByNode
from fedcurv.strategies.replies.check import RoundFailed
from fedcurv.strategies.secure.recovery import WronglyDealt
from fedcurv.strategies.secure.secure_round import SecureRound
from fedcurv.strategies.wire.secure.form import Form
from fedcurv.strategies.wire.secure.keys import KeyPair, agreed_key, derived_key, seal, unseal
from fedcurv.strategies.wire.secure.neighbours import (
    DEFAULT_NEIGHBOURS,
    DEFAULT_THRESHOLD,
    number_of_neighbours,
    shares_needed,
)
from fedcurv.strategies.wire.secure.plan import ARRAYS, Plan
from fedcurv.strategies.wire.secure.shamir import split
from fedcurv.strategies.wire.secure.stages import (
    AskForAgreement,
    AskForKeys,
    Keys,
    Masked,
)
from fedcurv.strategies.wire.secure.statements import (
    bound_to,
    pair_purpose,
    seal_purpose,
    single_purpose,
)
from fedcurv.strategies.wire.secure.words import Words
from tests.oracles import secure as oracle
from tests.strategies.test_secure_pieces import chi_square

FORM = Form({}, {}).to_text()
SHAPES = {"w": (300,), "b": (4,)}
SENT = bytes(32)
NAME = ("federation", "session", 1)


@lru_cache
def numbers_of(client: int) -> tuple[list[int], list[int]]:
    generator = np.random.default_rng(client)
    wide = generator.integers(-(2**40), 2**40, 3 + 2 * 4 + 4).tolist()
    return wide, generator.integers(-(2**20), 2**20, 300).tolist()


def words_of(client: int) -> Words:
    wide, narrow = numbers_of(client)
    return Words(np.array(wide).view(np.uint64), np.array(narrow).astype(np.uint32))


def plan_for(clients: int) -> Plan:
    sizes = {(ARRAYS, "w"): 300}
    return Plan.from_bounds(clients, "n", {(ARRAYS, "w"): 1.0}, sizes)


@dataclass
class Run:
    """Plays a round with nodes in this process; ``lost`` says who is lost before which stage."""

    clients: int = 6
    neighbours: int = 64
    threshold: float = 2 / 3
    smallest_group: int = 3
    lost: dict[str, Collection[int]] = field(default_factory=dict)
    name: tuple[str, str, int] = NAME
    nodes: list[Node] = field(default_factory=list)
    seen: dict[int, bytes] = field(default_factory=dict)
    change: Callable[[str, int, object], object] = lambda stage, client, asked: asked

    def __post_init__(self):
        floors = Floors(fewest_neighbours=self.neighbours, smallest_threshold=self.threshold)
        self.nodes = self.nodes or [Node(str(i), floors=floors) for i in range(self.clients)]
        self.server = SecureRound(
            self.name,
            neighbours=self.neighbours,
            threshold=self.threshold,
            smallest_group=self.smallest_group,
        )

    def there(self, stage: str, ids: Collection[str]) -> list[int]:
        gone = set(self.lost.get(stage, ()))
        return [int(i) for i in ids if int(i) not in gone]

    def play_keys(self):
        for i in self.there("keys", map(str, range(self.clients))):
            asked = self.change("keys", i, self.server.ask_for_keys())
            self.server.add_keys(self.nodes[i].keys(asked))

    def play_shares(self):
        asked = self.server.ask_for_shares()
        for i in self.there("shares", asked.client_ids):
            reply = self.nodes[i].shares(self.change("shares", i, asked))
            self.server.add_shares(str(i), reply)

    def play_masks(self):
        self.plan = plan_for(self.clients)
        for name, asked in self.server.ask_for_masked(self.plan, SHAPES).items():
            i = int(name)
            asked = self.change("masks", i, asked)
            if i in self.there("masks", [name]):
                self.nodes[i].accept(asked, SENT)
                self.seen[i] = self.masked(i)
                self.server.add_masked(name, Masked(*self.name, form=FORM), self.seen[i])

    def masked(self, i: int) -> bytes:
        words = words_of(i)
        self.nodes[i].add_masks(words)
        return words.to_bytes()

    def play_agree(self):
        alive, asked = self.server.ask_for_agreement(SENT)
        for i in self.there("agree", alive):
            reply = self.nodes[i].agree(self.change("agree", i, asked))
            self.server.add_agreed(str(i), reply)

    def play_unmask(self):
        signers, asked = self.server.ask_for_unmasking()
        for i in self.there("unmask", signers):
            reply = self.nodes[i].reveal(self.change("unmask", i, asked))
            self.server.add_revealed(str(i), reply)
        return self.server.total()

    def play(self):
        self.play_keys()
        self.play_shares()
        self.play_masks()
        self.play_agree()
        return self.play_unmask()


def expected(clients: Collection[int]) -> tuple[list[int], list[int]]:
    wide, narrow = zip(*(numbers_of(i) for i in clients), strict=True)
    return oracle.sum_modulo(list(wide), 64), oracle.sum_modulo(list(narrow), 32)


def plain(words: Words) -> tuple[list[int], list[int]]:
    return words.wide.view(np.int64).tolist(), words.narrow.view(np.int32).tolist()


@pytest.mark.parametrize(("clients", "neighbours"), [(3, 64), (6, 64), (20, 6)])
def test_the_sum_is_that_in_the_clear(clients, neighbours):
    _, words = Run(clients, neighbours).play()
    assert plain(words) == expected(range(clients))


@pytest.mark.parametrize("stage", ["keys", "shares", "masks", "agree", "unmask"])
@pytest.mark.parametrize("lost", [{0}, {5}, {1, 3}])
def test_the_sum_is_that_of_those_who_remain_whichever_stage_loses_some(stage, lost):
    run = Run(clients=9, lost={stage: lost})
    _, words = run.play()
    remain = set(range(9)) - (lost if stage not in ("agree", "unmask") else set())
    assert plain(words) == expected(remain)


stages = st.sampled_from(["keys", "shares", "masks", "agree", "unmask"])


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 9), st.dictionaries(st.integers(0, 8), stages, max_size=7))
def test_whoever_is_lost_the_sum_is_right_or_the_round_fails(clients, leave):
    order = ["keys", "shares", "masks", "agree", "unmask"]
    lost = {
        stage: [i for i, when in leave.items() if order.index(when) <= order.index(stage)]
        for stage in order
    }
    run = Run(clients=clients, lost=lost)
    remain = [i for i in range(clients) if leave.get(i, "unmask") in ("agree", "unmask")]
    answer = [i for i in remain if i not in leave]
    members = [i for i in range(clients) if leave.get(i) != "keys"]
    try:
        _, words = run.play()
    except (RoundFailed, RefusedByNode):
        needed = max(2, -(-2 * (len(members) - 1) // 3))
        # those who remain have each other as neighbours, and one that is lost has all of them
        enough = len(remain) >= 3 and len(answer) - 1 >= needed
        assert not enough
    else:
        assert plain(words) == expected(remain)


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        ({"keys": [0, 1, 2, 3]}, "2 clients sent their keys, and a group of 3 is the smallest"),
        ({"shares": [0, 1, 2]}, "client 3 has 2 neighbours that sent their shares, and 4 are need"),
        ({"shares": [0, 1, 2, 3]}, "2 clients sent their shares"),
        ({"masks": [0, 1, 2, 3]}, "2 clients sent their numbers"),
        ({"agree": [0, 1]}, "4 of 6 clients signed who is in the sum, and 5 are needed"),
        ({"unmask": [0, 1, 2]}, "3 neighbours of client 0 answered at the last stage, and 4"),
    ],
)
def test_a_round_with_too_few_fails_and_says_so(lost, says):
    run = Run(lost=lost)
    if "masks" in lost:
        run.play_keys(), run.play_shares(), run.play_masks()
        with pytest.raises(RoundFailed, match=says):
            run.play_agree()
        return
    with pytest.raises(RoundFailed, match=says):
        run.play()


def test_what_the_server_sees_of_a_client_is_noise():
    run = Run()
    run.play_keys(), run.play_shares(), run.play_masks()
    seen = b"".join(run.seen.values())
    assert chi_square(seen) < 400
    again = Run()
    again.play_keys(), again.play_shares(), again.play_masks()
    for i, masked in run.seen.items():
        bits = [np.unpackbits(np.frombuffer(m, np.uint8)) for m in (masked, again.seen[i])]
        assert abs(np.mean(bits[0] != bits[1]) - 0.5) < 0.05


def test_a_late_answer_cannot_be_read_with_the_key_that_was_given_away():
    """Its own mask is left on it: of one node a server gets one of the two secrets."""
    run = Run(clients=9, lost={"masks": [4]})
    run.play_keys(), run.play_shares(), run.play_masks(), run.play_agree()
    run.play_unmask()
    late = run.server.ask_for_masked(run.plan, SHAPES)["4"]
    run.nodes[4].accept(late, SENT)
    words = Words.from_bytes(bytearray(run.masked(4)), 15, 300)
    memory = run.nodes[4].memory
    private = run.server._recovery().masking_private(4, run.server._list.masking_keys[4])
    assert private == memory.masking_private
    bound = late.binding(memory.members, SENT)
    for other, key in zip(memory.neighbours, memory.masking_keys, strict=True):
        mask = agreed_key(private, key, pair_purpose(bound))
        (words.subtract_mask if other > 4 else words.add_mask)(mask)
    assert plain(words) != numbers_of(4)
    assert chi_square(words.to_bytes()) < 400


def masked_run(**options) -> Run:
    run = Run(**options)
    run.play_keys(), run.play_shares(), run.play_masks()
    return run


def agreed_run(**options) -> Run:
    run = masked_run(**options)
    run.play_agree()
    return run


def refused(says: str):
    return pytest.raises(RefusedByNode, match=says)


def test_a_second_unmasking_is_refused():
    run = agreed_run()
    run.play_unmask()
    _, asked = run.server.ask_for_unmasking()
    with refused("each stage of a round is played once"):
        run.nodes[0].reveal(asked)


def test_lists_in_which_one_is_alive_and_dead_are_refused():
    run = masked_run(lost={"masks": [5]})
    with refused("either alive or dead"):
        run.nodes[0].agree(AskForAgreement(*NAME, alive=[0, 1, 2, 3, 4], dead=[1, 5]))
    with refused("all that were present"):
        run.nodes[0].agree(AskForAgreement(*NAME, alive=[0, 1, 2, 3, 4], dead=[]))
    with refused("all that were present"):
        run.nodes[0].agree(AskForAgreement(*NAME, alive=[0, 1, 2, 3, 4, 4], dead=[5]))
    with refused("this node alive"):
        run.nodes[0].agree(AskForAgreement(*NAME, alive=[1, 2, 3, 4], dead=[0, 5]))
    with refused("a group of 3 at least, got 2 that have answered"):
        run.nodes[0].agree(AskForAgreement(*NAME, alive=[0, 1], dead=[2, 3, 4, 5]))
    with refused("those alive in order"):
        run.nodes[0].agree(AskForAgreement(*NAME, alive=[1, 0, 2, 3, 4], dead=[5]))
    assert run.nodes[0].memory.own_secret, "a refusal is no answer"


def test_a_second_setup_in_a_round_and_an_earlier_round_are_refused():
    run = Run()
    run.play()
    for number in (1, 0):
        with refused("a round begins once, and none is played again"):
            run.nodes[0].keys(AskForKeys("federation", "session", number))
    run.nodes[0].keys(AskForKeys("federation", "session", 2))
    run.nodes[0].keys(AskForKeys("federation", "another", 1))
    with refused("of one that is over"):
        run.nodes[0].keys(AskForKeys("federation", "session", 3))


def test_messages_of_an_earlier_round_are_refused():
    first = Run()
    first.play_keys()
    early_list = first.server.ask_for_shares()
    first.play_shares()
    early = first.server.ask_for_masked(plan_for(6), SHAPES)["0"]
    second = Run(name=("federation", "session", 2), nodes=first.nodes)
    second.play_keys()
    with refused("expected a message of round 2"):
        first.nodes[0].shares(early_list)
    second.play_shares()
    with refused("expected a message of round 2"):
        first.nodes[0].accept(early, SENT)
    # and under the new round's name its seals do not open
    with refused("was told of other members or keys"):
        first.nodes[0].accept(dataclasses.replace(early, number=2), SENT)


def test_a_second_training_under_the_same_masks_is_refused():
    run = masked_run()
    asked = run.server.ask_for_masked(run.plan, SHAPES)["0"]
    with refused("each stage of a round is played once"):
        run.nodes[0].accept(asked, SENT)


def test_nodes_that_are_told_of_different_members_or_keys_open_no_shares():
    changed = KeyPair.new().public

    def change(stage, client, asked):
        if stage == "shares" and client == 0:
            keys = [*asked.masking_keys[:-1], changed]
            return dataclasses.replace(asked, masking_keys=keys)
        return asked

    run = Run(change=change)
    run.play_keys(), run.play_shares()
    with refused("member 1 was told of other members or keys"):
        run.play_masks()


def test_a_server_that_reads_shares_under_keys_of_its_own_is_noticed_by_their_owner():
    run = Run()
    run.play_keys()
    asked = run.server.ask_for_shares()
    for field_name in ("sealing_keys", "masking_keys", "agreeing_keys"):
        keys = [KeyPair.new().public, *getattr(asked, field_name)[1:]]
        with refused("this node's own keys"):
            run.nodes[0].shares(dataclasses.replace(asked, **{field_name: keys}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"threshold": 2}, "more than half of 5 neighbours"),
        ({"threshold": 6}, "more than half of 5 neighbours"),
        ({"neighbours": 3}, "expected 4 neighbours, got 3"),
        ({"client_ids": ["0", "1", "2", "3", "4", "4"]}, "every member and every key once"),
        ({"client_ids": ["1", "2", "3", "4", "5", "9"]}, "this node in the list"),
        ({"client_ids": ["1", "0", "2", "3", "4", "5"]}, "the members in order"),
        ({"client_ids": ["00", "0", "2", "3", "4", "5"]}, "the members in order"),
        ({"client_ids": ["0", "00", "2", "3", "5", "4"]}, "the members in order"),
        ({"threshold": 3}, "a threshold of 4 of 5 neighbours at least, got 3"),
        ({"signatures": []}, "three keys and a signature"),
    ],
)
def test_lists_of_members_that_cannot_be_right_are_refused(change, says):
    run = Run(clients=6)
    run.play_keys()
    asked = run.server.ask_for_shares()
    with refused(says):
        run.nodes[0].shares(dataclasses.replace(asked, **change))


def test_a_node_has_as_many_neighbours_and_as_high_a_threshold_as_its_owner_says():
    run = Run(clients=20, neighbours=6, nodes=[Node(str(i)) for i in range(20)])
    run.play_keys()
    asked = run.server.ask_for_shares()
    with refused("19 neighbours of 20 members at least, got 6"):
        run.nodes[0].shares(asked)
    run = Run(clients=20, neighbours=6, nodes=[Node("0", floors=Floors(fewest_neighbours=5))])
    run.nodes += [Node(str(i)) for i in range(1, 20)]
    run.play_keys()
    asked = run.server.ask_for_shares()
    assert len(run.nodes[0].shares(asked).holders) == 6
    with refused("a threshold of 5 of 6 neighbours at least, got 4"):
        floors = Floors(fewest_neighbours=6, smallest_threshold=0.8)
        Node("1", run.nodes[1].memory, floors=floors).shares(asked)


@pytest.mark.parametrize("members", [*range(3, 80), 200])
def test_servers_defaults_are_enough_for_nodes_and_so_is_a_threshold_of_066(members):
    number = number_of_neighbours(members, DEFAULT_NEIGHBOURS)
    for share in (DEFAULT_THRESHOLD, 0.66):
        Floors().require_neighbours(members, number, shares_needed(number, share))


def test_a_node_asks_for_a_group_as_large_as_its_owner_says():
    run = Run(nodes=[Node(str(i), floors=Floors(smallest_group=7)) for i in range(6)])
    run.play_keys()
    with refused("a group of 7 at least, got 6 that are members"):
        run.play_shares()


def test_masks_of_nodes_that_were_told_of_different_plans_or_models_do_not_cancel():
    def change(stage, client, asked):
        if stage == "masks" and client == 0:
            return dataclasses.replace(asked, plan=asked.plan + " ")
        return asked

    run = Run(change=change)
    run.play_keys(), run.play_shares(), run.play_masks()
    with pytest.raises(ValueError, match="its signature of who is in the sum, got another"):
        run.play_agree()
    # nor does what is left when all secrets are known say anything
    total = Words.zeros(15, 300)
    for i, seen in run.seen.items():
        memory = run.nodes[i].memory
        total.add(Words.from_bytes(bytearray(seen), 15, 300))
        total.subtract_mask(derived_key(memory.own_secret, single_purpose(memory.binding)))
    assert plain(total) != expected(range(6))
    assert chi_square(total.to_bytes()) < 500


def unmasked_with(run: Run, liars: Collection[int], wrong: bytes, owners: slice = slice(1)):
    """Play the last stage, in which some send wrong shares of their first neighbours' secrets."""
    run.play_agree()
    signers, asked = run.server.ask_for_unmasking()
    for i in map(int, signers):
        reply = run.nodes[i].reveal(asked)
        if i in liars:
            shares = list(reply.shares)
            shares[owners] = [wrong for _ in shares[owners]]
            reply = dataclasses.replace(reply, shares=shares)
        run.server.add_revealed(str(i), reply)
    return run.server.total()


WRONG = os.urandom(1).rjust(66, b"\0")


@pytest.mark.parametrize("owners", [slice(1), slice(None)])
@pytest.mark.parametrize("lost", [{}, {"masks": [0]}])
def test_one_who_sends_wrong_shares_is_found_and_the_sum_is_right(lost, owners):
    run = masked_run(clients=9, lost=lost)
    _, words = unmasked_with(run, {2}, WRONG, owners)
    assert plain(words) == expected(range(1 if lost else 0, 9))
    assert set(run.server.misfits) == {"2"}
    assert "share of a secret of client" in run.server.misfits["2"]


def test_wrong_shares_of_two_or_without_one_to_spare_fail_the_round():
    says = "shares of the secret of client 0 do not fit; it, or one of 1, 2, 3"
    with pytest.raises(RoundFailed, match=says):
        unmasked_with(masked_run(clients=9), {2, 3}, WRONG)
    with pytest.raises(RoundFailed, match=says):
        unmasked_with(masked_run(clients=9, threshold=1.0), {2}, WRONG)


@pytest.mark.parametrize("is_alive", [True, False])
def test_who_shares_another_secret_than_it_named_is_told_where_a_share_is_to_spare(
    is_alive, monkeypatch
):
    def wrongly(secret, points, threshold):
        field_name = "own_secret" if is_alive else "masking_private"
        own = getattr(run.nodes[0].memory, field_name)
        return split(os.urandom(32) if secret == own else secret, points, threshold)

    monkeypatch.setattr(node_module, "split", wrongly)
    lost = {} if is_alive else {"masks": [0]}
    # of 8 neighbours 6 are needed; of those of client 0 when it is lost, the others' fail first
    for gone in ([], [7], [7, 8])[: 3 if is_alive else 2]:
        run = Run(clients=9, lost={**lost, "unmask": gone})
        run.play_keys(), run.play_shares(), run.play_masks(), run.play_agree()
        says = "client 0 has shared another secret than the one it had named"
        if len(gone) == 2:
            says = "of the secret of client 0 do not fit; it, or one of 1, 2, 3"
        with pytest.raises(RoundFailed, match=says) as told:
            run.play_unmask()
        assert isinstance(told.value, WronglyDealt) == (len(gone) < 2)


def test_one_who_lies_about_a_share_blames_nobody_else():
    """The others' shares fit each other without it, so that the secret is found."""
    run = masked_run(clients=9)
    _, words = unmasked_with(run, {3}, WRONG)
    assert plain(words) == expected(range(9))
    with pytest.raises(RoundFailed) as told:
        unmasked_with(masked_run(clients=9), {2, 3}, WRONG)
    assert not isinstance(told.value, WronglyDealt)


@pytest.mark.parametrize("wrong", [b"", bytes(65), bytes(67), b"\xff" * 66])
def test_what_can_be_no_share_is_refused_when_it_comes(wrong):
    run = agreed_run()
    _, asked = run.server.ask_for_unmasking()
    reply = run.nodes[2].reveal(asked)
    with pytest.raises(ValueError, match="expected shares, got what is none"):
        run.server.add_revealed("2", dataclasses.replace(reply, shares=[*reply.shares[:-1], wrong]))


def test_sealed_texts_of_another_length_are_refused_when_they_come():
    run = Run()
    run.play_keys()
    asked = run.server.ask_for_shares()
    reply = run.nodes[2].shares(asked)
    run.server.add_shares("2", reply)
    for wrong in (b"", reply.sealed[0] + b"1", bytes(2**22)):
        with pytest.raises(ValueError, match="two shares in each of 160 bytes"):
            run.server.add_shares(
                "2", dataclasses.replace(reply, sealed=[wrong, *reply.sealed[1:]])
            )


def test_keys_that_would_end_the_round_for_others_are_refused_when_they_come():
    run = Run()
    first, second = (node.keys(run.server.ask_for_keys()) for node in run.nodes[:2])
    run.server.add_keys(first)
    for change, says in (
        ({"sealing_key": b"\1" + bytes(31)}, "public keys of X25519"),
        ({"masking_key": bytes(32)}, "public keys of X25519"),
        ({"masking_key": second.sealing_key}, "there already"),
        ({"masking_key": first.masking_key}, "there already"),
        ({"sealing_key": first.masking_key}, "there already"),
        ({"agreeing_key": first.agreeing_key}, "there already"),
        ({"signature": bytes(257)}, "signature of at most 256 bytes, got 257"),
    ):
        with pytest.raises(ValueError, match=says):
            run.server.add_keys(dataclasses.replace(second, **change))
    run.server.add_keys(dataclasses.replace(second, signature=bytes(256)))


def test_numbers_of_another_form_than_most_are_left_out():
    run = Run(clients=7)
    run.play_keys(), run.play_shares()
    run.play_masks()
    other = Form({"loss": 0}, {}).to_text()
    late = Run(clients=7, lost={"masks": [3]})
    late.play_keys(), late.play_shares(), late.play_masks()
    late.server.add_masked("3", Masked(*NAME, form=other), bytes(8 * 18 + 4 * 300))
    assert list(late.server.odd()) == ["3"]
    late.play_agree()
    _, words = late.play_unmask()
    assert plain(words) == expected({0, 1, 2, 4, 5, 6})


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Keys(*NAME, "0", *[b""] * 5), "keys of 32 bytes"),
        (Keys(*NAME, "", *[b""] * 5), "client id"),
        (Keys("federation", "session", 2, "0", *[bytes(32)] * 5), "of another"),
    ],
)
def test_odd_keys_are_refused_by_the_server(reply, says):
    run = Run()
    with pytest.raises(ValueError, match=says):
        run.server.add_keys(reply)


def test_the_server_takes_every_reply_once_and_for_its_round():
    run = masked_run()
    with pytest.raises(ValueError, match="several nodes say"):
        run.server.add_keys(Keys(*NAME, "0", *[bytes(32)] * 5))
    with pytest.raises(ValueError, match="once, of a client"):
        run.server.add_masked("0", Masked(*NAME, form=FORM), run.seen[0])
    with pytest.raises(ValueError, match="bytes of masked numbers"):
        Words.from_bytes(run.seen[0][:-1], 15, 300)


def test_secrets_end_with_the_round():
    run = agreed_run()
    run.play_unmask()
    for node in run.nodes:
        memory = node.memory
        assert memory == Memory("federation", "session", 1, "over", [])


def test_secrets_are_not_printed():
    run = masked_run()
    memory = run.nodes[0].memory
    pair = KeyPair.of(memory.masking_private)
    secrets = [
        memory.sealing_private,
        memory.masking_private,
        memory.agreeing_private,
        memory.own_secret,
        *memory.shares,
    ]
    for text in (repr(memory), str(memory), repr(pair)):
        assert not any(repr(secret)[2:-1] in text for secret in secrets)
    broken = memory.to_config()
    broken["own_secret"] = "a secret"
    with pytest.raises(
        ValueError, match="expected 'own_secret' in a message of secure sums, got str"
    ):
        Memory.from_config(broken)


def test_a_memory_is_read_back_from_its_record():
    run = masked_run()
    memory = run.nodes[0].memory
    assert Memory.from_config(memory.to_config()) == memory
    assert Memory.from_config(Memory().to_config()) == Memory()


def test_a_neighbours_shares_are_sealed_for_it_alone():
    run = Run()
    run.play_keys()
    asked = run.server.ask_for_shares()
    run.play_shares()
    sealed = run.server._sealed[0]
    digest = asked.digest()
    memory = run.nodes[1].memory
    key = agreed_key(memory.sealing_private, asked.sealing_keys[0], seal_purpose(digest))
    assert len(unseal(key, sealed[1], bound_to(digest, 0, 1))) == 132
    for wrong in (bound_to(digest, 0, 2), bound_to(digest, 1, 0)):
        with pytest.raises(ValueError, match="sealed text"):
            unseal(key, sealed[1], wrong)
    with pytest.raises(ValueError, match="sealed text"):
        unseal(derived_key(b"server", b""), sealed[1], bound_to(digest, 0, 1))
    assert seal(key, b"", b"") != seal(key, b"", b"")
