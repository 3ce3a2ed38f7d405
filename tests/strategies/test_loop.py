import gc
import math
import random
import time
import weakref

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
)

from fedcurv.clients import ClientCurvature
from fedcurv.simulations.runners.local import LocalGrid
from fedcurv.strategies import FedCurv, RoundFailed, StrategyFailed, start
from fedcurv.strategies.flower_private import task_identity
from fedcurv.strategies.loop import ordered_grid
from fedcurv.strategies.loop.ordered_grid import OrderedGrid
from fedcurv.strategies.wire.records import CONFIG, PRECISION, WEIGHTED, unpack_client_id
from tests.federation import Federation, crash, new_model, options, same_bits, served_on


class RemoteGrid(LocalGrid):
    """A LocalGrid that behaves like Flower's engines: random node ids, replies in any order.

    Attributes:
        held: numbers of replies that each look took away.
    """

    replies = None  # nothing like it there

    def __init__(self, client_app: ClientApp, num_nodes: int, seed: int, **more) -> None:
        super().__init__(client_app, num_nodes, **more)
        self.random = random.Random(seed)
        contexts = list(self.contexts.values())
        self.random.shuffle(contexts)
        self.contexts = {self.random.getrandbits(63): context for context in contexts}
        for node_id, context in self.contexts.items():
            context.node_id = node_id
        self.arrived: set[str] = set()
        self.held: list[int] = []

    def pull_messages(self, message_ids):
        """At each look one more reply has arrived."""
        if coming := sorted(self._replies.keys() - self.arrived):
            self.arrived.add(self.random.choice(coming))
        found = super().pull_messages(i for i in message_ids if i in self.arrived)
        self.held.append(len(found))
        return found

    def send_and_receive(self, messages, *, timeout=None):
        pending = set(self.push_messages(messages))
        replies = []
        while pending & self._replies.keys():
            replies += self.pull_messages(pending)
        return replies


@pytest.fixture(autouse=True)
def look_often(monkeypatch):
    monkeypatch.setattr(ordered_grid, "_FIRST_WAIT_S", 1e-4)
    monkeypatch.setattr(ordered_grid, "_LONGEST_WAIT_S", 1e-3)


def run_on_random_names(federation: Federation, strategy, name_seed: int, **more):
    grid = RemoteGrid(federation.client_app(), federation.num_nodes, name_seed)
    with task_identity(run_id=1, node_id=1):
        return start(
            strategy,
            grid,
            arrays=ArrayRecord(new_model().state_dict()),
            on_round=federation.rounds.append,
            **more,
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda: FedAvg(**options(fraction_train=0.4)),
        lambda: FedAdam(**options(fraction_train=0.4)),
        lambda: FedCurv(strength=0.3, **options(fraction_train=0.4)),
    ],
)
def test_one_seed_gives_the_same_bits_whatever_the_node_ids_and_the_order_of_replies(make):
    results, sampled = [], []
    for name_seed in (1, 2):
        federation = Federation(num_nodes=12)
        results.append(run_on_random_names(federation, make(), name_seed, num_rounds=4, seed=7))
        sampled.append([[c.client_id for c in r.clients] for r in federation.rounds])
    assert same_bits(results[0].arrays, results[1].arrays)
    assert sampled[0] == sampled[1]
    assert len({tuple(sorted(clients)) for clients in sampled[0]}) > 2
    other = Federation(num_nodes=12)
    run_on_random_names(other, make(), 1, num_rounds=4, seed=8)
    assert [[c.client_id for c in r.clients] for r in other.rounds] != sampled[0]


def test_replies_are_fetched_one_by_one_in_the_order_of_clients_as_they_are_asked_for():
    federation = Federation(num_nodes=6)
    grid = RemoteGrid(federation.client_app(), 6, seed=3)
    with task_identity(run_id=1, node_id=1):
        ordered = OrderedGrid(grid)
        ordered.learn_client_ids()
        grid.held.clear()
        content = RecordDict({CONFIG: ConfigRecord({"server-round": 1})})
        messages = [Message(content, node, "query.client_id") for node in grid.contexts]
        replies = ordered.replies(messages, timeout=None)
        first = next(replies)
        assert sum(grid.held) == 1
        ids = [unpack_client_id(reply.content) for reply in (first, *replies)]
    assert ids == [str(i) for i in range(6)]
    assert max(grid.held) == 1


