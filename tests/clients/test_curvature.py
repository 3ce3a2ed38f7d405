import itertools
import re
from collections.abc import Mapping

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fedcurv import Curvature
from fedcurv.clients import ClientCurvature
from fedcurv.strategies import FedCurv
from fedcurv.strategies.wire.records import CONFIG, PRECISION, Instruction
from tests.federation import (
    CLASSES,
    FEATURES,
    Federation,
    context_of,
    crash,
    message_with,
    new_model,
    options,
    samples,
)
from tests.memory import living_bytes
from tests.oracles import fisher as oracle


def fedcurv(**more) -> FedCurv:
    return FedCurv(strength=0.1, **options(**more))


def poison(content: RecordDict) -> None:
    content[PRECISION] = ArrayRecord(
        {n: -1 - torch.ones_like(p) for n, p in new_model().named_parameters()}
    )


def fisher_at(solution: Mapping[str, torch.Tensor], partition: int) -> dict[str, torch.Tensor]:
    model = nn.Linear(FEATURES, CLASSES).double()
    model.load_state_dict(solution)
    inputs, targets = samples(partition)
    return oracle.empirical(model, inputs.double(), targets)


def assert_feels(federation: Federation, server_round: int, partition: int, *others: int) -> None:
    """The penalty in this round is made of exactly these nodes' terms of the round before."""
    (visit,) = [
        v for v in federation.visits if v.server_round == server_round and v.partition == partition
    ]
    if not others:
        assert visit.precision is None or not any(p.any() for p in visit.precision.values())
        return
    assert visit.precision is not None and visit.weighted_parameters is not None
    previous = {
        v.partition: v.solution for v in federation.visits if v.server_round == server_round - 1
    }
    for name in visit.precision:
        fishers = {j: fisher_at(previous[j], j)[name] for j in others}
        precision = sum(fishers.values())
        weighted = sum(f * previous[j][name].double() for j, f in fishers.items())
        # what the node subtracted itself leaves rounding of the size of the whole sum
        scale = sum(fisher_at(previous[j], j)[name] for j in previous).max()
        error = (visit.precision[name].double() - precision).abs().max()
        assert error <= 1e-5 * scale
        error = (visit.weighted_parameters[name].double() - weighted).abs().max()
        assert error <= 1e-5 * scale * previous[others[0]][name].abs().max().clamp(min=1)
        assert bool((visit.precision[name] >= 0).all())


def test_a_node_feels_all_others_and_not_itself():
    federation = Federation(num_nodes=3)
    federation.run(fedcurv())
    assert_feels(federation, 3, 0, 1, 2)
    assert_feels(federation, 3, 2, 0, 1)


def test_a_node_whose_reply_failed_subtracts_nothing():
    federation = Federation(num_nodes=3, spoil={(1, 0): crash})
    federation.run(fedcurv(), num_rounds=2)
    assert_feels(federation, 2, 0, 1, 2)
    assert_feels(federation, 2, 1, 2)


def test_a_node_whose_reply_was_refused_subtracts_nothing():
    """It remembers what it sent and does not know that the server threw it away."""
    federation = Federation(num_nodes=3, spoil={(1, 0): poison})
    federation.run(fedcurv(), num_rounds=2)
    assert_feels(federation, 2, 0, 1, 2)


def test_a_node_that_lost_its_state_subtracts_nothing():
    federation = Federation(num_nodes=3, forgetful=frozenset({(2, 0)}))
    federation.run(fedcurv(), num_rounds=2)
    assert_feels(federation, 2, 0, 0, 1, 2)


