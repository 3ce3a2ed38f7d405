"""Secure sums around strategies, with the mod at the clients, against the same run in the clear."""

import dataclasses
import logging
import re
from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    Krum,
    QFedAvg,
)

from fedcurv.clients import SecureSumsMod
from fedcurv.clients.secure import mod as mod_module
from fedcurv.simulations.runners.local import LocalGrid
from fedcurv.strategies import (
    AutoStrength,
    FedCurv,
    FedNova,
    RoundFailed,
    SecureSums,
    StrategyFailed,
    start,
)
from fedcurv.strategies.loop.ordered_grid import OrderedGrid
from fedcurv.strategies.secure import secure_sums
from fedcurv.strategies.secure.asking import Asking
from fedcurv.strategies.secure.secure_round import SecureRound
from fedcurv.strategies.wire.secure.digests import digest_of_message
from fedcurv.strategies.wire.secure.plan import ARRAYS, PRECISION_SUMS
from fedcurv.strategies.wire.secure.stages import MASKED, SECURE, Agreed
from tests.federation import Federation, crash, message_with, new_model, options, served_on
from tests.secure_federation import SecureFederation
from tests.strategies.test_secure_pieces import chi_square

# a round's rounding is below 2^-20 of what is summed up, and the model's own type has 2^-24
TOLERANCE = 4e-6


def fedcurv(strategy=None, **more):
    more = more if strategy is not None else {**options(), **more}
    return FedCurv(strategy, **{"strength": 0.1, "secure_sums": True, **more})


STRATEGIES = {
    "FedAvg": lambda: FedAvg(**options()),
    "FedProx": lambda: FedProx(**options()),
    "FedAdam": lambda: FedAdam(**options()),
    "FedAvgM": lambda: FedAvgM(server_momentum=0.5, **options()),
    "FedCurv": fedcurv,
    "FedCurv around FedAdam": lambda: fedcurv(FedAdam(**options())),
    "FedCurv with AutoStrength": lambda: fedcurv(strength=AutoStrength(0.1, 3, 12)),
}


def farthest(one: ArrayRecord, other: ArrayRecord) -> float:
    a, b = one.to_torch_state_dict(), other.to_torch_state_dict()
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


@pytest.mark.parametrize("own_loop", [False, True])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_secure_run_is_the_run_in_the_clear(name, own_loop):
    clear = Federation(num_nodes=6).run(STRATEGIES[name](), num_rounds=4, own_loop=own_loop)
    secure = SecureFederation().run(SecureSums(STRATEGIES[name]()), num_rounds=4, own_loop=own_loop)
    assert farthest(clear.arrays, secure.arrays) < TOLERANCE
    for server_round, metrics in clear.train_metrics_clientapp.items():
        assert secure.train_metrics_clientapp[server_round] == pytest.approx(dict(metrics))


@pytest.mark.parametrize("stage", ["keys", "shares", "masks"])
@pytest.mark.parametrize("name", ["FedAvg", "FedCurv"])
def test_who_is_lost_before_its_numbers_have_come_is_not_in_the_sum(name, stage):
    spoil = {(2, 1): crash, (2, 4): crash, (3, 0): crash}
    clear = Federation(num_nodes=9, spoil=spoil).run(STRATEGIES[name](), num_rounds=3)
    lost = {(2, stage): {1, 4}, (3, stage): {0}}
    secure = SecureFederation(num_nodes=9, lost=lost)
    result = secure.run(SecureSums(STRATEGIES[name]()), num_rounds=3)
    assert farthest(clear.arrays, result.arrays) < TOLERANCE


def test_who_is_lost_after_that_is_in_the_sum():
    clear = Federation(num_nodes=9).run(fedcurv(), num_rounds=3)
    secure = SecureFederation(
        num_nodes=9, lost={(1, "unmask"): {1, 4}, (2, "agree"): {2, 3}, (3, "unmask"): {0}}
    )
    assert farthest(clear.arrays, secure.run(SecureSums(fedcurv())).arrays) < TOLERANCE


def test_a_client_that_sends_a_wrong_share_is_told_and_the_others_go_on(caplog):
    class Lying(SecureFederation):
        def watch(self, message, context, call_next):
            reply = super().watch(message, context, call_next)
            record = reply.content.config_records.get(SECURE, {})
            if record.get("stage") == "unmask" and context.node_config["partition-id"] == 4:
                record["shares"] = [bytes(66), *record["shares"][1:]]
            return reply

    clear = Federation(num_nodes=6).run(FedAvg(**options()), num_rounds=1)
    secure = Lying().run(SecureSums(FedAvg(**options())), num_rounds=1)
    assert farthest(clear.arrays, secure.arrays) < TOLERANCE
    assert "client 4 is left out from the stage 'unmask'" in caplog.text
    assert "its share of a secret of client 0 does not fit" in caplog.text