def test_what_does_not_come_in_time_is_left_out_and_the_rest_is_still_fetched():
    federation = Federation(num_nodes=3)
    app = federation.client_app()
    grid = RemoteGrid(app, 3, seed=0)
    with task_identity(run_id=1, node_id=1):
        ordered = OrderedGrid(grid)
        ordered.learn_client_ids()
        original = grid.pull_messages
        lost = {}

        def pull(message_ids):
            wanted = list(message_ids)
            lost.setdefault("id", wanted[0])  # the first client's
            grid.arrived |= grid._replies.keys()
            return original(i for i in wanted if i != lost["id"])

        grid.pull_messages = pull
        messages = [Message(RecordDict(), node, "query.client_id") for node in grid.contexts]
        replies = ordered.send_and_receive(messages, timeout=0.2)
    assert [unpack_client_id(reply.content) for reply in replies] == ["1", "2"]


def test_no_two_clients_statistics_are_held_at_once():
    """The wrapped strategy gets the models alone; each P is let go before the next one comes."""
    federation, seen, most = Federation(num_nodes=5), [], []

    class Watching(LocalGrid):
        def replies(self, messages, *, timeout):
            for reply in super().replies(messages, timeout=timeout):
                if reply.metadata.message_type == "train":
                    gc.collect()
                    seen.extend(weakref.ref(array) for array in reply.content[PRECISION].values())
                    most.append(sum(array() is not None for array in seen))
                yield reply

    grid = Watching(federation.client_app(), 5)
    with task_identity(run_id=1, node_id=1):
        start(
            FedCurv(strength=0.1, **options()),
            grid,
            ArrayRecord(new_model().state_dict()),
            num_rounds=2,
        )
    assert most == [2] * 10  # a weight and a bias


def test_the_global_random_state_is_left_alone():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    Federation().run(FedAvg(**options()), seed=3)
    assert random.random() == expected


def test_client_ids_sort_by_number_and_unknown_nodes_come_last():
    federation = Federation(num_nodes=12)
    grid = RemoteGrid(federation.client_app(), 12, seed=0)
    silent = grid.contexts.popitem()
    silent[1].node_config = {}
    grid.contexts[silent[0]] = silent[1]
    with task_identity(run_id=1, node_id=1):
        ordered = OrderedGrid(grid)
        ordered.learn_client_ids()
        ids = [ordered.client_id(node_id) for node_id in ordered.get_node_ids()]
    numbers = [int(i) for i in ids[:-1]]
    assert numbers == sorted(numbers)
    assert ids[-1] == f"node-{silent[0]}"


def test_an_app_without_the_query_still_runs():
    federation = Federation()
    app = ClientApp()
    app.train()(federation.train)
    federation.client_app = lambda: app
    federation.run(FedCurv(strength=0.1, **options()))
    assert set(federation.statuses(3).values()) == {"ok"}


def test_too_few_nodes_end_the_wait_with_an_error_that_counts_them():
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"expected 9 nodes within 0\.3 s, got 4"):
        Federation().run(FedAvg(**options()), wait_for_nodes=9, wait_timeout=0.3)
    assert time.monotonic() - began < 30


def test_clients_may_be_waited_for_by_name():
    with pytest.raises(
        TimeoutError,
        match=r"all clients within 0\.3 s, got 4 \(0, 1, 2, 3\), and not client 7, client x",
    ):
        Federation().run(FedAvg(**options()), wait_for_nodes=["1", "x", "7"], wait_timeout=0.3)
    federation = Federation()
    federation.run(FedAvg(**options()), num_rounds=1, wait_for_nodes=["3", "0"])
    assert len(federation.rounds[1].clients) == 4


def test_one_name_needs_a_list_around_it():
    with pytest.raises(TypeError, match="texts, got 'kitchen'"):
        Federation().run(FedAvg(**options()), wait_for_nodes="kitchen")