def test_a_node_that_comes_back_after_a_round_away_subtracts_nothing():
    class AllButFirstIn2(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            messages = super().configure_train(server_round, arrays, config, grid)
            return [m for m in messages if server_round != 2 or m.metadata.dst_node_id != 1000]

    inner = AllButFirstIn2(min_train_nodes=1, fraction_evaluate=0.0)
    federation = Federation(num_nodes=3)
    federation.run(FedCurv(inner, strength=0.1), num_rounds=3)
    assert_feels(federation, 3, 0, 1, 2)
    assert_feels(federation, 3, 1, 2)


def test_the_only_contributor_feels_nobody():
    federation = Federation(num_nodes=2, spoil={(1, 1): crash})
    federation.run(fedcurv(), num_rounds=2)
    assert_feels(federation, 2, 0)
    assert_feels(federation, 2, 1, 0)


EVENTS = st.sampled_from([None, None, None, "crash", "poison", "forget"])


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**16),
    events=st.lists(st.lists(EVENTS, min_size=5, max_size=5), min_size=8, max_size=8),
)
def test_any_history_of_failures_and_restarts_leaves_exactly_the_others(seed, events):
    spoil, forgetful = {}, set()
    for server_round, row in enumerate(events, start=1):
        for partition, event in enumerate(row):
            if event == "forget":
                forgetful.add((server_round, partition))
            elif event is not None and partition != server_round % 5:  # one always succeeds
                spoil[server_round, partition] = crash if event == "crash" else poison
    federation = Federation(5, spoil=spoil, forgetful=frozenset(forgetful), steps=1)
    federation.run(fedcurv(fraction_train=1.0), num_rounds=len(events), seed=seed)
    for visit in federation.visits:
        if visit.server_round == 1:
            continue
        previous = visit.server_round - 1
        contributors = [i for i in range(5) if (previous, i) not in spoil]
        remembers = (visit.server_round, visit.partition) not in forgetful
        others = [i for i in contributors if not (remembers and i == visit.partition)]
        assert_feels(federation, visit.server_round, visit.partition, *others)


@pytest.mark.parametrize("seed", range(3))
def test_50_rounds_of_random_participation_never_leave_negative_precision(seed):
    generator = torch.Generator().manual_seed(seed)

    def chosen(probability: float) -> set[tuple[int, int]]:
        draws = torch.rand(51, 8, generator=generator) < probability
        return {(r, p) for r in range(1, 51) for p in range(8) if bool(draws[r, p])}

    spoil = {key: crash for key in chosen(0.15)} | {key: poison for key in chosen(0.1)}
    for server_round in range(1, 51):  # a round may not fail as a whole
        spoil = {k: v for k, v in spoil.items() if k != (server_round, server_round % 8)}
    federation = Federation(8, spoil=spoil, forgetful=frozenset(chosen(0.1)), steps=1, lr=0.01)
    strategy = fedcurv(fraction_train=0.8)
    federation.run(strategy, num_rounds=50, seed=seed)
    precisions = [v.precision for v in federation.visits if v.precision is not None]
    assert len(precisions) > 200
    assert all(bool((p >= 0).all()) for named in precisions for p in named.values())


def test_a_server_without_fedcurv_gets_a_plain_client():
    federation = Federation()
    federation.run(FedAvg(min_train_nodes=1, fraction_evaluate=0.0))
    assert set(federation.statuses(3).values()) == {"ok"}
    assert all(visit.precision is None for visit in federation.visits)


@pytest.mark.parametrize("instruction", [None, Instruction(0.0, server_round=1)])
def test_a_plain_round_adds_and_estimates_nothing(instruction):
    model = new_model()
    curvature = ClientCurvature(message_with(instruction), context_of(0), model)
    assert curvature.attach(torch.optim.SGD(model.parameters(), lr=0.1)) is None
    batches = iter([samples(0)])
    content = curvature.report(RecordDict(), model, batches)
    assert not content.keys()
    assert next(batches)  # untouched


def test_two_nodes_in_one_process_keep_their_own_statistics():
    """A module-level model or memory would hand one node's terms to the other."""
    contexts = [context_of(0), context_of(1)]
    for partition, context in enumerate(contexts):
        model = new_model(partition)
        curvature = ClientCurvature(message_with(Instruction(0.1, 1)), context, model)
        curvature.report(RecordDict(), model, [samples(partition)])
    for partition, context in enumerate(contexts):
        stored = context.state["fedcurv.own.precision"].to_torch_state_dict()
        expected = fisher_at(new_model(partition).state_dict(), partition)
        torch.testing.assert_close(
            stored["weight"].double(), expected["weight"], rtol=1e-4, atol=1e-7
        )


