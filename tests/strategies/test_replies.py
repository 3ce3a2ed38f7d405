"""No reply ends a run, whatever it holds, under any strategy: it is refused by name."""

import math
import re

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedXgbBagging,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
)

from fedcurv.strategies import FedCurv, JsonLines, RoundFailed
from fedcurv.strategies.replies.screen import Screen
from fedcurv.strategies.replies.weights import Weights
from fedcurv.strategies.wire.arrays import read_array
from fedcurv.strategies.wire.records import CONFIG, PRECISION, WEIGHTED
from tests.federation import Federation, new_model, options, same_bits

SHAPE = (3, 4)


def header(text: str, data: bytes = b"") -> bytes:
    raw = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + data


def described(descr: str, shape: str, number_bytes: int) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    return header(text, bytes(number_bytes))


def raw(data: bytes, shape: tuple[int, ...] = SHAPE) -> Array:
    return Array(dtype="float32", shape=shape, stype="numpy.ndarray", data=data)


GOOD = Array(np.ones(SHAPE, np.float32)).data

# what reaches a server in the place of a weight
ARRAYS = {
    "nothing": raw(b""),
    "a header cut short": raw(GOOD[:70]),
    "a header that ends within a string": raw(header("{'descr': '<f4', 'fortran_order': False, '")),
    "a header without an end": raw(header("{'descr': '<f4', 'fortran_order': (((((((((((((")),
    "numbers cut short": raw(GOOD[:-1]),
    "numbers left over": raw(GOOD + b"\0"),
    "an enormous shape": raw(described("'<f4'", f"({2**32}, {2**32})", 48), (2**32, 2**32)),
    "an enormous shape of nothing": raw(described("'<f4'", f"(0, {2**70})", 0), (0, 2**70)),
    "a negative shape": raw(described("'<f4'", "(-3, -4)", 48), (-3, -4)),
    "a shape with many axes": raw(described("'<f4'", f"({'1, ' * 100})", 4), (1,) * 100),
    "another shape than it says": Array(
        dtype="float32", shape=(2, 6), stype="numpy.ndarray", data=GOOD
    ),
    "float16 of another size": raw(described("'<f2'", "(3, 4)", 48)),
    "16-byte floats": raw(described("'<f16'", "(3, 4)", 192)),
    "uint16": Array(np.ones(SHAPE, np.uint16)),
    "uint64": Array(np.ones(SHAPE, np.uint64)),
    "whole numbers": Array(np.ones(SHAPE, np.int64)),
    "truth values": Array(np.ones(SHAPE, bool)),
    "complex numbers": Array(np.ones(SHAPE, np.complex64)),
    "strings": raw(described("'<U3'", "(3, 4)", 144)),
    "a record type": raw(described("[('a', '<f4')]", "(3, 4)", 48)),
    "dates": raw(described("'<M8[s]'", "(3, 4)", 96)),
    "another format": Array(dtype="float32", shape=SHAPE, stype="torch.save", data=GOOD),
    "NaN": Array(np.full(SHAPE, math.nan, np.float32)),
    "-inf": Array(np.full(SHAPE, -math.inf, np.float32)),
    "absurd numbers": Array(np.full(SHAPE, 3e38, np.float32)),
}


def in_record(name: str, array: Array):
    def spoil(content: RecordDict) -> None:
        content[name] = ArrayRecord({**content[name], "weight": array})

    return spoil


def metrics(record_name: str = "metrics", **changed):
    def spoil(content: RecordDict) -> None:
        old = content.pop("metrics")
        given = {k.replace("_", "-"): v for k, v in changed.items()}
        content[record_name] = MetricRecord({**old, **given})

    return spoil


def another_record_of_arrays(content: RecordDict) -> None:
    content["model"] = content.pop("arrays")


def without_arrays(content: RecordDict) -> None:
    del content["arrays"]


METRICS = {
    "a list for a number": metrics(loss=[1.0, 2.0]),
    "an empty list": metrics(loss=[]),
    "a list of examples": metrics(num_examples=[12]),
    "no examples": metrics(num_examples=0),
    "endless examples": metrics(num_examples=math.inf),
    "an integer with a thousand digits": metrics(loss=10**1000),
    "examples with a thousand digits": metrics(num_examples=10**1000),
    "more examples than there are": metrics(num_examples=10**18),
    "another metric": metrics(more=1.0),
    "another record of metrics": metrics("results"),
    "another record of arrays": another_record_of_arrays,
    "no arrays": without_arrays,
}

