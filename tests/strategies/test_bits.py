"""FedCurv with statistics in few bits: what travels, what is summed, what a client makes of it."""

import logging
import math

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedcurv import Curvature
from fedcurv.clients import ClientCurvature
from fedcurv.global_state import seeded
from fedcurv.simulations.parts.models.pictures import mlp
from fedcurv.strategies import FedCurv, RoundFailed
from fedcurv.strategies.loop.strategy_calls import StrategyFailed
from fedcurv.strategies.wire import coded_arrays, codes
from fedcurv.strategies.wire.coded_arrays import is_coded, unpack_coded
from fedcurv.strategies.wire.records import (
    CONFIG,
    DISTANCE,
    PRECISION,
    WEIGHTED,
    Instruction,
    pack_instruction,
    take_instruction,
)
from fedcurv.strategies.wire.sums import pack_sums, unpack_sums
from tests.federation import (
    Federation,
    context_of,
    message_with,
    new_model,
    options,
    same_bits,
    samples,
)

FEW = (4, 8)
# of the way between neighbouring levels, at most, in units of a block's largest distance
STEP = {4: 1 / 7, 8: 1 / 127}
NUMBER = 600


@pytest.fixture(autouse=True, scope="module")
def small_tensors_have_codes_too():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coded_arrays, "_FEWEST_NUMBERS", 0)
        yield


def part(client: int, number: int = NUMBER) -> tuple[torch.Tensor, torch.Tensor]:
    """A client's P over some thirty octaves, zeros among them, and θ̂."""
    generator = torch.Generator().manual_seed(client)
    precision = 2 ** (30 * torch.rand(number, generator=generator) - 25)
    precision *= torch.rand(number, generator=generator) > 0.2
    return precision, torch.randn(number, generator=generator)


def model_of(theta: torch.Tensor) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"w": theta, "counts": torch.zeros(3, dtype=int)})})


def sums_of(parts, dtype=torch.float32) -> Curvature:
    return Curvature.sum(
        Curvature({"w": p.to(dtype)}, {"w": p.to(dtype) * t.to(dtype)}) for p, t in parts
    )


def sent(sums: Curvature, bits: int, theta: torch.Tensor, server_round: int = 2) -> RecordDict:
    content = model_of(theta)
    return RecordDict({**content, **pack_sums(sums, bits, content, server_round)})


# ---- down


@pytest.mark.parametrize("bits", FEW)
def test_a_client_goes_where_the_sums_do_but_for_a_step_of_the_distance(bits):
    theta, total = torch.randn(NUMBER), sums_of(map(part, range(5)))
    received = unpack_sums(sent(total, bits, theta)).sums
    p, q = received.precision["w"], received.weighted_parameters["w"]
    exact = (total.weighted_parameters["w"] / total.precision["w"])[p > 0]
    got = (q / p)[p > 0]
    furthest = (exact - theta[p > 0]).abs().max()
    assert bool(((got - exact).abs() <= furthest * STEP[bits] + 1e-5).all())
    assert bool((q[p == 0] == 0).all()) and bool((p[total.precision["w"] == 0] == 0).all())


@pytest.mark.parametrize("bits", FEW)
def test_the_mean_pull_over_the_rounds_is_that_of_the_sums(bits):
    """P(θ* − θ) has the mean of the sums', since P and the distance are rounded independently.

    Over six octaves, where each rounding is met often.
    """
    precision = 2.0 ** torch.linspace(-6, 0, 16)
    parts = [(precision * share, part(client, 16)[1]) for client, share in ((1, 0.7), (2, 0.3))]
    theta, total = torch.full((16,), 0.1), sums_of(parts)
    expected = total.weighted_parameters["w"] - total.precision["w"] * theta
    pulls = []
    for server_round in range(2000):
        received = unpack_sums(sent(total, bits, theta, server_round)).sums
        pulls.append(received.weighted_parameters["w"] - received.precision["w"] * theta)
    pulls = torch.stack(pulls).double()
    deviation = pulls.std(0) / math.sqrt(len(pulls))
    assert bool(((pulls.mean(0) - expected).abs() <= 5 * deviation + 1e-4 * expected.abs()).all())