def test_sums_for_another_model_are_refused():
    sums = Curvature({"other": torch.ones(2)}, {"other": torch.ones(2)})
    message = message_with(Instruction(0.1, 2, 1, ["someone"], sums=sums))
    with pytest.raises(ValueError, match=r"client's model \(weight, bias\), got those .*\(other\)"):
        ClientCurvature(message, context_of(0), new_model())
    sums = Curvature({"bias": torch.ones(2)}, {"bias": torch.ones(2)})
    message = message_with(Instruction(0.1, 2, 1, ["someone"], sums=sums))
    with pytest.raises(ValueError, match=r"'bias' has shape \(3,\) in the model and \(2,\)"):
        ClientCurvature(message, context_of(0), new_model())


def test_the_report_names_the_client_and_holds_the_fisher_diagonal():
    model = new_model()
    curvature = ClientCurvature(message_with(Instruction(0.1, 1)), context_of(3), model)
    content = curvature.report(RecordDict(), model, [samples(3)])
    assert content[CONFIG]["client-id"] == "3"
    expected = fisher_at(model.state_dict(), 3)
    for name, tensor in content[PRECISION].to_torch_state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-9)


def test_a_report_takes_batches_in_any_form():
    model = new_model()
    curvature = ClientCurvature(message_with(Instruction(0.1, 1)), context_of(3), model)
    inputs, labels = samples(3)
    batch = {"pixels": {"x": inputs}, "y": labels}
    content = curvature.report(
        RecordDict(),
        model,
        [batch],
        forward=lambda net, batch: net(batch["pixels"]["x"]),
        targets="y",
    )
    expected = fisher_at(model.state_dict(), 3)
    for name, tensor in content[PRECISION].to_torch_state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-9)


def test_a_report_chooses_other_samples_in_each_round_though_the_client_is_seeded_alike():
    def reported(server_round: int, seed: int = 0) -> torch.Tensor:
        model = new_model()
        message = message_with(Instruction(0.1, server_round))
        curvature = ClientCurvature(message, context_of(3), model)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        content = curvature.report(RecordDict(), model, [samples(3, 60)], kind="exact", samples=5)
        assert torch.equal(torch.get_rng_state(), before)
        return content[PRECISION].to_torch_state_dict()["weight"]

    rounds = [reported(n) for n in range(1, 5)]
    for one, another in itertools.combinations(rounds, 2):
        assert not torch.equal(one, another)
    assert torch.equal(reported(2), rounds[1])
    assert not torch.equal(reported(2, seed=1), rounds[1])
    whole = torch.stack([reported(n) for n in range(1, 80)])
    expected = oracle.exact(new_model(), samples(3, 60)[0])["weight"]
    assert bool(((whole.mean(0) - expected).abs() < 5 * whole.std(0) / 79**0.5).all())


def test_private_information_takes_all_samples():
    model = new_model()
    curvature = ClientCurvature(message_with(Instruction(0.1, 1)), context_of(3), model)
    with pytest.raises(ValueError, match="samples must be 'all' with private_fisher"):
        curvature.report(
            RecordDict(), model, [samples(3)], samples="auto", private_fisher=(1.0, 1.0)
        )


@pytest.mark.parametrize(
    ("sums_round", "contributors", "is_subtracted"),
    [
        (1, ["question", "another"], True),
        (1, ["another", "third"], False),  # its reply of that round was lost
        # ids are the engine's: one that starts anew may give the same id in another round
        (2, ["question", "another"], False),
    ],
)
def test_own_terms_are_subtracted_for_the_right_round_and_message(
    sums_round, contributors, is_subtracted
):
    context, model = context_of(0), new_model()
    first = ClientCurvature(message_with(Instruction(0.1, 1)), context, model)
    first.report(RecordDict(), model, [samples(0)])
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    message = message_with(
        Instruction(0.1, 3, sums_round, contributors, sums=Curvature(ones, ones))
    )
    penalty = ClientCurvature(message, context, model).penalty
    expected = 1 - fisher_at(model.state_dict(), 0)["weight"] * is_subtracted
    torch.testing.assert_close(
        penalty.curvature.precision["weight"].double(), expected, rtol=1e-5, atol=1e-6
    )