def test_who_is_there_is_told_while_others_are_waited_for(caplog):
    with pytest.raises(TimeoutError):
        Federation().run(FedAvg(**options()), wait_for_nodes=6, wait_timeout=0.3)
    assert "waiting for 2 more; connected: 4 (0, 1, 2, 3)" in caplog.text


def test_a_strategy_that_wants_more_nodes_than_are_left_ends_the_run_in_time():
    """Flower's own sampling would wait for ever."""
    federation = Federation(num_nodes=3)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"waits for more nodes .* connected: 3 \(0, 1, 2\)"):
        federation.run(
            FedCurv(strength=0.1, **options(min_train_nodes=4)), num_rounds=2, wait_timeout=0.5
        )
    assert time.monotonic() - began < 30


def test_two_nodes_of_one_name_are_told(caplog):
    federation = Federation(num_nodes=3)
    grid = LocalGrid(federation.client_app(), 3)
    for context in list(grid.contexts.values())[1:]:
        context.node_config["client-id"] = "twin"
    with task_identity(run_id=1, node_id=1):
        start(FedAvg(**options()), grid, ArrayRecord(new_model().state_dict()), num_rounds=1)
    assert "several nodes say that they are client twin" in caplog.text
    assert "client 0" not in caplog.text


def twins(mode, num_rounds, tmp_path, monkeypatch):
    """Run three nodes of which two are client twin with one folder; return what was seen of it."""
    federation = Federation(num_nodes=3)
    original = ClientCurvature.__init__

    def on_disk(self, *args, **more):
        original(self, *args, **more, state_dir=tmp_path)

    monkeypatch.setattr(ClientCurvature, "__init__", on_disk)
    grid = LocalGrid(federation.client_app(), 3)
    for context in list(grid.contexts.values())[1:]:
        context.node_config["client-id"] = "twin"
    strategy, arrays = FedCurv(strength=0.1, **options()), ArrayRecord(new_model().state_dict())

    def serve(grid):
        if mode == "Flower's loop":
            return strategy.start(grid, arrays, num_rounds=num_rounds)
        return start(
            strategy, grid, arrays, num_rounds=num_rounds, on_round=federation.rounds.append
        )

    return federation, strategy, served_on(grid, serve)


def test_of_two_nodes_of_one_name_the_first_takes_part_as_if_it_were_alone(tmp_path, monkeypatch):
    federation, _, result = twins("start", 3, tmp_path / "twins", monkeypatch)
    alone = Federation(num_nodes=2).run(FedCurv(strength=0.1, **options()), num_rounds=3)
    assert same_bits(result.arrays, alone.arrays)
    for record in federation.rounds[1:]:
        assert [(c.client_id, c.status) for c in record.clients] == [
            ("0", "ok"),
            ("twin", "refused"),
            ("twin", "ok"),
        ]
        assert "several nodes say that they are client twin" in record.clients[1].reason


def test_under_flowers_own_loop_the_client_refuses_to_be_two_nodes(tmp_path, monkeypatch, caplog):
    # whoever comes first in the first round stays the client
    monkeypatch.setattr(random, "sample", lambda nodes, number: sorted(nodes)[:number])
    federation, _, result = twins("Flower's loop", 3, tmp_path / "twins", monkeypatch)
    alone = Federation(num_nodes=2).run(
        FedCurv(strength=0.1, **options()), num_rounds=3, own_loop=True
    )
    assert same_bits(result.arrays, alone.arrays)
    assert {visit.partition for visit in federation.visits} == {0, 1}
    assert "client twin: node 1002 and node 1001 both use this client id" in caplog.text