def test_the_sums_travel_in_a_quarter_of_a_models_bytes():
    theta, total = torch.randn(60_000), sums_of([part(1, 60_000), part(2, 60_000)])
    content = sent(total, 4, theta)
    assert set(content) == {"arrays", PRECISION, DISTANCE}
    model = content["arrays"].count_bytes()
    for name in (PRECISION, DISTANCE):
        assert 0.125 < content[name].count_bytes() / model < 0.13


@pytest.mark.parametrize(
    "arrays",
    [
        {"other": torch.ones(NUMBER)},
        {"w": torch.ones(NUMBER - 1)},
        {"w": torch.ones(NUMBER, dtype=torch.int64)},
    ],
    ids=["another name", "another shape", "integers"],
)
def test_sums_that_no_array_of_the_message_belongs_to_stay_as_they_are(arrays):
    total = sums_of(map(part, range(3)))
    content = RecordDict({"arrays": ArrayRecord(arrays)})
    content = RecordDict({**content, **pack_sums(total, 4, content, 2)})
    assert set(content) == {"arrays", PRECISION, WEIGHTED}
    received = unpack_sums(content)
    assert received.bounds is None
    assert torch.equal(received.sums.precision["w"], total.precision["w"])
    assert torch.equal(received.sums.weighted_parameters["w"], total.weighted_parameters["w"])


def test_a_model_in_float64_is_pulled_as_one_in_float32():
    theta, total = torch.randn(NUMBER), sums_of(map(part, range(3)))
    one, other = (unpack_sums(sent(total, 8, t)).sums for t in (theta, theta.double()))
    assert torch.equal(one.weighted_parameters["w"], other.weighted_parameters["w"])


def test_distances_without_the_models_arrays_are_refused_with_what_to_do():
    content = sent(sums_of(map(part, range(3))), 4, torch.zeros(NUMBER))
    del content["arrays"]
    with pytest.raises(ValueError, match=r"model's arrays \(w\).*make the ClientCurvature before"):
        unpack_sums(content)


@pytest.mark.parametrize("lost", [PRECISION, DISTANCE])
def test_codes_without_their_other_half_are_refused(lost):
    content = sent(sums_of(map(part, range(3))), 4, torch.zeros(NUMBER))
    del content[lost]
    with pytest.raises(ValueError, match="does a mod on the way drop records"):
        unpack_sums(content)


def test_statistics_that_are_far_from_any_model_reach_a_client_as_finite_numbers():
    """As of a client that says any Q for next to no P."""
    total = Curvature({"w": torch.tensor([1e-40, 1.0])}, {"w": torch.tensor([1e30, 0.5])})
    received = unpack_sums(sent(total, 8, torch.zeros(2))).sums
    received.check()
    assert received.precision["w"][1] == 1


# ---- own terms