def test_who_was_lost_is_told_and_takes_part_again(caplog):
    secure = SecureFederation(lost={(1, "masks"): {5}})
    secure.run(SecureSums(FedAvg(**options())), num_rounds=2)
    assert "client 5 is left out from the stage 'masks' of the secure sum on" in caplog.text
    assert secure.statuses(1)["5"] == "failed"
    assert secure.statuses(2)["5"] == "ok"


def test_a_rounds_record_has_those_who_were_lost_before_the_model_was_sent():
    lost = {(1, "keys"): {1}, (1, "shares"): {4}, (2, "unmask"): {0}}
    federation = SecureFederation(num_nodes=9, lost=lost)
    federation.run(SecureSums(FedAvg(**options())), num_rounds=2)
    assert {c for c, status in federation.statuses(1).items() if status == "failed"} == {"1", "4"}
    assert federation.reasons(1)["1"].startswith("ConnectionError: lost")
    assert set(federation.statuses(2).values()) == {"ok"}


@pytest.mark.parametrize("stage", ["keys", "shares", "masks", "agree", "unmask"])
def test_below_the_threshold_the_round_fails_and_says_who_was_lost(stage):
    secure = SecureFederation(lost={(1, stage): {0, 1, 2, 3}})
    with pytest.raises(RoundFailed, match=r"round 1: .*lost were 0, 1, 2 and others.*lost") as told:
        secure.run(SecureSums(FedAvg(**options())))
    assert len(str(told.value).splitlines()) == 1


@pytest.fixture
def reports(monkeypatch):
    """What clients remember of their statistics, by order of their reports."""
    from fedcurv.clients import curvature

    told, plain = [], curvature.reported

    def reported(*arguments):
        found = plain(*arguments)
        told.append(found.curvature)
        return found

    monkeypatch.setattr(curvature, "reported", reported)
    return told


def test_own_terms_come_off_the_sum_to_the_last_bit(reports):
    federation = SecureFederation(lost={(2, "masks"): {3}})
    federation.run(SecureSums(fedcurv()), num_rounds=4)
    by_round = {r: [v for v in federation.visits if v.server_round == r] for r in (1, 2, 3, 4)}
    told = iter(reports)
    terms = {r: {v.partition: next(told) for v in visits} for r, visits in by_round.items()}
    for server_round in (2, 3, 4):
        for visit in by_round[server_round]:
            there = terms[server_round - 1]
            summed = set(there) - ({3} if server_round == 3 else set())
            others = [there[p] for p in summed if p != visit.partition]
            for name, precision in visit.precision.items():
                # exact in float64, in any order
                expected = sum(one.precision[name] for one in others)
                assert expected.dtype == torch.float64
                assert torch.equal(precision, expected.float())
                weighted = sum(one.weighted_parameters[name] for one in others)
                weighted = torch.where(expected > 0, weighted, 0)
                assert torch.equal(visit.weighted_parameters[name], weighted.float())


def test_the_sums_travel_in_whole_numbers_of_32_bits_where_they_are_large():
    class Wide(SecureFederation):
        def client_app(self):
            app = ClientApp(mods=self.mods)
            app.train()(partial(answer_with_statistics, self))
            return app

    arrays = ArrayRecord({"w": Array(np.zeros(300, np.float32))})
    federation, seen = Wide(), []
    federation.seen = seen
    strategy = SecureSums(fedcurv())
    served_on(LocalGrid(federation.client_app(), 6), lambda grid: start(strategy, grid, arrays))
    assert [dtypes for _, dtypes in seen[::6]] == [None, "float64", "float64"]
    down = [r.clients[0].down.get("fedcurv.precision") for r in _rounds_of(strategy, federation)]
    assert down[1] > 300 * 8
    assert down[2] < 300 * 4 + 200


def _rounds_of(strategy, federation):
    rounds = []
    arrays = ArrayRecord({"w": Array(np.zeros(300, np.float32))})
    strategy = SecureSums(fedcurv())
    served_on(
        LocalGrid(federation.client_app(), 6),
        lambda grid: start(strategy, grid, arrays, on_round=lambda r: rounds.append(r)),
    )
    return rounds[1:]


def answer_with_statistics(federation, message, context):
    from fedcurv.strategies.wire.records import add_report

    sums = message.content.array_records.get("fedcurv.precision")
    federation.seen.append((context.node_id, None if sums is None else sums["w"].dtype))
    partition = int(context.node_config["partition-id"])
    content = RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(np.full(300, partition + 1, np.float32))}),
            "metrics": MetricRecord({"num-examples": 2}),
        }
    )
    statistics = ArrayRecord({"w": Array(np.full(300, 0.5 + partition, np.float32))})
    return Message(
        add_report(content, context, statistics, statistics, message_id="") or content,
        reply_to=message,
    )


def test_what_leaves_a_client_is_noise_and_names():
    federation = SecureFederation()
    federation.run(SecureSums(fedcurv()), num_rounds=2)
    replies = [r for (_, stage, _), r in federation.replies.items() if stage == "masks"]
    assert len(replies) == 12
    for reply in replies:
        assert set(reply.content) == {"fedcurv", SECURE, MASKED}
        assert set(reply.content["fedcurv"]) == {"client-id"}
    data = b"".join(r.content[MASKED]["words"].numpy().tobytes() for r in replies)
    assert chi_square(data) < 400