def test_a_node_that_was_started_anew_takes_the_place_of_the_one_that_is_silent(caplog):
    federation = Federation(num_nodes=2)
    app = federation.client_app()
    grid = LocalGrid(app, 2)
    dead, context = 1001, grid.contexts[1001]
    original = grid.replies

    def replies(messages, *, timeout):
        alive = [m for m in messages if m.metadata.dst_node_id != dead or 3000 not in grid.contexts]
        yield from original(alive, timeout=timeout)

    grid.replies = replies

    def restart(record):
        federation.rounds.append(record)
        if record.server_round == 1:
            grid.contexts[3000] = Context(1, 3000, context.node_config, context.state, {})

    arrays = ArrayRecord(new_model().state_dict())
    with task_identity(run_id=1, node_id=1):
        strategy = FedCurv(strength=0.1, **options())
        result = start(strategy, grid, arrays, num_rounds=3, on_round=restart)
    assert "node 3000 takes the place of node 1001" in caplog.text
    assert federation.statuses(2) == federation.statuses(3) == {"0": "ok", "1": "ok"}
    whole = Federation(num_nodes=2).run(FedCurv(strength=0.1, **options()), num_rounds=3)
    assert same_bits(result.arrays, whole.arrays)


def test_nodes_that_connect_late_are_waited_for():
    federation = Federation(num_nodes=3)
    grid = LocalGrid(federation.client_app(), 3)
    everyone, polls = dict(grid.contexts), []

    def arriving():
        polls.append(1)
        return list(everyone)[: len(polls)]

    grid.get_node_ids = arriving
    with task_identity(run_id=1, node_id=1):
        start(
            FedAvg(**options()),
            grid,
            ArrayRecord(new_model().state_dict()),
            num_rounds=1,
            wait_for_nodes=3,
            on_round=federation.rounds.append,
        )
    assert len(federation.rounds[1].clients) == 3


def test_a_node_that_says_nothing_in_time_is_missing_and_the_round_goes_on():
    federation = Federation(num_nodes=3)
    app = ClientApp()

    @app.train()
    def train(message, context):
        silent = context.node_config["partition-id"] == 1
        return None if silent else federation.train(message, context)

    federation.client_app = lambda: app
    federation.run(FedCurv(strength=0.1, **options()), timeout=60.0)
    assert sorted(federation.statuses(2).values()) == ["missing", "ok", "ok"]


def test_a_round_that_nobody_answers_is_an_error():
    federation = Federation(num_nodes=2)
    app = ClientApp()
    app.train()(lambda message, context: None)
    federation.client_app = lambda: app
    with pytest.raises(RoundFailed, match="round 1: no client replied in time"):
        federation.run(FedAvg(**options()))


def test_rounds_are_recorded_with_every_clients_part():
    federation = Federation(num_nodes=3, spoil={(2, 1): crash})
    federation.run(
        FedCurv(strength=0.1, **options()),
        num_rounds=3,
        evaluate_fn=lambda r, arrays: MetricRecord({"accuracy": r / 10}),
    )
    assert [r.server_round for r in federation.rounds] == [0, 1, 2, 3]
    assert [r.server_metrics["accuracy"] for r in federation.rounds] == [0, 0.1, 0.2, 0.3]
    assert federation.statuses(2) == {"0": "ok", "1": "failed", "2": "ok"}
    assert "ConnectionError: lost" in federation.reasons(2)["1"]
    lost = federation.rounds[2].clients[1]
    assert lost.bytes_up == 0 < lost.bytes_down
    fine = federation.rounds[3].clients[0]
    assert fine.metrics == {"num-examples": 12, "loss": 1.0}
    model = sum(p.numel() * p.element_size() for p in new_model().parameters())
    # P and Q come down with the model, P goes up with it; the rest are headers and names
    down = {"arrays": model, "config": 0, CONFIG: 0, PRECISION: model, WEIGHTED: model}
    up = {"arrays": model, "metrics": 0, CONFIG: 0, PRECISION: model}
    for got, expected in ((fine.down, down), (fine.up, up)):
        assert got.keys() == expected.keys()
        assert all(expected[name] <= size <= expected[name] + 600 for name, size in got.items())
    assert fine.bytes_down == sum(fine.down.values())
    assert fine.bytes_up == sum(fine.up.values())