@given(st.integers(0, 10_000), st.integers(2, 6), st.sampled_from(FEW))
@settings(max_examples=60, deadline=None)
def test_own_terms_leave_no_negative_precision_and_no_slope_without_one(seed, clients, bits):
    """And what is wrong of the pull is a rounding error of the whole sum; in float64.

    Where rounding leaves open whether there is a rest, there is none.
    """
    parts = [part(100 * seed + client) for client in range(clients)]
    theta = torch.randn(NUMBER, generator=torch.Generator().manual_seed(seed))
    total = sums_of(parts)
    sums = unpack_sums(sent(total, bits, theta, seed))
    received, least = sums.sums, sums.bounds.least
    own = sums_of(parts[:1])
    rest = received.without(own, least)
    p, q = (named["w"].double() for named in (rest.precision, rest.weighted_parameters))
    assert bool((p >= 0).all()) and bool((q[p == 0] == 0).all())
    open_ = own.precision["w"] > least["w"]
    assert torch.equal(p > 0, (received.precision["w"] > own.precision["w"]) & ~open_)

    exact = sums_of(parts[1:], torch.float64)
    exact_p, exact_q = exact.precision["w"], exact.weighted_parameters["w"]
    whole = sums_of(parts, torch.float64)
    theta = theta.double()
    rounding = (received.precision["w"].double() - whole.precision["w"]).abs()
    furthest = [
        torch.where(s.precision["w"] > 0, s.weighted_parameters["w"] / s.precision["w"] - theta, 0)
        for s in (whole, exact)
    ]
    away = torch.maximum(*(f.abs() for f in furthest))
    step = torch.cat([b.max().expand(len(b)) for b in furthest[0].abs().split(256)]) * STEP[bits]
    bound = rounding * away + received.precision["w"].double() * step
    error = ((q - p * theta) - (exact_q - exact_p * theta)).abs().masked_fill(open_, 0.0)
    single = 1e-6 * (whole.precision["w"] + received.precision["w"].double()) * (1 + away)
    assert bool((error <= bound + single).all())


def report_of(client: int, bits: int, solution: torch.Tensor | None = None, **more):
    """A client's reply to round 1, and its context."""
    context, model = context_of(client), new_model()
    message = message_with(Instruction(0.1, 1, federation="f", bits=bits))
    curvature = ClientCurvature(message, context, model)
    content = RecordDict({"arrays": ArrayRecord(model.state_dict())})
    curvature.report(content, model, [samples(client)])
    return content, context, model


@pytest.mark.parametrize("bits", FEW)
def test_a_client_remembers_what_it_sent_bit_for_bit(bits):
    content, context, model = report_of(2, bits)
    assert is_coded(content[PRECISION]) and WEIGHTED not in content
    precision = unpack_coded(content[PRECISION], "precision")
    remembered = {
        kind: context.state[f"fedcurv.own.{kind}"].to_torch_state_dict()
        for kind in ("precision", "weighted-parameters")
    }
    for name, parameter in model.named_parameters():
        assert torch.equal(remembered["precision"][name], precision[name])
        product = precision[name] * parameter.detach()
        assert torch.equal(remembered["weighted-parameters"][name], product)


def test_a_client_whose_terms_are_in_no_reply_to_be_multiplied_sends_their_product():
    context, model = context_of(0), new_model()
    curvature = ClientCurvature(message_with(Instruction(0.1, 1, bits=4)), context, model)
    content = RecordDict({"arrays": ArrayRecord([p.detach().numpy() for p in model.parameters()])})
    curvature.report(content, model, [samples(0)])
    own = context.state["fedcurv.own.weighted-parameters"].to_torch_state_dict()
    for name, product in content[WEIGHTED].to_torch_state_dict().items():
        assert torch.equal(product, own[name])


def second_message(sums: Curvature, bits: int, model: nn.Module):
    message = message_with(None)
    content = RecordDict({"arrays": ArrayRecord(model.state_dict())})
    instruction = Instruction(0.1, 2, 1, ["question", "other"], False, "f", sums, bits=bits)
    message.content = RecordDict({**content, **pack_instruction(instruction, content)})
    return message