def heavy_message(model: nn.Module, contributors: list[str], server_round: int) -> Message:
    statistics = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    sums = Curvature(statistics, statistics)
    message = message_with(
        Instruction(0.1, server_round, server_round - 1, contributors, sums=sums)
    )
    message.content["arrays"] = ArrayRecord(model.state_dict())
    return message


def bytes_of(message: Message) -> int:
    arrays = [a for record in message.content.array_records.values() for a in record.values()]
    return sum(len(array.data) for array in arrays)


@pytest.mark.parametrize("takes_part", [True, False])
@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_a_node_holds_two_models_more_while_it_trains_and_three_while_it_estimates(
    takes_part, mode, tmp_path
):
    model, context = (
        nn.Sequential(nn.Linear(100, 300), nn.ReLU(), nn.Linear(300, 10)),
        context_of(0),
    )
    inputs, targets = torch.randn(8, 100), torch.randint(0, 10, (8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    size = sum(p.nbytes for p in model.parameters())

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        return [p.grad for p in model.parameters()]  # seen by Python, and so counted

    first = ClientCurvature(message_with(Instruction(0.1, 1)), context, model, state_dir=tmp_path)
    first.report(RecordDict(), model, [(inputs, targets)])
    del first
    contributors = ["question", "another"] if takes_part else ["another", "third"]
    message = heavy_message(model, contributors, server_round=2)
    model_alone = bytes_of(message) // 3
    gradients = step()
    before = living_bytes()
    curvature = ClientCurvature(message, context, model, state_dir=tmp_path)
    curvature.attach(optimizer, mode=mode)
    gradients = step()
    assert bytes_of(message) <= model_alone + 100
    assert living_bytes() - before <= 2.02 * size

    held = []

    def batches():
        for _ in range(3):
            held.append(living_bytes() - before)
            yield inputs, targets

    curvature.report(RecordDict(), model, batches())
    assert max(held) <= 3 * size
    assert curvature.penalty is None
    assert len(gradients) == 4


def test_report_takes_the_penalty_off_the_optimizer():
    model = new_model()
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    message = message_with(Instruction(0.1, 2, 1, ["another"], sums=Curvature(ones, ones)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    curvature = ClientCurvature(message, context_of(0), model)
    curvature.attach(optimizer)
    curvature.report(RecordDict(), model, [samples(0)])
    before = model.weight.detach().clone()
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(model.weight, before)


def test_a_penalty_that_nothing_felt_is_told(caplog):
    """As when the training code trains a copy of the model."""
    model, copy = new_model(), new_model()
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for trained, expected in (
        (copy, "no optimizer stepped with the model's parameters"),
        (model, ""),
    ):
        caplog.clear()
        message = message_with(Instruction(0.1, 2, 1, ["another"], sums=Curvature(ones, ones)))
        curvature = ClientCurvature(message, context_of(0), model)
        curvature.attach()
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        nn.functional.cross_entropy(trained(samples(0)[0]), samples(0)[1]).backward()
        optimizer.step()
        curvature.report(RecordDict(), model, [samples(0)])
        assert (expected in caplog.text) if expected else not caplog.text


def test_sums_can_be_taken_out_of_a_message_once():
    model = new_model()
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    message = message_with(Instruction(0.1, 2, 1, ["another"], sums=Curvature(ones, ones)))
    ClientCurvature(message, context_of(0), model)
    with pytest.raises(ValueError, match="make one ClientCurvature for each training message"):
        ClientCurvature(message, context_of(0), model)
    plain = message_with(Instruction(0.1, 1))
    assert ClientCurvature(plain, context_of(0), model).active
    assert ClientCurvature(plain, context_of(0), model).active


# ---- a part of the model stays at the node


def with_head() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES))


BODY, HEAD = ["0.weight", "0.bias"], ["2.weight", "2.bias"]


def message_of(
    arrays: Mapping[str, torch.Tensor] | list, server_round: int = 1, sums: Curvature | None = None
) -> Message:
    contributors = ["another", "third"] if sums else []
    message = message_with(
        Instruction(0.1, server_round, server_round - 1, contributors, sums=sums)
    )
    numpy = isinstance(arrays, list)
    message.content["arrays"] = ArrayRecord(arrays if numpy else dict(arrays))
    return message


def body_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if name in BODY}


def bytes_in(content: RecordDict) -> bytes:
    return b"".join(
        name.encode() + array.data
        for record in content.array_records.values()
        for name, array in record.items()
    )


def test_nothing_of_a_withheld_layer_is_in_the_reply(caplog):
    model, context = with_head(), context_of(0)
    curvature = ClientCurvature(message_of(body_of(model)), context, model)
    content = RecordDict({"arrays": ArrayRecord(body_of(model))})
    curvature.report(content, model, [samples(0)])
    assert list(content[PRECISION]) == BODY
    everything = bytes_in(content)
    fisher = oracle.empirical(model, *samples(0))
    for name in HEAD:
        assert name.encode() not in everything
        weight = model.get_parameter(name).detach()
        for secret in (weight, fisher[name].float(), (fisher[name] * weight).float()):
            assert all(number.numpy().tobytes() not in everything for number in secret.flatten())
    assert all(p.requires_grad for p in model.parameters())
    ClientCurvature(message_of(body_of(model)), context, model)
    (said,) = [r.getMessage() for r in caplog.records]
    assert "2.weight, 2.bias" in said and "0.weight" not in said


def test_statistics_of_what_travels_do_not_change_for_what_stays():
    model = with_head()
    reports = []
    for arrays in (body_of(model), model.state_dict()):
        curvature = ClientCurvature(message_of(arrays), context_of(0), model)
        content = RecordDict({"arrays": ArrayRecord(dict(arrays))})
        curvature.report(content, model, [samples(0)])
        reports.append(content[PRECISION].to_torch_state_dict())
    assert list(reports[1]) == BODY + HEAD
    for name in BODY:
        torch.testing.assert_close(reports[0][name], reports[1][name])


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_a_withheld_layer_is_not_pulled(mode):
    model = with_head()
    ones = {name: torch.ones_like(p) for name, p in body_of(model).items()}
    message = message_of(body_of(model), 2, Curvature(ones, ones))
    curvature = ClientCurvature(message, context_of(0), model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    curvature.attach(optimizer, mode=mode)
    optimizer.step()
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert moved == BODY


def test_fisher_information_from_elsewhere_is_stripped_of_what_stays():
    model = with_head()
    curvature = ClientCurvature(message_of(body_of(model)), context_of(0), model)
    fisher = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    content = curvature.report_fisher(
        RecordDict({"arrays": ArrayRecord(body_of(model))}), model, fisher
    )
    assert list(content[PRECISION]) == BODY


@pytest.mark.parametrize(
    "arrays", [{"adapter": torch.ones(1)}, [torch.ones(1).numpy()]], ids=["adapter", "list"]
)
def test_arrays_under_other_names_leave_every_trainable_parameter_in_the_report(arrays, caplog):
    model = with_head()
    model[0].requires_grad_(False)
    curvature = ClientCurvature(message_of(arrays), context_of(0), model)
    content = RecordDict({"arrays": ArrayRecord(arrays)})
    curvature.report(content, model, [samples(0)])
    assert list(content[PRECISION]) == HEAD
    assert "fedcurv.weighted-parameters" in content
    assert not caplog.records


@pytest.mark.parametrize("compiled_at", ["both", "first", "report"])
@pytest.mark.parametrize("wrappers_names", [False, True])
def test_a_compiled_model_is_reported_under_the_names_that_travel(compiled_at, wrappers_names):
    model = with_head()
    compiled = torch.compile(model, backend="eager")
    arrays = (compiled if wrappers_names else model).state_dict()
    first, last = (
        (compiled if wrappers_names or compiled_at in (place, "both") else model)
        for place in ("first", "report")
    )
    curvature = ClientCurvature(message_of(arrays), context_of(0), first)
    content = RecordDict({"arrays": ArrayRecord(arrays)})
    curvature.report(content, last, [samples(0)])
    assert list(content[PRECISION]) == list(arrays)
    assert "fedcurv.weighted-parameters" not in content


def test_a_compiled_model_feels_sums_under_its_own_names():
    model = with_head()
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    message = message_with(Instruction(0.1, 2, sums=Curvature(ones, ones)))
    message.content["arrays"] = ArrayRecord(model.state_dict())
    curvature = ClientCurvature(message, context_of(0), torch.compile(model, backend="eager"))
    assert curvature.penalty is not None
    curvature.penalty.value().backward()
    for parameter in model.parameters():  # 2λ(Pθ − Q)
        assert torch.allclose(parameter.grad, 0.2 * (parameter - 1))


def test_arrays_that_the_app_took_out_first_are_known_from_the_reply():
    model = with_head()
    curvature = ClientCurvature(message_with(Instruction(0.1, 1)), context_of(0), model)
    content = RecordDict({"arrays": ArrayRecord(body_of(model))})
    curvature.report(content, model, [samples(0)])
    assert list(content[PRECISION]) == BODY


@pytest.mark.parametrize("parameters", [HEAD, lambda name: name.startswith("2.")])
def test_an_explicit_choice_decides_alone(parameters):
    model = with_head()
    curvature = ClientCurvature(
        message_of(model.state_dict()), context_of(0), model, parameters=parameters
    )
    content = RecordDict({"arrays": ArrayRecord(model.state_dict())})
    curvature.report(content, model, [samples(0)])
    assert list(content[PRECISION]) == HEAD


def test_a_tied_parameter_travels_under_any_of_its_names():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(CLASSES, CLASSES), nn.Linear(CLASSES, CLASSES)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x[:, :CLASSES]))

    model = Tied()
    arrays = {"b.weight": model.b.weight.detach()}
    curvature = ClientCurvature(message_of(arrays), context_of(0), model)
    content = RecordDict({"arrays": ArrayRecord(arrays)})
    curvature.report(content, model, [samples(0)])
    assert list(content[PRECISION]) == ["a.weight"]
    assert "fedcurv.weighted-parameters" in content


