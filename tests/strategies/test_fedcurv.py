import math
import random
import re

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedTrimmedAvg,
    Krum,
    Result,
)

from fedcurv import Curvature, fisher_diagonal
from fedcurv.strategies import FedCurv, RoundFailed
from fedcurv.strategies.wire.records import (
    CONFIG,
    PRECISION,
    WEIGHTED,
    Instruction,
    pack_instruction,
    unpack_instruction,
)
from tests.apps.faults.witness import a_pickle
from tests.federation import NAMES, Federation, new_model, options, same_bits, samples
from tests.oracles import federation as oracle

# enough to tell a penalty from none
STRENGTH = 0.3


def assert_as_defined(federation: Federation, result: Result, num_rounds: int, **more) -> None:
    """The model is the one that the written-out federation arrives at."""
    expected = oracle.run(
        new_model().state_dict(),
        [samples(i) for i in range(federation.num_nodes)],
        strength=STRENGTH,
        num_rounds=num_rounds,
        steps=federation.steps,
        lr=federation.lr,
        **more,
    )[-1]
    for name, tensor in result.arrays.to_torch_state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own_loop", [False, True])
def test_rounds_are_those_of_the_definition(own_loop):
    federation = Federation(num_nodes=4)
    result = federation.run(
        FedCurv(strength=STRENGTH, **options()), num_rounds=4, own_loop=own_loop
    )
    assert_as_defined(federation, result, 4)


def test_the_penalty_makes_a_difference():
    """Else the test above could pass with no penalty at all."""
    plain = Federation().run(FedAvg(**options())).arrays.to_torch_state_dict()
    penalised = (
        Federation().run(FedCurv(strength=STRENGTH, **options())).arrays.to_torch_state_dict()
    )
    assert (plain["weight"] - penalised["weight"]).norm() > 1e-2 * plain["weight"].norm()


@pytest.mark.parametrize("seed", range(3))
def test_partial_participation_is_that_of_the_definition(seed):
    federation = Federation(num_nodes=6)
    strategy = FedCurv(strength=STRENGTH, **options(fraction_train=0.5))
    result = federation.run(strategy, num_rounds=6, seed=seed)
    participants = {
        r: sorted(v.partition for v in federation.visits if v.server_round == r)
        for r in range(1, 7)
    }
    assert len({tuple(nodes) for nodes in participants.values()}) > 1
    assert_as_defined(federation, result, 6, participants=participants)


def test_round_1_is_plain_local_training():
    federation = Federation()
    federation.run(FedCurv(strength=1.0, **options()), num_rounds=1)
    assert all(visit.precision is None for visit in federation.visits)


@pytest.mark.parametrize("make", [FedAvg, FedAdam, FedAvgM])
def test_strength_0_is_the_wrapped_strategy_bit_for_bit(make):
    plain = Federation().run(make(**options()), num_rounds=3)
    wrapped = Federation().run(FedCurv(make(**options()), strength=0.0), num_rounds=3)
    assert same_bits(plain.arrays, wrapped.arrays)


def test_strength_0_sends_and_asks_for_no_statistics():
    plain, wrapped = Federation(), Federation()
    plain.run(FedAvg(**options()))
    wrapped.run(FedCurv(strength=0.0, **options()))
    assert wrapped.rounds[2].clients[0].bytes_up == plain.rounds[2].clients[0].bytes_up


def test_secure_sums_give_the_same_model_and_cost_a_third_more_upload():
    fast, secure = Federation(), Federation()
    one = fast.run(FedCurv(strength=0.1, **options()))
    other = secure.run(FedCurv(strength=0.1, secure_sums=True, **options()))
    for name, tensor in one.arrays.to_torch_state_dict().items():
        torch.testing.assert_close(other.arrays.to_torch_state_dict()[name], tensor)
    model = sum(a.numpy().nbytes for a in one.arrays.values())
    assert secure.rounds[2].clients[0].bytes_up - fast.rounds[2].clients[0].bytes_up >= model


@pytest.mark.parametrize(
    "make",
    [
        FedAdam,
        FedAvgM,
        lambda **o: FedTrimmedAvg(beta=0.25, **o),
        lambda **o: Krum(num_malicious_nodes=1, **o),
    ],
)
def test_wraps_other_strategies(make):
    federation, strategy = Federation(num_nodes=6), make(**options())
    federation.run(FedCurv(strategy, strength=STRENGTH))
    last = [v for v in federation.visits if v.server_round == 3]
    assert all(visit.precision is not None for visit in last)
    assert set(federation.statuses(3).values()) == {"ok"}