STRATEGIES = {
    "FedAvg": FedAvg,
    "FedProx": lambda **o: FedProx(proximal_mu=0.1, **o),
    "FedAvgM": FedAvgM,
    "FedAdam": FedAdam,
    "FedAdagrad": FedAdagrad,
    "FedYogi": FedYogi,
    "FedMedian": FedMedian,
    "FedTrimmedAvg": FedTrimmedAvg,
    "Krum": lambda **o: Krum(num_malicious_nodes=1, **o),
    "MultiKrum": lambda **o: MultiKrum(num_malicious_nodes=1, num_nodes_to_select=2, **o),
    "Bulyan": lambda **o: Bulyan(num_malicious_nodes=0, **o),
    "QFedAvg": lambda **o: QFedAvg(0.1, train_loss_key="loss", **o),
}
SPOILT = {
    **{f"arrays: {name}": in_record("arrays", array) for name, array in ARRAYS.items()},
    **METRICS,
}


GOOD_NODES = 5


def among_others(spoilt, **more) -> Federation:
    """Five honest clients, and one for each way to spoil a reply."""
    spoil = {(1, GOOD_NODES + i): one for i, one in enumerate(spoilt.values())}
    return Federation(num_nodes=GOOD_NODES + len(spoilt), spoil=spoil, **more)


def assert_refused(federation: Federation, spoilt) -> None:
    statuses, reasons = federation.statuses(1), federation.reasons(1)
    for i in range(GOOD_NODES):
        assert statuses[str(i)] == "ok"
    for i, name in enumerate(spoilt, start=GOOD_NODES):
        assert statuses[str(i)] == "refused", name
        assert reasons[str(i)], name
        assert "\n" not in reasons[str(i)], name


@pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES)
def test_under_flowers_strategies_spoilt_replies_count_as_none(make):
    federation = among_others(SPOILT, plain=frozenset(range(100)))
    result = federation.run(make(**options()), num_rounds=1)
    assert_refused(federation, SPOILT)
    honest = Federation(num_nodes=GOOD_NODES, plain=frozenset(range(100)))
    assert same_bits(result.arrays, honest.run(make(**options()), num_rounds=1).arrays)


@pytest.mark.parametrize("secure_sums", [False, True])
def test_under_fedcurv_spoilt_replies_count_as_none(secure_sums):
    spoilt = dict(SPOILT)
    for record in (PRECISION, WEIGHTED) if secure_sums else (PRECISION,):
        spoilt |= {f"{record}: {name}": in_record(record, array) for name, array in ARRAYS.items()}
    federation, honest = among_others(spoilt), Federation(num_nodes=GOOD_NODES)
    strategies = [FedCurv(strength=0.1, secure_sums=secure_sums, **options()) for _ in range(2)]
    result = federation.run(strategies[0], num_rounds=1)
    assert_refused(federation, spoilt)
    assert same_bits(result.arrays, honest.run(strategies[1], num_rounds=1).arrays)
    mine, theirs = (strategy._instruction.sums for strategy in strategies)
    for name in theirs.precision:
        assert torch.equal(mine.precision[name], theirs.precision[name])
        assert torch.equal(mine.weighted_parameters[name], theirs.weighted_parameters[name])


def test_the_first_clients_statistics_do_not_decide_on_shapes():
    """Sums begin with the first reply: its shapes are only one client's."""

    def flat(content: RecordDict) -> None:
        for name in (PRECISION, WEIGHTED):
            content[name] = ArrayRecord({n: Array(np.ones(1, np.float32)) for n in content[name]})

    federation = Federation(num_nodes=4, spoil={(1, 0): flat})
    federation.run(FedCurv(strength=0.1, secure_sums=True, **options()), num_rounds=1)
    assert list(federation.statuses(1).values()) == ["refused", "ok", "ok", "ok"]
    assert "statistics and shapes of the same names" in federation.reasons(1)["0"]


