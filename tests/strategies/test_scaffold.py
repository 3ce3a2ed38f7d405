"""SCAFFOLD as published, with clients that are absent, fail and forget, and what it refuses."""

import logging
import re

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg, FedAvgM, FedMedian, FedProx, Krum

from fedcurv.strategies import RoundFailed, Scaffold
from fedcurv.strategies.wire.methods import CONTROL, METHOD
from tests.federation import crash, options
from tests.oracles import methods as oracle
from tests.two_sided import UNEQUAL, Methods, client, first_vector, vector

SIX = [*UNEQUAL, client(4, 7, steps=2), client(5, 16, steps=5)]


def assert_as_published(federation, result, participants=None, **more):
    rounds = participants or federation.participants(max(federation.seen))
    expected = oracle.scaffold(first_vector(), federation.clients, rounds, **more)[-1]
    torch.testing.assert_close(vector(result.arrays), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own_loop", [False, True])
def test_rounds_are_those_of_the_definition(own_loop):
    federation = Methods(UNEQUAL)
    result = federation.run(Scaffold(**options()), num_rounds=6, own_loop=own_loop)
    assert_as_published(federation, result)


def test_control_variates_make_a_difference():
    plain = Methods(UNEQUAL).run(FedAvg(**options(weighted_by_key="loss")))
    controlled = Methods(UNEQUAL).run(Scaffold(**options()))
    assert (vector(plain.arrays) - vector(controlled.arrays)).norm() > 1e-2


def test_weight_decay_is_part_of_the_objective():
    federation = Methods([{**one, "decay": 0.3} for one in UNEQUAL])
    assert_as_published(federation, federation.run(Scaffold(**options())))


def test_the_servers_own_step_is_that_of_the_wrapped_strategy():
    federation = Methods(UNEQUAL)
    wrapped = FedAvgM(server_learning_rate=0.5, **options())
    assert_as_published(federation, federation.run(Scaffold(wrapped)), server_lr=0.5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("number", [None, 9])
def test_partial_participation_is_that_of_the_definition(seed, number, tmp_path):
    federation = Methods(SIX, state_dir=tmp_path if seed == 0 else None)
    strategy = Scaffold(num_clients=number, **options(fraction_train=0.5))
    result = federation.run(strategy, num_rounds=8, seed=seed)
    assert len({tuple(nodes) for nodes in federation.participants(8)}) > 1
    assert_as_published(federation, result, number=number)


def test_nodes_that_tell_no_id_when_asked_are_known_by_their_replies():
    federation = Methods(UNEQUAL, asks_for_ids=False)
    assert_as_published(federation, federation.run(Scaffold(**options())))


def without_record(content):
    del content[METHOD]


def poison(content):
    nan = torch.full((3, 4), torch.nan)
    content["arrays"] = ArrayRecord({"weight": nan, "bias": nan[:, 0].clone()})


@pytest.mark.parametrize("spoil", [poison, without_record, crash])
def test_a_reply_that_is_not_used_leaves_the_client_where_the_server_thinks_it_is(spoil, caplog):
    """Its own state has moved on, but it begins again from the one in the sum."""
    federation = Methods(UNEQUAL, spoil={(1, 2): spoil, (3, 3): spoil, (4, 3): spoil})
    result = federation.run(Scaffold(**options()), num_rounds=6)
    whole = [0, 1, 2, 3]
    rounds = [[0, 1, 3], whole, [0, 1, 2], [0, 1, 2], whole, whole]
    assert_as_published(federation, result, rounds)
    assert "has lost" not in caplog.text
    assert [*federation.reasons(3)] == ["3"]


def test_a_client_that_forgets_is_named_and_all_begin_anew(caplog):
    federation = Methods(UNEQUAL, forgetful=frozenset({(4, 1)}))
    with caplog.at_level(logging.WARNING, "fedcurv"):
        result = federation.run(Scaffold(**options()), num_rounds=7)
    assert_as_published(federation, result, lost={4: [1]})
    assert "client 1: what it remembered after round 3 is not there any more" in caplog.text
    assert "round 4: client 1 has lost what it remembered" in caplog.text
    assert caplog.text.count("begins anew") == 1


def with_answer(**changes):
    def change(content):
        for name, value in changes.items():
            content[METHOD][name.replace("_", "-")] = value

    return change


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (with_answer(began_from="another"), "began from the client's state in the server's sum"),
        (with_answer(progress=1e-9), "within 1000 times the round's middle one"),
        (with_answer(parameters=["weight"]), "trained parameters of the same names"),
    ],
)
def test_wrong_answers_are_refused_by_name(spoil, reason):
    federation = Methods(UNEQUAL, spoil={(2, 1): spoil})
    result = federation.run(Scaffold(**options()))
    assert re.search(reason, federation.reasons(2)["1"])
    whole = [0, 1, 2, 3]
    assert_as_published(federation, result, [whole, [0, 2, 3], whole, whole])


def change_control(message_content, kind):
    record = message_content[CONTROL]
    if kind == "names":
        message_content[CONTROL] = ArrayRecord({"other": record["weight"]})
    else:
        message_content[CONTROL] = ArrayRecord({"weight": record["bias"], "bias": record["bias"]})