def test_secrets_end_with_the_round_and_those_of_the_lost_with_the_next_message():
    federation = SecureFederation(lost={(2, "masks"): {5}})
    federation.run(SecureSums(FedAvg(**options())), num_rounds=2)
    for partition, context in federation.contexts.items():
        memory = context.state["fedcurv.secure"]
        if partition != 5:
            assert set(memory) == {"federation", "session", "number", "stage"} | EMPTY
            assert memory["stage"] == "over"
    federation.lost = {}
    plain = SecureSumsMod(plain=True)
    question = federation.replies[(1, "masks", 5)]
    evaluation = Message(RecordDict(), reply_to=question)
    evaluation.metadata.message_type = "evaluate"
    plain(evaluation, federation.contexts[5], lambda message, context: message)
    assert federation.contexts[5].state["fedcurv.secure"]["stage"] == "over"


# fields that hold nothing
EMPTY = {
    *("sealing_private", "masking_private", "agreeing_private", "own_secret", "members"),
    *("index", "threshold", "binding"),
}


def test_a_server_without_secure_sums_gets_nothing_unless_the_owner_says_so():
    with pytest.raises(RoundFailed, match="expected a server with SecureSums, got one that wants"):
        SecureFederation().run(FedAvg(**options()))
    clear = Federation(num_nodes=6).run(FedAvg(**options()))
    for mod, said in ((True, {}), (None, {}), (None, {"secure-sums": "no"})):
        federation = SecureFederation(mod=SecureSumsMod(plain=mod), node_config=said)
        assert farthest(clear.arrays, federation.run(FedAvg(**options())).arrays) == 0
    federation = SecureFederation(mod=SecureSumsMod(plain=None), node_config={"secure-sums": True})
    with pytest.raises(RoundFailed, match="expected a server with SecureSums"):
        federation.run(FedAvg(**options()))


def test_the_environment_is_the_owners_word_too(monkeypatch):
    monkeypatch.setenv("FEDCURV_SECURE_SUMS", "1")
    with pytest.raises(RoundFailed, match="expected a server with SecureSums"):
        SecureFederation(mod=SecureSumsMod(plain=None)).run(FedAvg(**options()))


def test_clients_without_the_mod_are_named_and_the_others_go_on(caplog):
    with pytest.raises(RoundFailed, match=r"does its ClientApp have mods=\[fedcurv.clients.sec"):
        Federation(num_nodes=6).run(SecureSums(FedAvg(**options())))

    class Mixed(SecureFederation):
        def watch(self, message, context, call_next):
            is_training = message.metadata.message_type == "train"
            if is_training and context.node_config["partition-id"] == 2:
                return self.train(message, context)
            return super().watch(message, context, call_next)

    caplog.clear()
    Mixed().run(SecureSums(FedAvg(**options())), num_rounds=1)
    assert "client 2 is left out from the stage 'keys'" in caplog.text


def test_another_version_of_the_protocol_is_refused_on_either_side(monkeypatch):
    def other(message, context, call_next):
        message.content[SECURE]["protocol-version"] = 1
        return call_next(message, context)

    federation = SecureFederation()
    federation.mods.insert(0, other)
    with pytest.raises(RoundFailed, match="expected secure sums in version 2, got 1"):
        federation.run(SecureSums(FedAvg(**options())))

    def answers(message, context, call_next):
        reply = call_next(message, context)
        reply.content[SECURE]["protocol-version"] = 1
        return reply

    federation = SecureFederation()
    federation.mods.insert(0, answers)
    with pytest.raises(RoundFailed, match="expected secure sums in version 2, got 1"):
        federation.run(SecureSums(FedAvg(**options())))


@pytest.mark.parametrize(
    "strategy",
    [Krum(), Bulyan(), FedMedian(), FedTrimmedAvg(), QFedAvg(0.1), FedNova()],
    ids=lambda s: type(s).__name__,
)
def test_strategies_that_must_see_single_replies_are_refused(strategy):
    with pytest.raises(TypeError, match=r"a strategy that averages, got .*single replies"):
        SecureSums(strategy)


def test_what_bounds_single_replies_is_refused():
    with pytest.raises(ValueError, match=r"secure_sums=True\) in SecureSums, got secure_sums=Fal"):
        SecureSums(FedCurv(strength=0.1))
    for bound in ({"max_precision": 3.0}, {"max_examples": 100}):
        with pytest.raises(ValueError, match="bound what one reply may hold"):
            SecureSums(fedcurv(**bound))


def test_the_loops_own_bound_is_refused_with_no_advice_that_cannot_be_followed():
    with pytest.raises(TypeError, match="SecureSums checks its replies itself, and has no such b"):
        SecureFederation().run(SecureSums(fedcurv()), max_examples=100)
    with pytest.raises(TypeError, match=r"itself: FedCurv\(..., max_examples=...\)"):
        SecureFederation().run(FedCurv(strength=0.1), max_examples=100)


