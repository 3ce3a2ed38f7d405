import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import nn

from fedcurv import Curvature, fisher_diagonal
from fedcurv.clients.app import client_app
from fedcurv.clients.local_round import LocalTask, begin_round
from fedcurv.clients.settings import TrainingSettings
from fedcurv.clients.terms import AffineGradient, LocalTerm, ProximalTerm
from fedcurv.clients.training import train
from fedcurv.global_state import seeded
from fedcurv.simulations.commands.simulate import simulate
from fedcurv.simulations.parts.models import mlp
from fedcurv.simulations.runners.batched import grid as batched
from fedcurv.simulations.runners.batched.batches import StackedSamples, stacked_choice
from fedcurv.simulations.runners.batched.fisher import can_be_estimated, fisher_stacked
from fedcurv.simulations.runners.batched.stacked import (
    stacked_parameters,
    train_stacked,
    why_not_stacked,
    why_terms_not_stacked,
)
from fedcurv.strategies.wire.arrays import pack_tensors
from fedcurv.strategies.wire.methods import CONTROL, METHOD, Told, pack_told, take_answer
from fedcurv.strategies.wire.records import LOCAL_TERM, Instruction, pack_instruction
from tests.federation import context_of, message_with
from tests.simulations.test_run import configuration, rows_of

SHAPE, CLASSES = (1, 2, 3), 4
SIZES = [5, 8, 1, 7, 4]
LR = 0.2


def task_of(client: int, settings: TrainingSettings, model=None, criterion=None) -> LocalTask:
    generator = torch.Generator().manual_seed(client)
    inputs = torch.randn(SIZES[client], *SHAPE, generator=generator)
    targets = torch.randint(0, CLASSES, (SIZES[client],), generator=generator)
    model = mlp(SHAPE, CLASSES, hidden=(6, 5)) if model is None else copy.deepcopy(model)
    return LocalTask(model, (inputs, targets), settings=settings, criterion=criterion, seed=3)


def start_model() -> nn.Module:
    with seeded(1):
        return mlp(SHAPE, CLASSES, hidden=(6, 5))


def sums(client: int) -> Curvature:
    """Return statistics that pull strongly, and for some parameters not at all."""
    generator = torch.Generator().manual_seed(100 + client)
    shapes = {n: p.shape for n, p in start_model().named_parameters()}
    precision = {n: torch.rand(s, generator=generator) * 3 for n, s in shapes.items()}
    precision["1.bias"].zero_()
    at = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    return Curvature(precision, {n: precision[n] * at[n] for n in shapes})


def message_for(client: int, mu: float, pulled: bool, method: str | None = None) -> Message:
    message = message_with(None)
    content = {"arrays": ArrayRecord(start_model().state_dict())}
    message.content = RecordDict(content)
    message.content["config"] = ConfigRecord({"server-round": 2, "proximal-mu": mu})
    if method is not None:
        message.content["config"][LOCAL_TERM] = method
        message.content[METHOD] = pack_told(Told(method, 2, number=0.4))
        if method == "scaffold":
            control = {n: torch.ones_like(p) for n, p in start_model().named_parameters()}
            message.content[CONTROL] = pack_tensors(control)
        return message
    instruction = Instruction(0.7, 1)
    if pulled:
        instruction = Instruction(0.7, 2, 1, ["another"], federation="f", sums=sums(client))
    for name, record in pack_instruction(instruction).items():
        message.content[name] = record
    return message


def rounds(settings: TrainingSettings, mu: float, pulled: bool, **more):
    return [
        begin_round(
            task_of(client, settings, **more),
            message_for(client, mu, pulled),
            context_of(client),
            torch.device("cpu"),
        )
        for client in range(len(SIZES))
    ]


def stacked(together, samples):
    """Return what is trained and estimated with."""
    device = TrainingSettings().make_device()
    return together, StackedSamples(samples, device), stacked_parameters(together, device)