def test_strange_records_in_the_answer_to_the_query_for_ids_name_no_client():
    from fedcurv.strategies.wire.records import CONFIG, unpack_client_id

    for bad in (7, b"x", ["a"], "9" * 5000, "a\nb", "\ud800"):
        assert unpack_client_id(RecordDict({CONFIG: ConfigRecord({"client-id": bad})})) is None
    assert unpack_client_id(RecordDict({CONFIG: MetricRecord({"client-id": 1})})) is None
    assert unpack_client_id(RecordDict({CONFIG: ConfigRecord({"client-id": "Klinik Ä"})}))


def evaluating(federation: Federation, spoilt) -> None:
    app = federation.client_app()

    @app.evaluate()
    def evaluate(message: Message, context) -> Message:
        partition = int(context.node_config["partition-id"])
        content = RecordDict(
            {"metrics": MetricRecord({"num-examples": 12, "loss": float(partition)})}
        )
        if partition >= GOOD_NODES:
            spoilt[partition - GOOD_NODES](content)
        return Message(content, reply_to=message)

    federation.client_app = lambda: app


def evaluated() -> dict[str, int]:
    return {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}


@pytest.mark.parametrize("make", [FedAvg, lambda **o: FedCurv(strength=0.1, **o)])
def test_a_spoilt_evaluation_counts_as_none_and_is_told(make, caplog):
    spoilt = [v for k, v in METRICS.items() if k not in ("another record of arrays", "no arrays")]
    federation = Federation(num_nodes=GOOD_NODES + len(spoilt))
    evaluating(federation, spoilt)
    result = federation.run(make(**evaluated()), num_rounds=1)
    assert result.evaluate_metrics_clientapp[1]["loss"] == pytest.approx(2.0)
    refused = federation.rounds[1].refused_evaluations
    assert sorted(map(int, refused)) == list(range(GOOD_NODES, federation.num_nodes))
    assert "refused the evaluation of node-1005 (client 5)" in caplog.text


def test_flowers_own_loop_goes_on_too():
    federation = among_others(SPOILT)
    strategy = FedCurv(strength=0.1, **options())
    federation.run(strategy, num_rounds=1, own_loop=True)
    assert len(strategy.refused) == len(SPOILT)


def named(client_id: str):
    def spoil(content: RecordDict) -> None:
        content[CONFIG] = ConfigRecord({**content[CONFIG], "client-id": client_id})

    return spoil


@pytest.mark.parametrize("thief", [0, 3])
def test_a_reply_in_another_clients_name_is_the_one_that_is_refused(thief):
    federation = Federation(num_nodes=4, spoil={(1, thief): named("2")})
    federation.run(FedCurv(strength=0.1, **options()), num_rounds=2)
    assert federation.statuses(1) == {str(i): "refused" if i == thief else "ok" for i in range(4)}
    assert "in the name of client 2" in federation.reasons(1)[str(thief)]
    assert set(federation.statuses(2).values()) == {"ok"}


def test_what_no_float_holds_stands_in_no_record_and_a_long_name_is_cut(tmp_path):
    def long_name(content: RecordDict) -> None:
        content["metrics"] = MetricRecord({**content["metrics"], "x" * 10**6: 1.0})

    federation = Federation(num_nodes=4, spoil={(1, 1): metrics(loss=10**5000), (1, 2): long_name})
    watchers = [JsonLines(tmp_path / "rounds.jsonl"), federation.rounds.append]
    federation.run(FedAvg(**options()), num_rounds=1, on_round=watchers)
    assert list(federation.statuses(1).values()) == ["ok", "refused", "refused", "ok"]
    assert len(federation.reasons(1)["2"]) < 500
    assert federation.rounds[1].clients[1].metrics == {"num-examples": 12}


@pytest.mark.parametrize("make", [FedAvg, lambda **o: FedCurv(strength=0.1, **o)])
def test_empty_settings_in_a_message_or_a_reply_end_no_run(make):
    def empty(content: RecordDict) -> None:
        content["note"] = ConfigRecord({"text": "", "list": [], "bytes": b"", "é": ["ab", ""]})

    federation = Federation(num_nodes=3, spoil={(1, 1): empty})
    config = ConfigRecord({"text": "", "list": []})
    federation.run(make(**options()), num_rounds=2, train_config=config)
    assert set(federation.statuses(1).values()) == {"ok"}
    assert federation.rounds[1].clients[1].up["note"] == len("textlistbyteséab")