@pytest.mark.parametrize("first", ["head", "body"])
def test_layers_that_are_frozen_in_turn_are_reported_and_pulled_in_every_round(first, caplog):
    """As FedRep trains: the head by itself, the body by itself, and only the body travels."""
    contexts, sums = [context_of(0), context_of(1)], None
    for server_round in (1, 2, 3):
        reports = []
        for partition, context in enumerate(contexts):
            model = with_head()
            message = message_of(body_of(model), server_round, sums)
            curvature = ClientCurvature(message, context, model, mode="proximal")
            phases = [model[2], model[0]] if first == "head" else [model[0], model[2]]
            for trained in phases:
                model.requires_grad_(False)
                trained.requires_grad_(True)
                optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
                inputs, targets = samples(partition)
                nn.functional.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
            content = RecordDict({"arrays": ArrayRecord(body_of(model))})
            curvature.report(content, model, [samples(partition)])
            reports.append(content[PRECISION].to_torch_state_dict())
            assert list(reports[-1]) == BODY
        parts = [Curvature(r, {n: p * 0.1 for n, p in r.items()}) for r in reports]
        sums = Curvature.sum(parts)
    assert "not pulled" not in caplog.text


def test_parameters_without_statistics_are_trained_freely_and_told_once(caplog):
    """As when a backbone is unfrozen after some rounds."""
    model, context = with_head(), context_of(0)
    ones = {name: torch.ones_like(model.get_parameter(name)) for name in HEAD}
    for server_round in (2, 3):
        message = message_of(model.state_dict(), server_round, Curvature(ones, ones))
        curvature = ClientCurvature(message, context, model)
        assert list(curvature.penalty.curvature.precision) == HEAD
        content = RecordDict({"arrays": ArrayRecord(model.state_dict())})
        curvature.report(content, model, [samples(0)])
        assert list(content[PRECISION]) == HEAD
    (said,) = [r.getMessage() for r in caplog.records]
    assert "not pulled and not reported" in said and "0.weight, 0.bias" in said