def test_a_client_that_is_lost_counts_once_whatever_the_loop_calls_its_node(monkeypatch):
    """A node that did not say who it is when it was asked tells it with its keys."""
    monkeypatch.setattr(OrderedGrid, "known", lambda grid: {})
    monkeypatch.setattr(OrderedGrid, "client_id", lambda grid, node: f"node-{node}")
    federation = SecureFederation(num_nodes=9, lost={(1, "shares"): {4}, (1, "masks"): {1}})
    federation.run(SecureSums(FedAvg(**options())), num_rounds=1)
    assert len(federation.statuses(1)) == 9
    assert sorted(federation.statuses(1).values()) == ["failed"] * 2 + ["ok"] * 7


def test_a_round_that_fails_tells_once_how_many_were_lost():
    federation = SecureFederation(lost={(1, "shares"): {0, 1, 2}})
    with pytest.raises(
        RoundFailed, match="and 4 are needed; lost were 0, 1, 2; client 0: "
    ) as told:
        federation.run(SecureSums(FedAvg(**options())), num_rounds=1)
    assert str(told.value).count("lost were") == 1
    assert "were lost" not in str(told.value)


class WronglyCommitted(SecureFederation):
    """Client 4 names another secret than the one whose shares it gives, in one round."""

    number = 2

    def watch(self, message, context, call_next):
        reply = super().watch(message, context, call_next)
        record = reply.content.config_records.get(SECURE, {}) if reply.has_content() else {}
        where = record.get("stage"), record.get("number"), context.node_config["partition-id"]
        if where == ("keys", self.number, 4):
            record["commitment"] = bytes(32)
        return reply


@pytest.mark.parametrize("own_loop", [False, True])
@pytest.mark.parametrize("name", ["FedAvg", "FedCurv"])
def test_a_client_that_shares_another_secret_than_it_named_spoils_one_round(name, own_loop, caplog):
    federation = WronglyCommitted(num_nodes=9)
    strategy = SecureSums(STRATEGIES[name]())
    federation.run(strategy, num_rounds=4, own_loop=own_loop)
    assert list(strategy.left_out) == ["4"]
    assert "client 4 has shared another secret than the one it had named" in caplog.text
    # what it spoilt is not in the model, and the next rounds do without it
    assert {p for r, stage, p in federation.replies if (r, stage) == (2, "masks")} == set(range(9))
    for later in (3, 4):
        there = {p for r, stage, p in federation.replies if (r, stage) == (later, "masks")}
        assert there == set(range(9)) - {4}
    assert "left out since then: round 2: client 4" in caplog.text
    saved = SecureSums(STRATEGIES[name]())
    saved.load_state_dict(strategy.state_dict())
    assert saved.left_out == strategy.left_out


def test_a_round_that_a_client_has_spoilt_leaves_the_model_as_it_was():
    federation = WronglyCommitted(num_nodes=9)
    both = federation.run(SecureSums(FedAvg(**options())), num_rounds=2)
    one = SecureFederation(num_nodes=9).run(SecureSums(FedAvg(**options())), num_rounds=1)
    assert farthest(one.arrays, both.arrays) == 0
    assert list(both.train_metrics_clientapp) == [1]


def test_differential_privacy_is_refused_inside_and_outside():
    private = DifferentialPrivacyServerSideFixedClipping(FedAvg(**options()), 0.1, 1.0, 6)
    with pytest.raises(TypeError, match="a strategy that averages"):
        SecureSums(private)
    around = DifferentialPrivacyServerSideFixedClipping(
        SecureSums(FedAvg(**options())), 0.1, 1.0, 6
    )
    for own_loop in (False, True):
        with pytest.raises(TypeError, match="SecureSums without differential privacy"):
            SecureFederation().run(around, own_loop=own_loop)


def test_an_own_start_is_refused():
    class WithItsOwnStart(FedAvg):
        def start(self, *args, **kwargs):
            return super().start(*args, **kwargs)

    with pytest.raises(TypeError, match="overrides start, which SecureSums around it"):
        SecureSums(WithItsOwnStart())


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"smallest_group": 1}, "smallest_group must be a whole number >= 2, got 1"),
        ({"threshold": 0.5}, "threshold must be above 1/2 and at most 1, got 0.5"),
        ({"threshold": float("nan")}, "threshold must be above 1/2"),
        ({"threshold": 1.1}, "threshold must be above 1/2"),
        ({"neighbours": 1}, "neighbours must be a whole number >= 2, got 1"),
        ({"stage_timeout": 0}, "stage_timeout must be > 0, in seconds, got 0"),
    ],
)
def test_numbers_that_cannot_work_are_refused(option, says):
    with pytest.raises(ValueError, match=says):
        SecureSums(FedAvg(), **option)