def test_a_loss_under_another_name_is_refused_with_the_names_that_came():
    federation = Federation(num_nodes=2)
    with pytest.raises(RuntimeError, match=r"expected the metric 'train_loss' .* got .*loss"):
        federation.run(QFedAvg(0.1, **options()), num_rounds=1)


@pytest.mark.parametrize("loss", [1e300, 1e20])
def test_a_loss_whose_power_no_float_holds_does_not_end_qfedavg(loss):
    federation = Federation(num_nodes=4, spoil={(1, 1): metrics(loss=loss)})
    federation.run(QFedAvg(0.1, q=5.0, train_loss_key="loss", **options()), num_rounds=2)
    assert federation.statuses(1)["1"] == "refused"
    assert "whose power q = 5 is at most 1e+18" in federation.reasons(1)["1"]


# ---- how much a reply may count


@pytest.mark.parametrize(
    "weights",
    [[1, 900], [10, 10, 10, 5000], [3, 3000], [1, 10, 100, 1000, 10000, 1000], [5, 1e11]],
)
def test_honest_skew_is_not_refused_and_two_replies_accuse_nobody(weights):
    bound = Weights()
    for weight in weights:
        bound.add(weight, "n")
    assert bound.too_heavy("n") == {}


@pytest.mark.parametrize("order", [[12, 12, 12, 1e9], [1e9, 12, 12, 12], [12, 1e9, 13, 1e8, 14]])
def test_who_outweighs_all_others_is_refused_wherever_it_stands(order):
    bound = Weights()
    classes = [bound.add(weight, "n") for weight in order]
    heavy = bound.too_heavy("n")
    assert [c in heavy for c in classes] == [w > 1e6 for w in order]
    assert all("1000 times the round's middle one" in reason for reason in heavy.values())


def test_weights_that_lie_far_apart_but_are_fit_are_all_in_the_sums():
    def weigh(number):
        return metrics(num_examples=number)

    spoil = {(1, 0): weigh(1), (1, 1): weigh(5000), (1, 2): weigh(40), (1, 3): weigh(9000)}
    skewed, even = Federation(num_nodes=4, spoil=spoil), Federation(num_nodes=4)
    strategies = [FedCurv(strength=0.1, **options()) for _ in range(2)]
    skewed.run(strategies[0], num_rounds=1)
    even.run(strategies[1], num_rounds=1)
    assert set(skewed.statuses(1).values()) == {"ok"}
    sums = [strategy._instruction.sums for strategy in strategies]
    for name in sums[0].precision:
        torch.testing.assert_close(sums[0].precision[name], sums[1].precision[name])


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_number_of_examples_above_the_bound_is_refused_and_says_so(wrapped):
    federation = Federation(num_nodes=4, spoil={(1, 2): metrics(num_examples=500)})
    if wrapped:
        federation.run(FedCurv(strength=0.1, max_examples=100, **options()), num_rounds=1)
    else:
        federation.run(FedAvg(**options()), num_rounds=1, max_examples=100)
    assert re.search(
        r"expected 'num-examples' of at most 100, got 500; raise max_examples",
        federation.reasons(1)["2"],
    )
    assert federation.statuses(1)["0"] == "ok"


@pytest.mark.parametrize("bound", [0, -1, math.nan])
def test_the_bound_on_examples_must_be_positive(bound):
    with pytest.raises(ValueError, match="max_examples must be > 0, got"):
        FedCurv(strength=0.1, max_examples=bound)
    with pytest.raises(ValueError, match="max_examples must be > 0, got"):
        Federation().run(FedAvg(**options()), max_examples=bound)


def test_bounds_for_fedcurv_are_given_to_fedcurv():
    with pytest.raises(TypeError, match="FedCurv checks its replies itself"):
        Federation().run(FedCurv(strength=0.1, **options()), max_examples=5)


# ---- strategies whose clients send other things


class Collecting(FedAvg):
    """Keeps what comes."""

    def aggregate_train(self, server_round, replies):
        self.seen = [m.content for m in replies if m.has_content()]
        return None, None


def shorter(content: RecordDict) -> None:
    content["arrays"] = ArrayRecord([np.full(2, math.nan)])