def test_sums_of_what_a_client_withholds_are_refused():
    model = with_head()
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    message = message_of(body_of(model), 2, Curvature(ones, ones))
    with pytest.raises(ValueError, match=r"sums of 2\.weight, 2\.bias too, which this client"):
        ClientCurvature(message, context_of(0), model)
    message = message_of(model.state_dict(), 2, Curvature(ones, ones))
    with pytest.raises(ValueError, match=r"sums of 2\.weight, 2\.bias too, which this client"):
        ClientCurvature(message, context_of(0), model, parameters=BODY)


class Wrapper(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def test_a_wrapper_at_the_report_is_refused_in_the_first_round():
    model = with_head()
    both = r"\(0\.weight, 0\.bias, 2\.weight and others\).*\(net\.0\.weight, net\.0\.bias"
    curvature = ClientCurvature(message_of(model.state_dict()), context_of(0), model)
    with pytest.raises(ValueError, match=both):
        curvature.report(RecordDict(), Wrapper(model), [samples(0)])
    fisher = {f"net.{name}": torch.ones_like(p) for name, p in model.named_parameters()}
    for reported in (model, Wrapper(model)):
        with pytest.raises(ValueError, match=both):
            curvature.report_fisher(RecordDict(), reported, fisher)


def test_steps_that_diverge_are_told_once_a_run_and_not_by_every_client(caplog):
    for _ in range(2):
        caplog.clear()
        Federation(lr=0.1, steps=1).run(FedCurv(strength=4.0, **options()), num_rounds=4)
        said = [r.getMessage() for r in caplog.records if "gradient steps" in r.getMessage()]
        assert len(said) == 1, said
        assert said[0].startswith("client 0: strength=4 at lr=0.1: lr")


# ---- a pull that leaves next to no training


@pytest.mark.parametrize(
    ("optimizer", "mode"),
    # plain gradient steps diverge before they hold the parameters, which is told elsewhere
    [("SGD", "proximal"), ("Adam", "proximal"), ("Adam", "gradient")],
)
def test_a_pull_that_leaves_next_to_no_training_is_told_once(optimizer, mode, caplog):
    inputs, targets = samples(0)

    def said(strength: float, server_round: int, context: Context) -> list[str]:
        caplog.clear()
        model = new_model()
        stiff = {n: torch.full_like(p, 5.0) for n, p in model.named_parameters()}
        sums = Curvature(stiff, {n: 5.0 * p.detach() for n, p in model.named_parameters()})
        message = message_with(
            Instruction(strength, server_round, server_round - 1, ["another", "third"], sums=sums)
        )
        curvature = ClientCurvature(message, context, model)
        its = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01)
        curvature.attach(its, mode=mode)
        for _ in range(20):
            its.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            its.step()
        curvature.report(RecordDict(), model, [(inputs, targets)])
        lines = [record.getMessage() for record in caplog.records]
        return [line for line in lines if "plain gradient steps on the penalty diverge" not in line]

    context = context_of(0)
    assert said(0.1, 2, context) == []
    (text,) = said(1e5, 3, context)
    assert said(1e5, 4, context) == []
    assert "strength=100000 leaves next to no training: at lr=0.01, 20 steps" in text
    found = re.search(r"try strength=(\S+),", text)
    assert found and 0.01 < float(found[1]) <= 40  # lr·λ·max(P) = 2
    assert said(float(found[1]), 2, context_of(1)) == []