def test_clients_without_our_library_are_averaged_and_add_nothing_to_the_sums():
    mixed = Federation(num_nodes=3, plain=frozenset({1}))
    mixed.run(FedCurv(strength=0.1, **options()), num_rounds=2)
    assert set(mixed.statuses(2).values()) == {"ok"}
    aware = {v.partition: v for v in mixed.visits if v.server_round == 2}
    (first_of_2,) = [v for v in mixed.visits if v.server_round == 1 and v.partition == 2]
    # node 0 feels node 2 alone
    model = new_model()
    model.load_state_dict(first_of_2.solution)
    expected = fisher_diagonal(model, [samples(2)])
    torch.testing.assert_close(aware[0].precision["weight"], expected["weight"])
    assert aware[1].precision is None
    everyone = [v.solution["weight"] for v in mixed.visits if v.server_round == 1]
    torch.testing.assert_close(aware[0].start["weight"], sum(everyone) / 3)


def test_a_round_that_begins_without_information_is_told_once(caplog):
    Federation(num_nodes=3, plain=frozenset(range(3))).run(
        FedCurv(strength=STRENGTH, **options()), num_rounds=4
    )
    told = [r.getMessage() for r in caplog.records if "Fisher information" in r.getMessage()]
    assert len(told) == 1 and told[0].startswith("round 2 begins without Fisher information")
    assert "ClientCurvature.report(content, model, batches)" in told[0]


@pytest.mark.parametrize("strategy", [{"strength": 0.0}, {"strength": STRENGTH}])
def test_where_there_is_information_or_none_is_wanted_nothing_is_told(strategy, caplog):
    Federation(num_nodes=3, plain=frozenset({0})).run(FedCurv(**strategy, **options()))
    assert "without Fisher information" not in caplog.text


def test_replies_whose_arrays_have_no_names_send_their_information_too():
    """As apps do that were written for lists of NumPy arrays."""

    def run(named: bool) -> dict[str, torch.Tensor]:
        federation = Federation(num_nodes=3)
        honest = federation.train

        def train(message, context):
            if not named:
                arrays = dict(
                    zip(NAMES, message.content["arrays"].to_numpy_ndarrays(), strict=True)
                )
                message.content["arrays"] = ArrayRecord({n: Array(a) for n, a in arrays.items()})
            return honest(message, context)

        federation.train = train
        federation.list_of_arrays = not named
        strategy = FedCurv(strength=STRENGTH, **options())
        return dict(enumerate(federation.run(strategy).arrays.to_numpy_ndarrays()))

    with_names, without = run(named=True), run(named=False)
    for index, array in with_names.items():
        np.testing.assert_allclose(without[index], array, rtol=1e-5, atol=1e-6)


def test_order_of_replies_changes_no_bit():
    def run(shuffle: bool) -> ArrayRecord:
        class Shuffled(FedCurv):
            def aggregate_train(self, server_round, replies):
                replies = list(replies)
                if shuffle:
                    random.Random(server_round).shuffle(replies)
                return super().aggregate_train(server_round, replies)

        return Federation(num_nodes=7).run(Shuffled(strength=0.1, **options())).arrays

    assert same_bits(run(False), run(True))


def test_messages_do_not_share_one_content():
    contents = []

    class Spy(FedCurv):
        def configure_train(self, *args):
            messages = list(super().configure_train(*args))
            contents.append([m.content for m in messages])
            return messages

    Federation().run(Spy(strength=0.1, **options()), num_rounds=2)
    assert len({id(content) for content in contents[1]}) == 4
    assert set(contents[1][0]) == {"arrays", "config", CONFIG, PRECISION, WEIGHTED}


# ---- replies that are not fit for use


def in_arrays(change):
    def spoil(content: RecordDict) -> None:
        arrays = content["arrays"].to_torch_state_dict()
        change(arrays)
        content["arrays"] = ArrayRecord(arrays)

    return spoil


def in_precision(change):
    def spoil(content: RecordDict) -> None:
        tensors = content[PRECISION].to_torch_state_dict()
        change(tensors)
        content[PRECISION] = ArrayRecord(tensors)

    return spoil


def in_metrics(**change):
    def spoil(content: RecordDict) -> None:
        content["metrics"] = MetricRecord({**content["metrics"], **change})

    return spoil


def put(name, value):
    def change(tensors) -> None:
        tensors[name] = value

    return change


def fill(name, value):
    def change(tensors) -> None:
        tensors[name].view(-1)[0] = value

    return change