def test_replies_that_are_no_models_are_left_alone_where_most_are_none():
    strategy = Collecting(**options())
    spoil = {(1, i): shorter for i in range(3)}
    Federation(num_nodes=3, spoil=spoil).run(strategy, num_rounds=1)
    assert len(strategy.seen) == 3


def test_the_switch_decides_where_most_replies_do_not():
    for switch, number in ((None, 1), (True, 1), (False, 2)):
        strategy = Collecting(**options())
        federation = Federation(num_nodes=2, spoil={(1, 1): in_record("arrays", ARRAYS["NaN"])})
        federation.run(strategy, num_rounds=1, replies_are_models=switch)
        assert len(strategy.seen) == number


@pytest.mark.parametrize(
    "make", [lambda **o: FedAdam(eta=1e38, **o), FedAvgM], ids=["FedAdam", "FedAvgM"]
)
def test_a_server_whose_step_explodes_is_named_and_no_client(make):
    more = {"server_learning_rate": 1e30, "server_momentum": 0.9} if make is FedAvgM else {}
    with pytest.raises(RoundFailed, match=r"round 1: Fed\w+ made numbers of .*; lower its step"):
        Federation().run(make(**options(**more)), num_rounds=3)


def test_trees_are_no_models():
    strategy = FedXgbBagging(**options())
    trees = ArrayRecord([np.frombuffer(b"{}", np.uint8)])
    assert not Screen(strategy)._are_models(trees, [])
    assert Screen(FedAvg(**options()))._are_models(trees, [])


def test_arrays_in_another_order_are_put_in_order():
    def backwards(content: RecordDict) -> None:
        content["arrays"] = ArrayRecord(dict(reversed(content["arrays"].items())))

    plain = Federation(num_nodes=4).run(FedAvg(**options()), num_rounds=1).arrays
    seen = []

    class Ordered(FedAvg):
        def aggregate_train(self, server_round, replies):
            seen.extend(list(m.content["arrays"]) for m in replies)
            return super().aggregate_train(server_round, replies)

    strategy = Ordered(**options())
    mixed = Federation(num_nodes=4, spoil={(1, 1): backwards}).run(strategy, num_rounds=1)
    assert seen == [["weight", "bias"]] * 4
    assert same_bits(mixed.arrays, plain)


# ---- buffers


class WithBuffers(Federation):
    """Every client's reply has a counter, flags, running statistics and a mask beside the model."""

    def pack(self, model) -> ArrayRecord:
        state = {
            "norm.running_mean": torch.tensor([1.0, -1.0]),
            "norm.running_var": torch.tensor([0.02, 0.03]),
            "norm.num_batches_tracked": torch.tensor(self.counts.get(len(self.visits), 127)),
            "flags": torch.tensor([True, False]),
            "levels": torch.tensor([2**62 + 1, -(2**62) - 1]),
            "mask": torch.tensor([0.0, -math.inf]),
        }
        if self.visits or self.started:
            state["norm.running_var"] = torch.tensor([0.001, 0.001])
        self.started = True
        return ArrayRecord({**model.state_dict(), **state})

    def __init__(self, counts=None, **more):
        self.counts, self.started = counts or {}, False
        super().__init__(**more)

    def train(self, message, context):
        arrays = message.content["arrays"]
        names = ("weight", "bias")
        message.content["arrays"] = ArrayRecord({n: arrays[n] for n in names})
        return super().train(message, context)


INTEGERS = ("norm.num_batches_tracked", "flags", "levels")