def trained_one_by_one(local) -> float:
    optimizer = local.task.settings.make_optimizer(local.model)
    for term in local.terms:
        term.attach(local.model, optimizer, local.task.settings)
    return train(local.model, local.batches(), optimizer, epochs=local.task.settings.epochs)


@pytest.mark.parametrize(
    ("mode", "mu", "pulled"),
    [
        ("gradient", 0.0, False),
        ("gradient", 0.3, False),
        ("gradient", 0.0, True),
        ("gradient", 0.3, True),
        ("proximal", 0.0, True),
        ("proximal", 0.3, True),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_stack_trains_each_client_as_it_would_alone(mode, mu, pulled, batch_size):
    """Clients of unequal sizes, batches that do not divide them, one client with one sample."""
    settings = TrainingSettings(epochs=3, batch_size=batch_size, lr=LR, penalty_mode=mode)
    alone, together = (rounds(settings, mu, pulled) for _ in range(2))
    expected = [trained_one_by_one(local) for local in alone]
    assert not any(why_not_stacked(local.task) for local in together)
    losses = train_stacked(*stacked(together, [local.samples for local in together]))
    assert losses == pytest.approx(expected, rel=1e-4)
    moved = 0.0
    for one, other in zip(alone, together, strict=True):
        for name, parameter in one.model.named_parameters():
            torch.testing.assert_close(
                other.model.get_parameter(name), parameter, rtol=1e-4, atol=1e-5
            )
            moved += float((parameter - start_model().get_parameter(name)).detach().abs().sum())
    assert moved > 1.0


@pytest.mark.parametrize(
    ("method", "mu"), [("scaffold", 0.0), ("feddyn", 0.0), ("fednova", 0.0), ("fednova", 0.3)]
)
def test_a_stack_has_a_methods_term_and_its_answer(method, mu):
    settings = TrainingSettings(epochs=3, batch_size=3, lr=LR)

    def begun():
        for client in range(len(SIZES)):
            message = message_for(client, mu, pulled=False, method=method)
            task = task_of(client, settings)
            yield begin_round(task, message, context_of(client), torch.device("cpu"))

    alone, together = list(begun()), list(begun())
    assert not any(why_terms_not_stacked(local) for local in together)
    expected = [trained_one_by_one(local) for local in alone]
    losses = train_stacked(*stacked(together, [local.samples for local in together]))
    assert losses == pytest.approx(expected, rel=1e-4)
    for one, other, loss in zip(alone, together, losses, strict=True):
        for local in (one, other):
            local.trained(loss)
        answers = [take_answer(local.reply().content, method) for local in (one, other)]
        assert answers[1].progress == pytest.approx(answers[0].progress)
        for name, parameter in one.model.named_parameters():
            stacked_one = other.model.get_parameter(name)
            torch.testing.assert_close(stacked_one, parameter, rtol=1e-4, atol=1e-5)


def test_a_term_that_is_not_about_all_parameters_is_left_to_the_client():
    message = message_for(0, 0.0, pulled=False, method="feddyn")
    local = begin_round(task_of(0, TrainingSettings()), message, context_of(0))
    local.model[1].bias = nn.Parameter(torch.zeros(6))
    local.model.register_parameter("more", nn.Parameter(torch.zeros(2)))
    assert why_terms_not_stacked(local) == "the strategy's local term is a FedDynTerm"


class Shifted(LocalTerm):
    def __init__(self, gradient: AffineGradient) -> None:
        self.gradient = gradient

    def attach(self, model, optimizer, settings):
        raise NotImplementedError

    def affine(self, model, settings):
        return self.gradient


class OfItsOwn(ProximalTerm):
    def attach(self, model, optimizer, settings):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("term", "why"),
    [
        (OfItsOwn(0.3), "the strategy's local term is a OfItsOwn"),
        (Shifted(AffineGradient(math.nan)), "the slope of Shifted's gradient is nan"),
        (Shifted(AffineGradient(shift={"net.1.bias": torch.ones(6)})), "a shift for net.1.bias"),
        (Shifted(AffineGradient(shift={"1.bias": torch.ones(1)})), "a shift for 1.bias, no"),
        (Shifted(AffineGradient(0.3, {"1.bias": torch.ones(6)})), ""),
    ],
    ids=["attach alone", "slope", "name", "shape", "fit"],
)
def test_a_gradient_that_is_not_the_terms_or_not_the_models_is_left_to_the_client(term, why):
    local = begin_round(
        task_of(0, TrainingSettings()), message_for(0, 0.0, pulled=False), context_of(0)
    )
    local = dataclasses.replace(local, terms=[term])
    assert why in why_terms_not_stacked(local) and bool(why) == bool(why_terms_not_stacked(local))


OTHERS = {
    "momentum": TrainingSettings(momentum=0.9),
    "weight decay": TrainingSettings(weight_decay=0.1),
    "adam": TrainingSettings(optimizer="adam"),
    "nesterov": TrainingSettings(optimizer={"name": "SGD", "momentum": 0.9, "nesterov": True}),
    "adamw": TrainingSettings(optimizer="adamw"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_optimizers_are_left_to_the_clients(name):
    why = "client.optimizer is not SGD without momentum and weight decay"
    assert all(why_not_stacked(local.task) == why for local in rounds(OTHERS[name], 0.0, False))


def test_other_losses_are_left_to_the_clients():
    for criterion in (nn.MSELoss(), nn.CrossEntropyLoss(label_smoothing=0.1)):
        stackable = rounds(TrainingSettings(), 0.0, False, criterion=criterion)
        assert all("client.loss" in why_not_stacked(local.task) for local in stackable)
    plain = rounds(TrainingSettings(), 0.0, False, criterion=nn.CrossEntropyLoss())
    assert not any(why_not_stacked(local.task) for local in plain)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: nn.Sequential(*m, nn.ReLU()),
        lambda m: nn.Sequential(*list(m)[:-1]),
        lambda m: nn.Sequential(*m[:2], nn.Tanh(), *m[3:]),
        lambda m: nn.Sequential(*m[:3], nn.Linear(6, 5, bias=False), *m[4:]),
        lambda m: nn.Sequential(*m[:2], nn.Dropout(), *m[3:]),
        lambda m: nn.Sequential(nn.Identity(), *m[1:]),
        lambda m: m.requires_grad_(False) and nn.Sequential(*m[:5], nn.Linear(5, 4)),
    ],
)
def test_other_models_are_left_to_the_clients(change):
    changed = change(start_model())
    task = task_of(0, TrainingSettings())
    assert not why_not_stacked(task)
    assert "the model" in why_not_stacked(dataclasses.replace(task, model=changed))


# ---- what is estimated with some of the samples


def test_some_of_the_samples_are_chosen_for_the_estimate_anew_in_each_round():
    all_of_them, some = (
        rounds(TrainingSettings(fisher_samples=number), 0.0, pulled=False) for number in ("all", 3)
    )
    others = 0
    for whole, part in zip(all_of_them, some, strict=True):
        assert torch.equal(whole.fisher_samples()[0], whole.samples[0])
        assert whole.fisher_samples()[2] is None
        inputs, targets, counts = part.fisher_samples()
        number = len(part.samples[0])
        assert len(inputs) == len(targets) == min(3, number)
        rows = [int((part.samples[0] == x).flatten(1).all(1).nonzero()) for x in inputs]
        assert len(set(rows)) == len(rows)
        assert torch.equal(part.samples[1][rows], targets)
        assert torch.equal(part.fisher_samples()[0], inputs)
        if number > 3:
            assert math.isclose(float(counts.sum()), number)
            later = [dataclasses.replace(part, seed=part.seed + n) for n in range(2, 9)]
            others += sum(not torch.equal(r.fisher_samples()[0], inputs) for r in later)
    assert others > 14  # of 28


@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_a_client_by_itself_chooses_the_same_samples(kind):
    """And estimates with each of them for as many as it stands for."""
    settings = TrainingSettings(fisher_kind=kind, fisher_samples=3)
    for local in rounds(settings, 0.0, pulled=False):
        inputs, targets, counts = local.fisher_samples()
        expected = {name: torch.zeros_like(p) for name, p in local.model.named_parameters()}
        counts = torch.ones(1) if counts is None else counts  # of the client with one sample
        for x, y, number in zip(inputs, targets, counts, strict=True):
            of_one = fisher_diagonal(local.model, [(x[None], y[None])], kind=kind)
            for name, total in expected.items():
                total += float(number) * of_one[name] / len(local.samples[0])
        reported = local.reply().content["fedcurv.precision"].to_torch_state_dict()
        torch.testing.assert_close(reported, expected, rtol=1e-4, atol=1e-8)


# ---- the estimates of a stack


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("kind", ["empirical", "exact"])
@pytest.mark.parametrize("number", ["all", "auto", 3])
def test_a_stack_estimates_each_clients_fisher_information(number, kind, batch_size, monkeypatch):
    monkeypatch.setattr(TrainingSettings, "fisher_batch_size", batch_size)
    settings = TrainingSettings(fisher_kind=kind, fisher_samples=number)
    together = rounds(settings, 0.0, pulled=False)
    assert all(can_be_estimated(local) for local in together)
    for client, local in enumerate(together):
        torch.manual_seed(client)
        for parameter in local.model.parameters():
            nn.init.normal_(parameter, std=0.7)
    samples = stacked_choice([local.fisher_samples() for local in together], torch.device("cpu"))
    estimates = fisher_stacked(together, samples, stacked_parameters(together, torch.device("cpu")))
    for local, fisher in zip(together, estimates, strict=True):
        content = RecordDict({"arrays": ArrayRecord(local.model.state_dict())})
        local.report(content)
        expected = content["fedcurv.precision"].to_torch_state_dict()
        torch.testing.assert_close(fisher, expected, rtol=1e-4, atol=1e-7)
        assert sum(float(values.sum()) for values in fisher.values()) > 0.1


def test_an_estimate_that_is_not_finite_is_left_to_the_client():
    settings = TrainingSettings(epochs=1, lr=0.1)
    together = rounds(settings, 0.0, pulled=False)
    with torch.no_grad():
        together[1].model.get_parameter("5.bias").fill_(torch.nan)
    estimates = fisher_stacked(*stacked(together, [local.samples for local in together]))
    given = [fisher is not None for fisher in estimates]
    assert given == [True, False, True, True, True]
    with pytest.raises(ValueError, match="expected finite losses and gradients"):
        together[1].reply()


@pytest.mark.parametrize("kind", ["sampled", "signed"])
def test_what_draws_random_numbers_is_left_to_each_client(kind):
    together = rounds(TrainingSettings(fisher_kind=kind), 0.0, pulled=False)
    assert not any(can_be_estimated(local) for local in together)


# ---- the runner


def run(folder: Path, *overrides: str) -> list[dict[str, str]]:
    small = ["num_clients=7", "num_rounds=3", "client.epochs=2", "partition=dirichlet"]
    few = "data.train_samples=300"
    simulate(configuration(*small, few, *overrides), folder, command="the command")
    return rows_of(folder / "metrics.csv")


def numbers(rows: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name] or 0) for row in rows])