def test_own_terms_that_rounding_alone_puts_above_the_sums_are_taken_off(caplog):
    """The sum of one's own and next to nothing is rounded to below one's own half of the time."""
    _, context, model = report_of(0, 8)
    own = Curvature(
        context.state["fedcurv.own.precision"].to_torch_state_dict(),
        context.state["fedcurv.own.weighted-parameters"].to_torch_state_dict(),
    )
    # which moves the block's scale, so that one's own numbers are between its levels
    more = {n: p.clone() * 0.01 for n, p in own.precision.items()}
    for precision in more.values():
        precision.view(-1)[0] += 3.7 * precision.max()
    sums = own + Curvature(more, more)
    message = second_message(sums, 4, model)
    received = unpack_sums(message.content)
    below = [bool((own.precision[n] > p).any()) for n, p in received.sums.precision.items()]
    assert any(below)
    rest = ClientCurvature(message, context, model).penalty.curvature
    assert "count as absent" not in caplog.text
    expected = received.sums.without(own, received.bounds.least)
    for name, p in rest.precision.items():
        assert torch.equal(p, expected.precision[name])
        assert torch.equal(rest.weighted_parameters[name], expected.weighted_parameters[name])


def test_own_terms_that_no_rounding_puts_above_the_sums_count_as_absent(caplog):
    _, context, model = report_of(0, 4)
    own = context.state["fedcurv.own.precision"].to_torch_state_dict()
    half = {n: 0.2 * p for n, p in own.items()}
    message = second_message(Curvature(half, half), 4, model)
    ClientCurvature(message, context, model)
    assert "own statistics exceed the server's sums" in caplog.text


def test_a_client_without_own_terms_leaves_the_messages_bytes_alone(monkeypatch):
    """In one process all clients' messages share them, those of tensors without codes too."""
    monkeypatch.setattr(coded_arrays, "_FEWEST_NUMBERS", codes.BLOCK)
    model = mlp((1, 8, 8), 10, hidden=(8,))
    fisher = {n: torch.rand(p.shape) for n, p in model.named_parameters()}
    message = second_message(Curvature.at(model, fisher), 4, model)
    records = [message.content[name] for name in (PRECISION, DISTANCE, "arrays")]
    arrays = [array for record in records for array in record.values()]
    before = [bytes(bytearray(array.data)) for array in arrays]
    curvature = ClientCurvature(message, context_of(0), model, mode="proximal")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.randn(4, 64)).sum().backward()
        optimizer.step()
    assert curvature.penalty.found_optimizer
    assert [array.data for array in arrays] == before


# ---- whole federations


def run(bits: int, federation: Federation | None = None, make=None, **more):
    federation = federation or Federation()
    make = make or (lambda **o: FedCurv(strength=0.3, bits=bits, **options(**o)))
    return federation, federation.run(make(), **more)


@pytest.mark.parametrize("bits", FEW)
def test_what_the_server_holds_is_the_sum_of_what_clients_sent_and_in_no_codes(bits):
    reports: list[RecordDict] = []

    def note(content: RecordDict) -> None:
        reports.append(RecordDict(dict(content)))

    strategy = FedCurv(strength=0.3, bits=bits, **options())
    federation = Federation(num_nodes=4, spoil={(1, i): note for i in range(4)})
    federation.run(strategy, num_rounds=1)
    sums = strategy._instruction.sums
    for name in ("weight", "bias"):
        precisions = [unpack_coded(r[PRECISION], "precision")[name] for r in reports]
        solutions = [r["arrays"].to_torch_state_dict()[name] for r in reports]
        p, x = (torch.stack(one).double() for one in (precisions, solutions))
        error_p = (sums.precision[name] - p.sum(0)).abs()
        error_q = (sums.weighted_parameters[name] - (p * x).sum(0)).abs()
        # the bounds of CurvatureSum for four parts, and that of float32
        assert bool((error_p <= 4.01 * 2**-24 * p.sum(0)).all())
        assert bool((error_q <= 5.01 * 2**-24 * (p * x).abs().sum(0)).all())


def test_a_federation_in_8_bits_is_nearly_that_in_32():
    models = {bits: run(bits)[1].arrays.to_torch_state_dict() for bits in (8, 32)}
    plain = Federation().run(FedAvg(**options())).arrays.to_torch_state_dict()
    for name, exact in models[32].items():
        pull = (plain[name] - exact).norm()
        assert (models[8][name] - exact).norm() < 0.1 * pull