@pytest.mark.parametrize("own_loop", [None, False, True], ids=["plain", "FedCurv", "Flower's loop"])
@pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES)
def test_what_is_equal_everywhere_stays_and_variances_stay_positive(make, own_loop):
    federation = WithBuffers(num_nodes=5, plain=frozenset(range(5)))
    before = federation.pack(new_model())
    strategy = make(**options())
    if own_loop is None:
        result = federation.run(strategy, num_rounds=3)
    else:
        strategy = FedCurv(strategy, strength=0.1)
        result = federation.run(strategy, num_rounds=3, own_loop=own_loop)
    for name in INTEGERS:
        assert result.arrays[name].dtype == before[name].dtype
        np.testing.assert_array_equal(result.arrays[name].numpy(), before[name].numpy())
    np.testing.assert_allclose(result.arrays["norm.running_var"].numpy(), 0.001, rtol=1e-6)
    np.testing.assert_array_equal(result.arrays["mask"].numpy(), [0.0, -np.inf])


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", ["Krum", "MultiKrum", "Bulyan"])
def test_masks_and_counters_do_not_blind_those_who_look_at_distances(name, wrapped):
    def far_away(content: RecordDict) -> None:
        arrays = content["arrays"]
        there = {n: Array(arrays[n].numpy() + np.float32(100)) for n in ("weight", "bias")}
        content["arrays"] = ArrayRecord({**arrays, **there})

    make = {
        "Krum": lambda: Krum(num_malicious_nodes=1, **options()),
        "MultiKrum": lambda: MultiKrum(num_malicious_nodes=1, num_nodes_to_select=2, **options()),
        "Bulyan": lambda: Bulyan(num_malicious_nodes=1, **options()),
    }[name]
    for liar in (0, 6):
        counts = {3: 9_000, 4: 2}
        federation = WithBuffers(
            counts, num_nodes=7, plain=frozenset(range(7)), spoil={(1, liar): far_away}
        )
        strategy = FedCurv(make(), strength=0.1) if wrapped else make()
        arrays = federation.run(strategy, num_rounds=1).arrays
        assert np.abs(arrays["weight"].numpy()).max() < 50
        assert list(arrays) == list(federation.pack(new_model()))
        # 127 at all but two clients, one of which says less
        assert int(arrays["norm.num_batches_tracked"].numpy()) == 127


def test_qfedavg_moves_parameters_as_if_there_were_no_buffers():
    def make():
        return QFedAvg(0.1, train_loss_key="loss", **options())

    everyone = frozenset(range(3))
    plain = Federation(num_nodes=3, plain=everyone).run(make(), num_rounds=2)
    whole = WithBuffers(num_nodes=3, plain=everyone).run(make(), num_rounds=2)
    for name in ("weight", "bias"):
        np.testing.assert_array_equal(whole.arrays[name].numpy(), plain.arrays[name].numpy())


@pytest.mark.parametrize(("counts", "mean"), [([10, 11, 13], 11), ([10, 11, 14], 12)])
def test_a_counter_is_the_mean_rounded_to_the_nearest(counts, mean):
    # 34 / 3 = 11.33, 35 / 3 = 11.67
    federation = WithBuffers(dict(enumerate(counts)), num_nodes=3, plain=frozenset(range(3)))
    result = federation.run(FedAvg(**options()), num_rounds=1)
    assert int(result.arrays["norm.num_batches_tracked"].numpy()) == mean


def test_an_undone_step_is_told_once(caplog):
    federation = WithBuffers(num_nodes=3, plain=frozenset(range(3)))
    federation.run(FedAdam(**options()), num_rounds=3)
    told = [r for r in caplog.records if "arrays that are no parameters" in r.getMessage()]
    assert len(told) == 1
    assert "FedAdam would move" in told[0].getMessage()
    caplog.clear()
    WithBuffers(num_nodes=3, plain=frozenset(range(3))).run(FedAvg(**options()), num_rounds=3)
    assert "arrays that are no parameters" not in caplog.text


def test_a_negative_running_variance_is_refused():
    def negative(content: RecordDict) -> None:
        array = Array(np.array([0.1, -0.1], np.float32))
        content["arrays"] = ArrayRecord({**content["arrays"], "norm.running_var": array})

    federation = WithBuffers(num_nodes=4, plain=frozenset(range(4)), spoil={(1, 3): negative})
    federation.run(FedAvg(**options()), num_rounds=1)
    assert "running variances >= 0, got less in norm.running_var" in federation.reasons(1)["3"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a header cut short", "cut short"),
        ("numbers cut short", r"expected 48 bytes for the shape \(3, 4\) of float32, got 47"),
        ("an enormous shape", r"expected \d+ bytes"),
        ("16-byte floats", "a type that torch has, got dtype float128"),
        ("another shape than it says", r"expected the shape \(2, 6\) .* got \(3, 4\)"),
        ("another format", "expected the format 'numpy.ndarray'"),
    ],
)
def test_the_reader_says_what_is_wrong(name, says):
    with pytest.raises(ValueError, match=f"array 'w'.*{says}"):
        read_array("w", ARRAYS[name])