def no_metrics(content: RecordDict) -> None:
    del content["metrics"]


def two_array_records(content: RecordDict) -> None:
    content["more"] = ArrayRecord({"x": Array(np.ones(1))})


def somebody_elses_stamp(content: RecordDict) -> None:
    content[CONFIG]["message-id"] = "message-1"


SPOILS = {
    "NaN in a weight": (in_arrays(fill("weight", math.nan)), "NaN or inf in weight"),
    "inf in a weight": (in_arrays(fill("bias", math.inf)), "NaN or inf in bias"),
    "wrong shape": (in_arrays(put("bias", torch.ones(1))), r"'bias' has shape \(3,\).*\(1,\)"),
    "missing key": (in_arrays(lambda t: t.pop("bias")), "'bias' is missing in the reply"),
    "extra key": (in_arrays(put("more", torch.ones(1))), "'more' is not in what was sent"),
    "a pickle": (a_pickle, "array 'bias' cannot be read"),
    "two records": (two_array_records, "expected one ArrayRecord"),
    "no metrics": (no_metrics, "expected one MetricRecord"),
    "no examples": (in_metrics(**{"num-examples": 0}), "'num-examples' > 0"),
    "negative examples": (in_metrics(**{"num-examples": -3}), "'num-examples' > 0"),
    "NaN examples": (in_metrics(**{"num-examples": math.nan}), "'num-examples' > 0"),
    "another metric": (in_metrics(more=1.0), r"metrics of the same names.*extra: \['more'\]"),
    "negative precision": (in_precision(fill("weight", -1e-6)), "'weight' is negative"),
    "NaN precision": (in_precision(fill("weight", math.nan)), "'weight' is not finite"),
    "precision of a wrong shape": (in_precision(put("bias", torch.ones(1))), "'bias' has shape"),
    "precision without a key": (in_precision(lambda t: t.pop("bias")), r"missing: \['bias'\]"),
    "somebody else's stamp": (somebody_elses_stamp, "those that answer another"),
    "enormous precision": (in_precision(fill("bias", 1e35)), "'bias' is 1e\\+35, above 1e\\+30"),
    "precision with another key": (
        in_precision(put("x", torch.ones(1))),
        "statistics of 'x', which is not among the arrays",
    ),
}


@pytest.mark.parametrize("name", SPOILS)
def test_a_spoilt_reply_is_refused_by_name_and_the_round_goes_on_without_it(name, caplog):
    spoil, reason = SPOILS[name]
    federation = Federation(num_nodes=4, spoil={(2, 2): spoil})
    result = federation.run(FedCurv(strength=STRENGTH, **options()), num_rounds=3)
    assert federation.statuses(2) == {"0": "ok", "1": "ok", "2": "refused", "3": "ok"}
    assert re.search(reason, federation.reasons(2)["2"])
    assert re.search(f"round 2: refused the reply of client (2|node-1002): .*{reason}", caplog.text)
    # exactly as if that node had not taken part in round 2
    assert_as_defined(federation, result, 3, participants={1: range(4), 2: [0, 1, 3], 3: range(4)})


@pytest.mark.parametrize("secure_sums", [False, True])
def test_a_precision_above_the_bound_is_refused_by_name(secure_sums):
    federation = Federation(num_nodes=4, spoil={(2, 2): in_precision(fill("bias", 77.0))})
    strategy = FedCurv(strength=STRENGTH, max_precision=50.0, secure_sums=secure_sums, **options())
    result = federation.run(strategy, num_rounds=3)
    assert federation.statuses(2) == {"0": "ok", "1": "ok", "2": "refused", "3": "ok"}
    assert "'bias' is 77, above 50" in federation.reasons(2)["2"]
    assert_as_defined(federation, result, 3, participants={1: range(4), 2: [0, 1, 3], 3: range(4)})


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan])
def test_the_bound_must_be_positive(bound):
    with pytest.raises(ValueError, match=r"max_precision must be > 0, got"):
        FedCurv(strength=1.0, max_precision=bound)


def test_the_names_of_the_first_sums_hold_for_the_whole_run():
    """One node that is alone in a round cannot redefine which parameters there are."""
    drop = in_precision(lambda t: t.pop("bias"))
    federation = Federation(num_nodes=2, spoil={(2, 0): drop, (2, 1): drop})
    with pytest.raises(
        RoundFailed, match=r"round 2: all 2 clients failed.*\n.*missing: \['bias'\]"
    ):
        federation.run(FedCurv(strength=STRENGTH, **options()))