@pytest.mark.usefixtures("quick_pictures")
@pytest.mark.parametrize("mode", ["gradient strategy.fedcurv.strength=0.01", "proximal"])
def test_the_batched_runner_gives_the_results_of_the_local_one(mode, tmp_path):
    overrides = ["strategy=[fedavg,fedprox,fedcurv]", "fraction_train=0.6"]
    overrides += f"client.penalty_mode={mode}".split()
    overrides += ["client.schedule={name: ExponentialLR, gamma: 0.5}"]
    local = run(tmp_path / "local", *overrides)
    together = run(tmp_path / "batched", "runner=batched", *overrides)
    for name in ("loss", "train_loss"):
        np.testing.assert_allclose(numbers(together, name), numbers(local, name), rtol=2e-3)
    assert np.abs(numbers(together, "accuracy") - numbers(local, "accuracy")).max() <= 1 / 360
    clients = [rows_of(tmp_path / folder / "clients.csv") for folder in ("local", "batched")]
    np.testing.assert_allclose(
        numbers(clients[1], "penalty"), numbers(clients[0], "penalty"), rtol=5e-3, atol=1e-6
    )
    assert numbers(clients[0], "penalty").any()


@pytest.mark.usefixtures("quick_pictures")
def test_methods_with_terms_are_stacked_and_give_the_results_of_the_local_runner(tmp_path, caplog):
    overrides = ["strategy=[scaffold,feddyn,fednova]", "fraction_train=0.6", "num_rounds=5"]
    local = run(tmp_path / "local", *overrides)
    together = run(tmp_path / "batched", "runner=batched", *overrides)
    assert "one by one" not in caplog.text
    for name in ("loss", "train_loss"):
        np.testing.assert_allclose(numbers(together, name), numbers(local, name), rtol=2e-3)
    losses = {row["strategy"]: row["loss"] for row in together}
    assert len(set(losses.values())) == 3