def test_too_few_clients_and_too_small_a_group_fail_in_one_line():
    with pytest.raises(RoundFailed, match="2 clients sent their keys, and a group of 3"):
        SecureFederation(num_nodes=2).run(SecureSums(FedAvg(**options())))
    federation = SecureFederation(node_config={"secure-group": 7})
    with pytest.raises(RoundFailed, match="a group of 7 at least, got 6 that are members"):
        federation.run(SecureSums(FedAvg(**options())))
    with pytest.raises(ValueError, match="smallest_group must be a whole number >= 2, got 1"):
        SecureSumsMod(smallest_group=1)


@pytest.mark.parametrize(
    ("said", "strategy", "says"),
    [
        ({"secure-neighbours": 5}, {"neighbours": 4}, "5 neighbours of 6 members at least, got 4"),
        ({}, {"neighbours": 4}, "5 neighbours of 6 members at least, got 4"),
        ({"secure-threshold": 0.9}, {}, "a threshold of 5 of 5 neighbours at least, got 4"),
        ({}, {"threshold": 0.6}, "a threshold of 4 of 5 neighbours at least, got 3"),
        ({"secure-threshold": 0.5}, {}, "smallest_threshold must be above 1/2"),
        ({"secure-neighbours": "2"}, {}, "fewest_neighbours must be a whole number >= 2"),
    ],
)
def test_a_nodes_owner_has_floors_for_neighbours_and_threshold(said, strategy, says):
    with pytest.raises(RoundFailed, match=says):
        SecureFederation(node_config=said).run(SecureSums(FedAvg(**options()), **strategy))


def test_a_nodes_owner_may_allow_fewer_neighbours_and_a_lower_threshold():
    few = SecureSums(FedAvg(**options()), neighbours=4, threshold=0.6)
    for federation in (
        SecureFederation(node_config={"secure-neighbours": 4, "secure-threshold": 0.51}),
        SecureFederation(mod=SecureSumsMod(fewest_neighbours=4, smallest_threshold=0.51)),
    ):
        federation.run(few, num_rounds=1)
    for option in ({"fewest_neighbours": 1}, {"smallest_threshold": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(option))):
            SecureSumsMod(**option)