def crash(content: RecordDict) -> None:
    raise ZeroDivisionError("the sensor is unplugged")


@pytest.mark.parametrize(
    "make", [lambda: FedCurv(strength=0.1, **options()), lambda: FedAvg(**options())]
)
def test_a_round_in_which_every_client_fails_ends_the_run_with_the_first_traceback(make):
    federation = Federation(num_nodes=2, spoil={(2, 0): crash, (2, 1): crash})
    with pytest.raises(RoundFailed) as error:
        federation.run(make())
    text = str(error.value)
    assert "round 2: all 2 clients failed; the first said:\nTraceback" in text
    assert "ZeroDivisionError: the sensor is unplugged" in text


def test_a_round_without_any_reply_is_an_error_in_flowers_own_loop_too():
    federation = Federation(num_nodes=2, spoil={(1, 0): crash, (1, 1): crash})
    with pytest.raises(RoundFailed, match="the sensor is unplugged"):
        federation.run(FedCurv(strength=0.1, **options()), own_loop=True)


@pytest.mark.parametrize("own_loop", [False, True])
def test_a_fraction_that_selects_nobody_is_an_error(own_loop):
    strategy = FedCurv(strength=0.1, **options(fraction_train=0.1, min_train_nodes=0))
    with pytest.raises(ValueError, match="selected no client for training; raise fraction_train"):
        Federation().run(strategy, own_loop=own_loop)


@pytest.mark.parametrize("strength", ["auto", "30"])
def test_a_strength_as_text_is_told_how_it_finds_itself(strength):
    with pytest.raises(ValueError, match=rf"AutoStrength\(lr, .*got '{strength}'"):
        FedCurv(strength=strength)


@pytest.mark.parametrize("strength", [-1.0, math.nan, math.inf, [1.0]])
def test_strength_must_be_finite_and_not_negative(strength):
    with pytest.raises(ValueError, match=r"strength must be finite and >= 0.*0 for plain FedAvg"):
        FedCurv(strength=strength)


def test_options_belong_to_the_wrapped_strategy():
    with pytest.raises(TypeError, match="got fraction_train beside FedAdam; give them to FedAdam"):
        FedCurv(FedAdam(), strength=0.1, fraction_train=0.5)


def test_differential_privacy_without_noise_for_the_sums_is_refused():
    with pytest.raises(TypeError, match=r"expected private_sums=PrivateSums\(...\) around Diff"):
        FedCurv(DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, 2), strength=0.1)
    inside = DifferentialPrivacyServerSideFixedClipping(FedCurv(strength=0.1), 1.0, 1.0, 2)
    with pytest.raises(TypeError, match="FedCurv without differential privacy"):
        Federation().run(inside)


def test_a_differential_privacy_mod_on_the_clients_is_named():
    federation = Federation(mods=[LocalDpMod(1.0, 1.0, 1.0, 1e-5)])
    with pytest.raises(RoundFailed, match="Differential-privacy mods accept one ArrayRecord"):
        federation.run(FedCurv(strength=0.1, **options()))


def test_parameters_may_have_any_name():
    """Statistics travel in records of their own, so no suffix or prefix has a meaning."""
    model = torch.nn.Module()
    for name in ("proj_v", "fisher", "precision", CONFIG.replace(".", "_")):
        model.register_parameter(name, torch.nn.Parameter(torch.ones(2)))
    model.forward = lambda x: x * model.proj_v + model.fisher * model.precision + model.fedcurv
    fisher = fisher_diagonal(model, [(torch.randn(3, 2), torch.tensor([0, 1, 1]))])
    sums = Curvature.at(model, fisher)
    sent = pack_instruction(Instruction(0.1, 2, 1, ["message"], sums=sums))
    received = unpack_instruction(sent)
    assert set(received.sums.precision) == {"proj_v", "fisher", "precision", "fedcurv"}
    assert torch.equal(received.sums.precision["proj_v"], fisher["proj_v"])


def test_sums_without_their_second_half_are_refused_by_the_client():
    content = RecordDict(
        {
            CONFIG: ConfigRecord(
                {
                    "wire-version": 2,
                    "strength": 0.1,
                    "server-round": 2,
                    "sums-round": 1,
                    "secure-sums": False,
                    "federation": "f",
                }
            ),
            PRECISION: ArrayRecord({"w": Array(np.ones(1))}),
        }
    )
    with pytest.raises(ValueError, match="does a mod on the way drop records"):
        unpack_instruction(content)