def test_results_are_those_of_flowers_own_loop():
    ours, theirs = Federation(), Federation()
    evaluated = []

    def evaluate(server_round, arrays):
        evaluated.append(server_round)
        return MetricRecord({"norm": float(arrays.to_torch_state_dict()["weight"].norm())})

    mine = ours.run(FedAvg(**options()), evaluate_fn=evaluate)
    flowers = theirs.run(FedAvg(**options()), own_loop=True)
    for name, tensor in mine.arrays.to_torch_state_dict().items():
        torch.testing.assert_close(tensor, flowers.arrays.to_torch_state_dict()[name])
    assert mine.train_metrics_clientapp == flowers.train_metrics_clientapp
    assert evaluated == [0, 1, 2, 3]
    assert set(mine.evaluate_metrics_serverapp) == {0, 1, 2, 3}


def test_clients_evaluate_too():
    federation = Federation()
    app = federation.client_app()

    @app.evaluate()
    def evaluate(message: Message, context) -> Message:
        metrics = MetricRecord({"num-examples": 1, "loss": 2.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    federation.client_app = lambda: app
    strategy = FedCurv(strength=0.1, min_train_nodes=1, min_evaluate_nodes=1)
    result = federation.run(strategy)
    assert result.evaluate_metrics_clientapp[3]["loss"] == 2.5
    assert federation.rounds[3].client_metrics == {"loss": 2.5}


@pytest.mark.parametrize("spoilt", [{"num-examples": 0}, {"num-examples": float("nan")}, {}])
def test_an_evaluation_without_weight_is_refused_and_the_others_count(spoilt, caplog):
    federation = Federation(num_nodes=3)
    app = federation.client_app()

    @app.evaluate()
    def evaluate(message: Message, context) -> Message:
        partition = context.node_config["partition-id"]
        weight = spoilt if partition == 1 else {"num-examples": 5}
        metrics = MetricRecord({"loss": float(partition), **weight})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    federation.client_app = lambda: app
    strategy = FedCurv(strength=0.1, min_train_nodes=1, min_evaluate_nodes=1)
    result = federation.run(strategy, num_rounds=1)
    assert result.evaluate_metrics_clientapp[1]["loss"] == 1.0  # the mean of 0 and 2
    assert "round 1: refused the evaluation of node-1001" in caplog.text


def test_several_may_watch():
    seen = []
    Federation(num_nodes=2).run(
        FedAvg(**options()),
        num_rounds=1,
        on_round=[lambda r: seen.append(("a", r.server_round)), lambda r: seen.append("b")],
    )
    assert seen == [("a", 0), "b", ("a", 1), "b"]


def test_num_rounds_must_be_positive():
    with pytest.raises(ValueError, match="num_rounds must be >= 1, got 0"):
        Federation().run(FedAvg(**options()), num_rounds=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_rounds": math.nan}, "num_rounds must be >= 1, got nan"),
        ({"num_rounds": 2.5}, "num_rounds must be >= 1, got 2.5"),
        ({"num_rounds": True}, "num_rounds must be >= 1, got True"),
        ({"num_rounds": "3"}, "num_rounds must be >= 1, got '3'"),
        ({"checkpoint_every": math.nan}, "checkpoint_every must be >= 1, got nan"),
        ({"timeout": math.nan}, "timeout must be >= 0, in seconds, got nan"),
        ({"timeout": "3"}, "timeout must be >= 0, in seconds, got '3'"),
        ({"wait_timeout": None}, "wait_timeout must be >= 0, in seconds, got None"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused_before_anything_starts(given, message):
    federation = Federation()
    with pytest.raises(ValueError, match=message):
        federation.run(FedAvg(**options()), **given)
    assert not federation.visits


def returning(value):
    class Own(FedAvg):
        def aggregate_train(self, server_round, replies):
            return value

    return Own(**options())


def test_a_strategy_that_returns_no_model_is_told_once(caplog):
    federation = Federation()
    federation.run(returning((None, MetricRecord({"loss": 1.0}))), num_rounds=3)
    lines = [r.getMessage() for r in caplog.records if "returned no model" in r.getMessage()]
    assert lines == [
        "round 1: aggregate_train of Own returned no model: the one before stays; said once"
    ]


@pytest.mark.parametrize("value", [None, ({"weight": 1}, None), (None, {"loss": 1.0}), (None,)])
def test_a_strategy_that_returns_something_else_is_named(value):
    with pytest.raises(StrategyFailed, match="round 1: expected aggregate_train of Own to return"):
        Federation().run(returning(value), num_rounds=1)
    wrapped = r"round 1: expected aggregate_train of Own to return an ArrayRecord"
    with pytest.raises(StrategyFailed, match=wrapped):
        Federation().run(FedCurv(returning(value), strength=0.1), num_rounds=1)


METHODS = ["configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate"]


def with_method(name, method):
    return type("Own", (FedAvg,), {name: method})(**options(fraction_evaluate=1.0))


def evaluated(federation):
    """Return the same federation with an app that evaluates too."""
    app = federation.client_app()
    metrics = MetricRecord({"num-examples": 1, "loss": 1.0})
    app.evaluate()(lambda m, c: Message(RecordDict({"metrics": metrics}), reply_to=m))
    federation.client_app = lambda: app
    return federation


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: FedCurv(s, strength=0.1)])
@pytest.mark.parametrize("name", METHODS)
def test_a_strategy_that_raises_is_named_with_the_round_and_the_method(name, wrap):
    original = getattr(FedAvg, name)

    def method(self, server_round, *rest):
        if server_round == 2:
            raise KeyError("a\nb")
        return original(self, server_round, *rest)

    federation = evaluated(Federation(num_nodes=2))
    with pytest.raises(StrategyFailed) as told:
        federation.run(wrap(with_method(name, method)))
    assert str(told.value) == rf"round 2: {name} of Own raised KeyError: 'a\nb'"
    assert isinstance(told.value.__cause__, KeyError)
    assert [r.server_round for r in federation.rounds] == [0, 1]


def test_a_strategy_inside_flowers_own_wrapper_is_named_with_it():
    def aggregate_train(self, *rest):
        return None

    own = with_method("aggregate_train", aggregate_train)
    wrapper = DifferentialPrivacyServerSideFixedClipping(own, 0.1, 1.0, 4)
    says = f"aggregate_train of {type(wrapper).__name__} around Own raised TypeError"
    with pytest.raises(StrategyFailed, match=says):
        evaluated(Federation()).run(wrapper)


def failing_generator(self, *rest):
    yield from ()
    raise ValueError("late")


@pytest.mark.parametrize(
    ("name", "method", "says"),
    [
        ("configure_train", lambda *a: None, "to return messages, .* got None"),
        ("configure_evaluate", lambda *a: None, "to return messages, .* got None"),
        ("configure_train", lambda *a: [None], "to return messages, .* got NoneType among them"),
        ("configure_train", failing_generator, "raised ValueError: late"),
        ("aggregate_evaluate", lambda *a: {"x": 1.0}, "to return a MetricRecord .* got dict"),
        ("aggregate_evaluate", lambda *a: 0.0, "to return a MetricRecord .* got float"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: FedCurv(s, strength=0.1)])
def test_what_a_strategy_must_not_return_is_named(name, method, says, wrap):
    with pytest.raises(StrategyFailed, match=f"^round 1: .*{name} of Own {says}") as told:
        evaluated(Federation(num_nodes=2)).run(wrap(with_method(name, method)))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("wrong", [None, 3, [print, None], "print"])
def test_what_cannot_be_called_in_rounds_is_refused_before_anything_starts(wrong):
    federation = Federation()
    with pytest.raises(TypeError, match="on_round: expected a function of a round's record"):
        federation.run(FedAvg(**options()), on_round=wrong)
    assert not federation.visits


@pytest.mark.parametrize("wanted", [1.5, None, [1, 2], "2"])
def test_nodes_are_waited_for_by_number_or_by_ids_that_are_texts(wanted):
    with pytest.raises(TypeError, match="wait_for_nodes: expected a number, or a list of client"):
        Federation().run(FedAvg(**options()), wait_for_nodes=wanted)


@pytest.mark.parametrize("value", [{"accuracy": 1.0}, (1.0, {}), 1.0])
def test_an_evaluation_that_is_no_metric_record_is_refused_before_the_first_round(value):
    federation = Federation()
    with pytest.raises(TypeError, match="round 0: expected evaluate_fn to return a MetricRecord"):
        federation.run(FedAvg(**options()), evaluate_fn=lambda server_round, arrays: value)
    assert not federation.visits