def test_all_messages_must_carry_one_model():
    class TwoModels(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            messages = list(super().configure_train(server_round, arrays, config, grid))
            zeros = {n: Array(np.zeros_like(a.numpy())) for n, a in arrays.items()}
            other = RecordDict({**messages[0].content, "arrays": ArrayRecord(zeros)})
            messages[0].content = other
            return messages

    with pytest.raises(Exception, match="expected the same arrays for all clients"):
        SecureFederation().run(SecureSums(TwoModels(**options())))


@pytest.mark.parametrize("what", ["config", "message_type", "group_id", "records"])
def test_all_messages_must_say_the_same(what):
    class AnotherForOne(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            messages = list(super().configure_train(server_round, arrays, config, grid))
            one = messages[1]
            if what == "config":
                lower = ConfigRecord({**one.content["config"], "lr": 0.0})
                one.content = RecordDict({**one.content, "config": lower})
            elif what == "records":
                one.content = RecordDict({**one.content, "more": ArrayRecord()})
            else:
                setattr(one.metadata, what, "train.another")
            return messages

    with pytest.raises(
        StrategyFailed, match="expected the same records and type of message for all"
    ):
        SecureFederation().run(SecureSums(AnotherForOne(**options())))


@pytest.mark.parametrize("what", ["config", "message_type"])
def test_of_clients_that_are_told_different_things_a_server_gets_noise(what, monkeypatch):
    """Else it would let all but one train with a step of zero, and read that one."""
    plain = secure_sums._common_digest
    monkeypatch.setattr(secure_sums, "_common_digest", lambda messages: plain(messages[:1]))
    truth = {}

    class Cheating(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            for number, message in enumerate(
                super().configure_train(server_round, arrays, config, grid)
            ):
                if number != 3 and what == "config":
                    lr = ConfigRecord({"lr": 0.0})
                    message.content = RecordDict({**message.content, "config": lr})
                elif number != 3:
                    message.metadata.message_type = "train.another"
                yield message

    app = ClientApp(mods=SecureFederation().mods)

    def reply(message, step, partition):
        truth[partition] = message.content["arrays"]["w"].numpy() + np.float32(step)
        arrays = ArrayRecord({"w": Array(truth[partition])})
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @app.train()
    def train(message, context):
        step = message.content["config"].get("lr", 1.0)
        return reply(message, step, context.node_config["partition-id"])

    @app.train("another")
    def another(message, context):
        return reply(message, 0.0, context.node_config["partition-id"])

    arrays = ArrayRecord({"w": Array(np.zeros(300, np.float32))})
    strategy = SecureSums(Cheating(**options()))
    try:
        result = served_on(
            LocalGrid(app, 6), lambda grid: start(strategy, grid, arrays, num_rounds=1)
        )
    except RoundFailed as error:  # as a weight it is rarely one that may be
        assert "num-examples" in str(error) or "a mask was left on it" in str(error)
    else:
        assert np.abs(result.arrays["w"].numpy() * 6 - 1).max() > 1
    assert sorted(value[0] for value in truth.values()) == [0, 0, 0, 0, 0, 1]


def test_a_server_that_tells_nodes_of_two_lists_of_survivors_gets_no_shares(monkeypatch):
    """It takes whatever they sign, and hands it on."""
    plain = Asking.ask

    def ask(asking, questions, kind, take, names):
        if kind is Agreed:
            for node, asked in list(questions.items())[:3]:
                fewer = {"alive": asked.alive[:-1], "dead": asked.alive[-1:]}
                questions[node] = dataclasses.replace(asked, **fewer)
        plain(asking, questions, kind, take, names)

    def add_agreed(secure_round, client_id, agreed):
        secure_round._signatures[secure_round._members.index(client_id)] = agreed.signature

    monkeypatch.setattr(Asking, "ask", ask)
    monkeypatch.setattr(SecureRound, "add_agreed", add_agreed)
    federation = SecureFederation()
    says = "0 neighbours of client 0 answered at the last stage.*expected a signature by member 3"
    with pytest.raises(RoundFailed, match=says):
        federation.run(SecureSums(FedAvg(**options())), num_rounds=1)
    assert not [stage for _, stage, _ in federation.replies if stage == "unmask"]


def test_records_of_equal_text_and_other_types_have_other_digests():
    values = [1, 1.0, True, "1", b"1", "31", [1], ["1"], [b"1"], "true", '{"bytes": "31"}']

    def digest(records, **metadata):
        question = message_with(None)
        question.content = RecordDict(records)
        for name, value in metadata.items():
            setattr(question.metadata, name, value)
        return digest_of_message(question)

    digests = {digest({"config": ConfigRecord({"value": v})}) for v in values}
    digests |= {digest({"config": MetricRecord({"value": v})}) for v in (1, 1.0, [1])}
    digests |= {digest({"other": ConfigRecord({"value": 1})})}
    digests |= {digest({"config": ConfigRecord({"value": 1})}, message_type="train.more")}
    assert len(digests) == len(values) + 5
    plain = {"config": ConfigRecord({"value": 1})}
    secure = {**plain, SECURE: ConfigRecord({"own": 1})}
    assert digest(secure) == digest(plain)


def answering(make_content, federation=None):
    """Return an app whose answer is made of the partition and what came."""
    federation = federation or SecureFederation()
    app = ClientApp(mods=federation.mods)

    @app.train()
    def train(message, context):
        partition = int(context.node_config["partition-id"])
        return Message(make_content(partition, message.content), reply_to=message)

    return app


def results_of(make_content, arrays, num_rounds=1, strategy=None):
    strategy = strategy or SecureSums(FedAvg(**options()))
    return served_on(
        LocalGrid(answering(make_content), 6),
        lambda grid: start(strategy, grid, arrays, num_rounds=num_rounds),
    )


def test_metrics_are_means_however_large_and_a_client_with_one_that_is_nan_is_left_out(caplog):
    def content(partition, received):
        metrics = {
            "num-examples": 1 + partition,
            "loss": float("nan") if partition == 2 else float(partition),
            "by-class": [1.0 * partition, 2.0],
            "count": partition,
            "time": 1.7e12 * partition,
            "small": 1e-12 * partition,
        }
        return RecordDict({"arrays": received["arrays"], "metrics": MetricRecord(metrics)})

    arrays = ArrayRecord({"w": Array(np.ones(3, np.float32))})
    metrics = results_of(content, arrays).train_metrics_clientapp[1]
    weights = np.arange(1.0, 7.0)
    known = np.arange(6) != 2
    mean = np.average(np.arange(6)[known], weights=weights[known])
    assert metrics["loss"] == pytest.approx(mean, rel=1e-14)
    assert metrics["count"] == pytest.approx(mean, rel=1e-14)
    assert metrics["by-class"] == pytest.approx([metrics["count"], 2.0], rel=1e-14)
    assert metrics["time"] == pytest.approx(1.7e12 * mean, rel=1e-14)
    assert metrics["small"] == pytest.approx(1e-12 * mean, rel=1e-5)
    assert "client 2 is left out from the stage 'masks'" in caplog.text
    assert "expected the metric 'loss' finite" in caplog.text


def test_counters_come_back_whole_masks_as_they_were_and_types_stay():
    arrays = ArrayRecord(
        {
            "half": Array(np.ones(300, np.float16)),
            "double": Array(np.ones((2, 2), np.float64)),
            "bn.num_batches_tracked": Array(np.array(5)),
            "mask": Array(np.array([0.0, -np.inf], np.float32)),
            "none": Array(np.zeros((0, 3), np.float32)),
        }
    )

    def content(partition, received):
        record = dict(received["arrays"])
        record["half"] = Array(record["half"].numpy() + np.float16(partition))
        record["double"] = Array(record["double"].numpy() * partition)
        record["bn.num_batches_tracked"] = Array(np.array(12))
        metrics = MetricRecord({"num-examples": 10})
        return RecordDict({"arrays": ArrayRecord(record), "metrics": metrics})

    result = results_of(content, arrays).arrays
    assert {n: a.dtype for n, a in result.items()} == {n: a.dtype for n, a in arrays.items()}
    np.testing.assert_allclose(result["half"].numpy(), 3.5)
    np.testing.assert_allclose(result["double"].numpy(), 2.5, rtol=1e-7)
    assert result["bn.num_batches_tracked"].numpy() == 12
    np.testing.assert_array_equal(result["mask"].numpy(), arrays["mask"].numpy())
    assert result["none"].numpy().shape == (0, 3)


def diverging(partition, received):
    arrays = {n: Array(a.numpy() * np.nan) for n, a in received["arrays"].items()}
    metrics = MetricRecord({"num-examples": 1})
    return RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})


def huge(partition, received):
    arrays = {n: Array(a.numpy() * np.float32(-2e19)) for n, a in received["arrays"].items()}
    metrics = MetricRecord({"num-examples": 1})
    return RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})