@pytest.mark.parametrize("bits", FEW)
def test_the_same_federation_again_is_the_same_bit_for_bit(bits):
    (_, one), (_, other) = run(bits), run(bits)
    assert same_bits(one.arrays, other.arrays)


@pytest.mark.parametrize("make", [FedAvg, FedAdam])
def test_strength_0_is_the_wrapped_strategy_bit_for_bit_in_few_bits_too(make):
    plain = Federation().run(make(**options()))
    wrapped = Federation().run(FedCurv(make(**options()), strength=0.0, bits=4))
    assert same_bits(plain.arrays, wrapped.arrays)


def test_with_some_clients_a_round_nobody_misses_and_nothing_is_negative(caplog):
    strategy = FedCurv(strength=0.3, bits=4, **options(fraction_train=0.5))
    federation = Federation(num_nodes=6, forgetful=frozenset({(3, i) for i in range(6)}))
    federation.run(strategy, num_rounds=8, seed=1)
    assert all(set(federation.statuses(r).values()) == {"ok"} for r in range(1, 9))
    seen = [v for v in federation.visits if v.precision is not None]
    assert len(seen) > 15
    for visit in seen:
        for name, p in visit.precision.items():
            assert bool((p >= 0).all())
            assert bool((visit.weighted_parameters[name][p == 0] == 0).all())
    assert "count as absent" not in caplog.text


def float32_clients(federation: Federation, *partitions: int) -> None:
    """Let these clients know no codes of their own, as others' implementations may not."""
    honest = federation.train

    def train(message, context):
        if context.node_config["partition-id"] in partitions:
            message.content[CONFIG].pop("bits")
        return honest(message, context)

    federation.train = train


def test_clients_that_answer_in_float32_are_in_the_sums_with_the_others():
    federation = Federation(num_nodes=4)
    formats: dict[int, bool] = {}

    def note(partition):
        return lambda content: formats.update({partition: is_coded(content[PRECISION])})

    federation.spoil = {(2, i): note(i) for i in range(4)}
    float32_clients(federation, 1, 3)
    strategy = FedCurv(strength=0.3, bits=4, **options())
    federation.run(strategy)
    assert formats == {0: True, 1: False, 2: True, 3: False}
    assert set(federation.statuses(3).values()) == {"ok"}
    assert len(strategy._instruction.contributors) == 4


def test_a_server_with_32_bits_speaks_as_servers_did_before_there_were_codes():
    for bits, version in ((32, 2), (4, 3), (8, 3)):
        config = pack_instruction(Instruction(0.1, bits=bits))[CONFIG]
        assert config["wire-version"] == version and config.get("bits", 32) == bits


@pytest.mark.parametrize("bits", [3, 16, "4", [4]])
def test_a_message_with_other_bits_is_refused_by_the_client(bits):
    content = pack_instruction(Instruction(0.1, bits=4))
    content[CONFIG]["bits"] = bits
    with pytest.raises(ValueError, match="expected 4, 8 or 32 bits for a number, got"):
        take_instruction(content)


def test_arrays_without_names_get_sums_in_float32_and_that_is_told_once(caplog):
    federation = Federation(num_nodes=3, list_of_arrays=True)
    honest = federation.train

    def train(message, context):
        arrays = message.content["arrays"].to_numpy_ndarrays()
        named = zip(("weight", "bias"), arrays, strict=True)
        message.content["arrays"] = ArrayRecord({n: Array(a) for n, a in named})
        return honest(message, context)

    federation.train = train
    with caplog.at_level(logging.INFO, "fedcurv"):
        federation.run(FedCurv(strength=0.3, bits=4, **options()), num_rounds=4)
    assert set(federation.statuses(3).values()) == {"ok"}
    down = federation.rounds[3].clients[0].down
    assert WEIGHTED in down and DISTANCE not in down
    assert caplog.text.count("the sums are sent in float32 and not in 4 bits") == 1