@pytest.mark.usefixtures("quick_pictures")
def test_the_batched_runner_gives_the_same_bits_for_the_same_seed(tmp_path):
    one, two = (run(tmp_path / name, "runner=batched", "strategy=fedcurv") for name in "ab")
    assert [row["loss"] for row in one] == [row["loss"] for row in two]


@pytest.mark.usefixtures("quick_pictures")
@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_the_batched_runner_estimates_stacks(kind, tmp_path, monkeypatch):
    estimated = []

    def noted(stack, *more):
        estimated.extend(stack)
        return fisher_stacked(stack, *more)

    monkeypatch.setattr(batched, "fisher_stacked", noted)
    run(tmp_path, "runner=batched", "strategy=fedcurv", f"client.fisher_kind={kind}")
    assert len(estimated) == 7 * 3


@pytest.mark.usefixtures("quick_pictures")
def test_what_cannot_be_stacked_has_the_bits_of_the_local_runner(tmp_path, caplog):
    overrides = ("client=adam", "strategy=fedcurv")
    local = run(tmp_path / "local", *overrides)
    together = run(tmp_path / "batched", "runner=batched", *overrides)
    assert [row["loss"] for row in together] == [row["loss"] for row in local]
    why = "since client.optimizer is not SGD without momentum and weight decay"
    assert [r.message for r in caplog.records if why in r.message] == [
        f"runner=batched: clients train one by one, {why}"
    ]


def test_a_client_that_fails_is_told_and_the_others_are_trained():
    settings = TrainingSettings()

    def make_task(message, context):
        client = int(context.node_config["partition-id"])
        if client == 2:
            raise OSError("the disk is gone")
        return task_of(client, settings)

    grid = batched.BatchedGrid(client_app(make_task), make_task, len(SIZES))
    messages = []
    for node, context in grid.contexts.items():
        message = message_for(int(context.node_config["partition-id"]), 0.0, pulled=False)
        message.metadata.dst_node_id = node
        messages.append(message)
    replies = list(grid.replies(messages, timeout=60.0))
    assert [reply.has_error() for reply in replies] == [False, False, True, False, False]
    assert "the disk is gone" in replies[2].error.reason
    assert isinstance(replies[0].content["metrics"], MetricRecord)
    assert [r.metadata.src_node_id for r in replies] == list(grid.contexts)
    assert not list(grid.replies(messages, timeout=0.0))