def wrong_shape(partition, received):
    arrays = ArrayRecord({"w": Array(np.zeros(4, np.float32))})
    return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})


def no_weight(partition, received):
    metrics = MetricRecord({"num-examples": 0})
    return RecordDict({"arrays": received["arrays"], "metrics": metrics})


def no_arrays(partition, received):
    return RecordDict({"metrics": MetricRecord({"num-examples": 1})})


def another_metric(partition, received):
    metrics = MetricRecord({"num-examples": 1, "own": 1.0})
    return RecordDict({"arrays": received["arrays"], "metrics": metrics})


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (diverging, "got NaN or inf in 'w'"),
        (wrong_shape, r"'w': expected the shape \(3,\) that was sent, got \(4,\)"),
        (
            no_weight,
            r"expected a number > 0 as 'num-examples' in the metrics, from 9e-13 to 1e\+12",
        ),
        (
            huge,
            r"expected numbers up to 2e\+19, times the weight in arrays, got larger ones in 'w'",
        ),
        (no_arrays, "expected one ArrayRecord and one MetricRecord"),
        (another_metric, "metrics and statistics of the same names and shapes as the other"),
    ],
)
def test_a_reply_that_is_not_fit_is_left_out_and_told(bad, says, caplog):
    def content(partition, received):
        if partition == 1:
            return bad(partition, received)
        arrays = {n: Array(a.numpy() + np.float32(2)) for n, a in received["arrays"].items()}
        metrics = MetricRecord({"num-examples": 3})
        return RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})

    result = results_of(content, ArrayRecord({"w": Array(np.ones(3, np.float32))}))
    np.testing.assert_allclose(result.arrays["w"].numpy(), 3.0)
    assert "client 1 is left out from the stage 'masks'" in caplog.text
    assert re.search(says, caplog.text)


@pytest.mark.parametrize("secret", [-7316254.25, [7316254.25, 3.0]])
def test_errors_that_leave_a_node_have_none_of_its_numbers(secret, caplog):
    def content(partition, received):
        weight = secret if partition == 1 else 1.0
        metrics = MetricRecord({"num-examples": weight})
        return RecordDict({"arrays": received["arrays"], "metrics": metrics})

    results_of(content, ArrayRecord({"w": Array(np.ones(3, np.float32))}))
    assert "client 1 is left out from the stage 'masks'" in caplog.text
    assert "7316254" not in caplog.text


def test_a_server_weights_by_what_the_nodes_owners_allow():
    arrays = ArrayRecord({"w": Array(np.ones(3, np.float32))})
    trained = []

    def content(partition, received):
        trained.append(partition)
        metrics = MetricRecord({"num-examples": 2, "has-rare": 1 + partition})
        return RecordDict({"arrays": received["arrays"], "metrics": metrics})

    def run(mod):
        app = answering(content, SecureFederation(mod=mod))
        strategy = SecureSums(FedAvg(weighted_by_key="has-rare", **options()))
        return served_on(
            LocalGrid(app, 6), lambda grid: start(strategy, grid, arrays, num_rounds=1)
        )

    with pytest.raises(RoundFailed, match="weighted by num-examples, got 'has-rare'"):
        run(SecureSumsMod())
    assert not trained
    run(SecureSumsMod(weight_keys=["num-examples", "has-rare"]))
    assert len(trained) == 6
    for keys in ("num-examples", ()):
        with pytest.raises(ValueError, match="weight_keys must be names of metrics"):
            SecureSumsMod(weight_keys=keys)