def test_arrays_that_were_changed_on_their_way_are_refused_where_sums_are_told_from_them():
    def in_half_precision(message, context, call_next):
        halves = {n: t.half().float() for n, t in arrays_of(message).items()}
        message.content["arrays"] = ArrayRecord(halves)
        return call_next(message, context)

    changed = Federation(num_nodes=3, mods=[in_half_precision])
    with pytest.raises(RoundFailed, match=r"arrays as the server sent them.*FedCurv\(bits=32\)"):
        run(8, changed, num_rounds=2)
    run(32, Federation(num_nodes=3, mods=[in_half_precision]), num_rounds=2)


def arrays_of(message) -> dict[str, torch.Tensor]:
    return message.content["arrays"].to_torch_state_dict()


def test_messages_with_arrays_of_their_own_carry_distances_from_those():
    class Personal(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            messages = super().configure_train(server_round, arrays, config, grid)
            for index, message in enumerate(messages):
                moved = {n: t + index for n, t in arrays.to_torch_state_dict().items()}
                message.content = RecordDict({**message.content, "arrays": ArrayRecord(moved)})
                yield message

    strategy = FedCurv(Personal(**options()), strength=0.3, bits=8)
    federation = Federation(num_nodes=3)
    federation.run(strategy, num_rounds=2)
    visits = [v for v in federation.visits if v.server_round == 2]
    solutions = [v.solution["weight"] for v in federation.visits if v.server_round == 1]
    for visit in visits:
        p, q = visit.precision["weight"], visit.weighted_parameters["weight"]
        others = [s for i, s in enumerate(solutions) if i != visit.partition]
        low, high = torch.stack(others).min(0).values, torch.stack(others).max(0).values
        # between the others' solutions, but for the rounding of the sums and of the distances
        centre, slack = (q / p)[p > 0], 0.5
        assert bool((centre > low[p > 0] - slack).all() and (centre < high[p > 0] + slack).all())


def test_arrays_of_one_name_in_two_records_get_sums_in_float32(caplog):
    class WithControl(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            zeros = {n: torch.zeros_like(t) for n, t in arrays.to_torch_state_dict().items()}
            for message in super().configure_train(server_round, arrays, config, grid):
                content = {**message.content, "control": ArrayRecord(zeros)}
                message.content = RecordDict(content)
                yield message

    federation = Federation(num_nodes=3)
    with caplog.at_level(logging.INFO, "fedcurv"):
        run(8, federation, lambda: FedCurv(WithControl(**options()), strength=0.3), num_rounds=3)
    down = federation.rounds[3].clients[0].down
    assert WEIGHTED in down and DISTANCE not in down
    assert caplog.text.count("the sums are sent in float32 and not in 8 bits") == 1


def in_precision(change):
    def spoil(content: RecordDict) -> None:
        array = content[PRECISION]["weight"]
        fields = {k: getattr(array, k) for k in ("dtype", "shape", "stype", "data")}
        content[PRECISION]["weight"] = Array(**{**fields, **change(array)})

    return spoil


SPOILS = {
    "a byte less": (lambda a: {"data": a.data[:-1]}, "'weight' cannot be read: expected 10 bytes"),
    "NaN for a scale": (
        lambda a: {"data": np.array([math.nan], "<f4").tobytes() + a.data[4:]},
        "expected scales that are finite and >= 0, got nan",
    ),
    "a negative scale": (
        lambda a: {"data": np.array([-2], "<f4").tobytes() + a.data[4:]},
        "expected scales that are finite and >= 0, got -2",
    ),
    "an enormous scale": (
        lambda a: {"data": np.array([1e35], "<f4").tobytes() + a.data[4:]},
        "'weight' is 1e\\+35, above 1e\\+30",
    ),
    "another type": (lambda a: {"dtype": "int8"}, "expected codes for float32, got 'int8'"),
    "another shape": (lambda a: {"shape": (4, 3)}, r"'weight' has shape"),
    "another format": (lambda a: {"stype": "fedcurv.distance-4"}, "expected one of the formats"),
}


@pytest.mark.parametrize("name", SPOILS)
def test_spoilt_codes_are_refused_by_name_and_the_round_goes_on_without_them(name):
    change, reason = SPOILS[name]
    federation = Federation(num_nodes=4, spoil={(2, 2): in_precision(change)})
    _, result = run(4, federation)
    assert federation.statuses(2) == {"0": "ok", "1": "ok", "2": "refused", "3": "ok"}
    assert reason.replace("\\", "") in federation.reasons(2)["2"].replace("\\", "")
    for array in result.arrays.to_torch_state_dict().values():
        assert bool(array.isfinite().all())


def test_secure_sums_cannot_be_in_codes():
    with pytest.raises(ValueError, match="secure_sums=True needs bits=32, got bits=4: codes of"):
        FedCurv(strength=0.1, secure_sums=True, bits=4)
    assert FedCurv(strength=0.1, secure_sums=True).bits == 32
    strategy = FedCurv(strength=0.1, bits=8, **options())
    strategy.secure_sums = True
    with pytest.raises(StrategyFailed, match="secure_sums=True needs bits=32, got bits=8"):
        Federation().run(strategy)


@pytest.mark.parametrize("bits", [0, 1, 3, 16, 4.0, 4.5, True, "4", math.nan])
def test_bits_are_4_or_8_or_32(bits):
    with pytest.raises(ValueError, match="bits must be 4, 8 or 32, got"):
        FedCurv(strength=0.1, bits=bits)


# ---- bytes


def test_a_model_of_small_tensors_is_as_in_32_bits(monkeypatch):
    monkeypatch.setattr(coded_arrays, "_FEWEST_NUMBERS", codes.BLOCK)
    (few, one), (_, other) = run(4), run(32)
    assert same_bits(one.arrays, other.arrays)
    assert {PRECISION, WEIGHTED} <= few.rounds[2].clients[0].down.keys()


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28)], ids=["digits", "MNIST"])
def test_4_bits_cost_an_eighth_of_a_model_up_and_a_quarter_down(shape, monkeypatch):
    """The records of the perceptrons that the results are of, beside FedAvg's own arrays."""
    monkeypatch.setattr(coded_arrays, "_FEWEST_NUMBERS", codes.BLOCK)
    with seeded(0):
        model = mlp(shape, 10)
    arrays = ArrayRecord(model.state_dict())
    fisher = {n: torch.rand(p.shape) for n, p in model.named_parameters()}
    context = context_of(0)
    first = ClientCurvature(message_with(Instruction(0.1, 1, bits=4)), context, model)
    reply = first.report_fisher(RecordDict({"arrays": arrays}), model, fisher)
    up = sum(r.count_bytes() for r in reply.array_records.values()) / arrays.count_bytes()
    assert 1.125 < up < 1.14
    sums = Curvature.at(model, fisher)
    message = second_message(sums + sums, 4, model)
    down = sum(r.count_bytes() for r in message.content.array_records.values())
    assert 1.25 < down / arrays.count_bytes() < 1.28


def test_a_client_that_is_most_of_the_sum_is_not_pulled_to_where_it_is():
    """The mean over roundings of what remains is no more than there is."""
    own = {"w": 1.9 * torch.ones(256)}
    own["w"][0] = 4.0  # the scale of the block
    rest = Curvature({"w": 0.05 * torch.ones(256)}, {"w": 0.05 * torch.ones(256)})
    mine = Curvature(own, {"w": -own["w"]})
    theta, left = torch.zeros(256), torch.zeros(256)
    for server_round in range(200):
        sums = unpack_sums(sent(mine + rest, 4, theta, server_round))
        left += sums.sums.without(mine, sums.bounds.least).precision["w"] / 200
    assert float(left[1:].max()) <= 0.05