@pytest.mark.parametrize("kind", ["names", "shapes"])
def test_a_control_variate_that_is_not_the_models_is_refused_by_the_client(kind):
    federation = Methods(UNEQUAL[:2])
    original = federation.train

    def train(message, context):
        if CONTROL in message.content:
            change_control(message.content, kind)
        return original(message, context)

    federation.train = train
    with pytest.raises(RoundFailed, match="expected the server's control variate for"):
        federation.run(Scaffold(**options()))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"optimizer": lambda m, how: torch.optim.Adam(m.parameters())}, "holds for SGD, got Adam"),
        ({"momentum": 0.9}, "holds for SGD without momentum, got momentum=0.9"),
        ({"lr": 0.0}, "with learning rates of 0"),
        ({"steps": 0}, "took no steps"),
        (
            {"optimizer": lambda m, how: torch.optim.SGD([m.weight], lr=0.1)},
            "expected steps of all trainable parameters, got one without .'bias'",
        ),
    ],
)
def test_training_for_which_it_does_not_hold_is_refused_with_the_reason(more, reason):
    with pytest.raises(RoundFailed, match=reason):
        Methods([client(0, **more)]).run(Scaffold(**options()), num_rounds=1)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Scaffold(FedMedian()), TypeError, "around FedMedian: it leaves clients out"),
        (lambda: Scaffold(Krum()), TypeError, "around Krum: it leaves clients out"),
        (lambda: Scaffold(FedProx()), TypeError, "its term would enter what the clients remember"),
        (lambda: Scaffold(num_clients=0), ValueError, "num_clients must be an integer >= 1"),
        (lambda: Scaffold(num_client=3), TypeError, "no option 'num_client'; is num_clients"),
    ],
)
def test_what_cannot_be_right_is_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_it_doubles_the_download_from_the_second_round_on_and_not_the_upload():
    federation = Methods(UNEQUAL)
    federation.run(Scaffold(**options()))
    first, second = (federation.rounds[r].clients[0] for r in (1, 2))
    assert CONTROL not in first.down and second.down[CONTROL] == second.down["arrays"]
    assert not any(name.startswith(CONTROL) for name in second.up)
    assert (
        second.bytes_up
        == first.bytes_up + len("began-from") * 0 + second.up[METHOD] - (first.up[METHOD])
    )


def test_unequal_numbers_of_examples_are_told_once(caplog):
    with caplog.at_level(logging.WARNING, "fedcurv"):
        Methods(UNEQUAL).run(Scaffold(**options()))
    assert caplog.text.count("clients count alike, as the method is published") == 1
    assert "5 to 20" in caplog.text


def test_more_clients_than_were_named_are_told_once(caplog):
    with caplog.at_level(logging.WARNING, "fedcurv"):
        Methods(UNEQUAL).run(Scaffold(num_clients=2, **options()))
    assert caplog.text.count("num_clients=2, but 4 clients have taken part") == 1


def test_a_server_from_an_older_checkpoint_and_its_clients_agree_or_say_so(tmp_path, caplog):
    """Clients keep what the latest checkpoint's sum holds, and not what older ones held."""
    federation = Methods(UNEQUAL, state_dir=tmp_path / "nodes")

    states = {}

    class Saves(Scaffold):
        def aggregate_train(self, server_round, replies):
            made = super().aggregate_train(server_round, replies)
            if server_round in (2, 4):
                states[server_round] = (self.state_dict(), made[0])
            return made

    first = Saves(**options())
    first.will_be_saved()
    federation.run(first, num_rounds=6)

    def resumed(server_round, num_rounds):
        again = Scaffold(**options())
        state, arrays = states[server_round]
        again.load_state_dict(state)
        federation.seen.clear()
        return federation.run(again, num_rounds=num_rounds, arrays=arrays)

    whole = oracle.scaffold(first_vector(), UNEQUAL, 7 * [[0, 1, 2, 3]])
    # the latest: as if nothing had happened, though the clients were two rounds further
    torch.testing.assert_close(vector(resumed(4, 3).arrays), whole[6], rtol=1e-4, atol=1e-5)
    assert "has lost" not in caplog.text
    # an older one: all of them say that they have not that state, and all begin anew
    got = resumed(2, 4)
    assert "client 0, 1, 2 and others has lost what it remembered" in caplog.text
    # of which the first round, whose clients feel the old c, is the only one that differs
    assert caplog.text.count("has lost") == 1
    begun = vector(resumed(2, 1).arrays)
    anew = oracle.scaffold(begun, UNEQUAL, 3 * [[0, 1, 2, 3]])[-1]
    torch.testing.assert_close(vector(got.arrays), anew, rtol=1e-4, atol=1e-5)


def test_what_is_no_saved_state_changes_nothing():
    strategy = Scaffold(**options())
    Methods(UNEQUAL).run(strategy, num_rounds=2)
    state = strategy.state_dict()
    wrong = [
        {"latest": {"0": ["one", "m"]}},
        {"most-clients": "four"},
        {"sum": ArrayRecord({"weight": torch.full((3, 4), torch.nan)})},
        {"federation": 3},
    ]
    for change in wrong:
        with pytest.raises(ValueError, match="expected"):
            strategy.load_state_dict({**state, **change})
    assert strategy.state_dict()["latest"] == state["latest"]


def test_two_federations_of_one_process_do_not_meet():
    federations = [Methods(UNEQUAL), Methods(SIX)]
    results = [f.run(Scaffold(**options())) for f in federations]
    for federation, result in zip(federations, results, strict=True):
        assert_as_published(federation, result)