def test_numbers_that_outgrow_their_scale_are_clipped_told_and_fit_in_the_next_round(caplog):
    steps = iter([1.0] * 6 + [1000.0] * 6 + [1000.0] * 6)

    def content(partition, received):
        arrays = {
            n: Array(a.numpy() + np.float32(next(steps))) for n, a in received["arrays"].items()
        }
        metrics = MetricRecord({"num-examples": 1})
        return RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})

    arrays = ArrayRecord({"w": Array(np.zeros(300, np.float32))})
    strategy = SecureSums(FedAvg(**options()))
    result = results_of(content, arrays, 1, strategy)
    np.testing.assert_allclose(result.arrays["w"].numpy(), 1.0)
    assert not [r for r in caplog.records if "clipped" in r.message]
    result = results_of(content, result.arrays, 2, strategy)
    told = [r.message for r in caplog.records if "clipped" in r.message]
    assert len(told) == 1
    assert "1800 numbers were clipped" in told[0]
    assert "the next round's scales reach 512 times as far at least" in told[0]
    assert result.arrays["w"].numpy()[0] > 1001


def test_the_first_round_has_words_of_64_bits_and_later_ones_of_32():
    arrays = ArrayRecord({"w": Array(np.zeros(1000, np.float32))})
    sizes = []

    class Counting(SecureSums):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            sizes.append(max(len(r.content[MASKED]["words"].data) for r in replies))
            return super().aggregate_train(server_round, replies)

    def content(partition, received):
        moved = received["arrays"]["w"].numpy() + np.float32(partition)
        metrics = MetricRecord({"num-examples": 1})
        return RecordDict({"arrays": ArrayRecord({"w": Array(moved)}), "metrics": metrics})

    results_of(content, arrays, 3, Counting(FedAvg(**options())))
    assert 8000 < sizes[0] < 8300
    assert all(4000 < size < 4300 for size in sizes[1:])


@pytest.mark.parametrize("name", ["FedAvg", "FedCurv", "FedCurv around FedAdam"])
def test_a_run_that_is_resumed_is_the_one_that_was_never_ended(name, tmp_path):
    whole = SecureFederation().run(SecureSums(STRATEGIES[name]()), num_rounds=4)
    grid = LocalGrid(SecureFederation().client_app(), 6)  # whose nodes remember
    arrays = SecureFederation().pack(new_model())
    for num_rounds in (2, 4):
        strategy = SecureSums(STRATEGIES[name]())
        serve = partial(
            start, strategy, arrays=arrays, checkpoint=tmp_path, num_rounds=num_rounds, resume=True
        )
        result = served_on(grid, lambda grid, serve=serve: serve(grid))
    assert farthest(whole.arrays, result.arrays) < TOLERANCE
    saved = strategy.state_dict()
    assert set(saved) == {"federation", "bounds", "left-out", "sums-plan", "strategy"}
    assert "weight" in saved["bounds"][ARRAYS]
    if name != "FedAvg":
        assert "weight" in saved["bounds"][PRECISION_SUMS]


def test_a_server_that_starts_anew_may_begin_again_at_nodes_that_are_still_there():
    federation = SecureFederation()
    grid = LocalGrid(federation.client_app(), 6)
    arrays = federation.pack(torch.nn.Linear(4, 3))
    for _ in range(2):
        strategy = SecureSums(FedAvg(**options()))
        served_on(grid, lambda grid, s=strategy: start(s, grid, arrays, num_rounds=2))


def test_evaluation_goes_through_as_it_is():
    federation = SecureFederation()
    app = federation.client_app()

    @app.evaluate()
    def evaluate(message, context):
        metrics = MetricRecord({"num-examples": 1, "accuracy": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    strategy = SecureSums(FedAvg(min_train_nodes=1, min_available_nodes=1, min_evaluate_nodes=1))
    arrays = federation.pack(torch.nn.Linear(4, 3))
    result = served_on(LocalGrid(app, 6), lambda grid: start(strategy, grid, arrays, num_rounds=1))
    assert result.evaluate_metrics_clientapp[1]["accuracy"] == pytest.approx(0.5)


def test_what_the_wrapped_strategy_has_is_reached():
    strategy = SecureSums(fedcurv())
    assert strategy.strength == 0.1
    strategy.fraction_train = 0.5
    assert strategy.strategy.strategy.fraction_train == 0.5


def test_the_summary_names_the_settings(caplog):
    caplog.set_level(logging.INFO)
    SecureSums(fedcurv(), smallest_group=5).summary()
    assert "SecureSums around FedCurv" in caplog.text
    assert "smallest group (5) | threshold (0.67) | neighbours (64)" in caplog.text


def test_the_mods_name_for_its_place_in_the_state_is_its_own():
    assert mod_module._PLACE not in ("fedcurv.own", "fedcurv.kept-1", "fedcurv.kept-2")


def test_another_mod_behind_it_acts_before_the_masks():
    noise = LocalDpMod(clipping_norm=1e6, sensitivity=1e-12, epsilon=1.0, delta=0.1)
    clear = Federation(num_nodes=6).run(FedAvg(**options()))
    federation = SecureFederation()
    federation.mods.append(noise)
    secure = federation.run(SecureSums(FedAvg(**options())))
    assert farthest(clear.arrays, secure.arrays) < TOLERANCE
