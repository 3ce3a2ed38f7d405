"""Optimizers and schedules of learning rates, by their names in torch."""

import math

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from torch import nn

from fedcurv.clients import LocalTask, TrainingSettings
from fedcurv.clients.learning_rates import LearningRates
from fedcurv.clients.local_round import begin_round
from fedcurv.clients.optimizers import OPTIMIZERS, require_proximal
from fedcurv.curvature import Curvature
from fedcurv.strategies.wire.records import Instruction
from tests.federation import message_with


def new_model():
    torch.manual_seed(0)
    return nn.Linear(3, 2, bias=False)  # a matrix alone: Muon steps nothing else


def steps(model, optimizer, number=5):
    generator = torch.Generator().manual_seed(1)
    for _ in range(number):
        optimizer.zero_grad()
        model(torch.randn(4, 3, generator=generator)).square().mean().backward()
        optimizer.step()
    return model.weight.detach()


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_every_optimizer_of_torch_takes_the_steps_that_it_takes_there(name):
    one, other = new_model(), new_model()
    kind = getattr(torch.optim, name)
    plain = {"weight_decay": 0.0} if name != "Rprop" else {}
    plain |= {"momentum": 0.0} if name in ("SGD", "RMSprop", "Muon") else {}
    expected = steps(one, kind(one.parameters(), lr=0.05, **plain))
    settings = TrainingSettings(optimizer=name.lower(), lr=0.05)
    assert torch.equal(steps(other, settings.make_optimizer(other)), expected)
    assert not torch.equal(expected, new_model().weight)


def test_options_are_torchs_and_lists_are_its_tuples():
    one, other = new_model(), new_model()
    options = {"betas": [0.5, 0.6], "amsgrad": True, "weight_decay": 0.1}
    settings = TrainingSettings(optimizer={"name": "AdamW", **options}, lr=0.05)
    hand_made = torch.optim.AdamW(
        one.parameters(), 0.05, betas=(0.5, 0.6), amsgrad=True, weight_decay=0.1
    )
    assert torch.equal(steps(other, settings.make_optimizer(other)), steps(one, hand_made))
    rmsprop = TrainingSettings(optimizer="rmsprop", momentum=0.3, weight_decay=0.2)
    defaults = rmsprop.make_optimizer(new_model()).defaults
    assert (defaults["momentum"], defaults["weight_decay"]) == (0.3, 0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "os:system"}, "optimizer: expected one of .*AdamW.*, got 'os:system'"),
        ({"optimizer": "Optimizer"}, "optimizer: expected one of"),
        ({"optimizer": 3}, "optimizer: expected a name, or a table of name and options, got 3"),
        ({"optimizer": {"eps": 1e-8}}, "optimizer: expected a name, or a table"),
        ({"optimizer": "lbfgs"}, "LBFGS cannot be used: .*needs a closure"),
        ({"optimizer": "SparseAdam"}, "SparseAdam cannot be used: it takes sparse gradients only"),
        (
            {"optimizer": {"name": "adagrad", "betas": [0.9, 0.99]}},
            "Adagrad takes lr_decay, weight_decay, initial_accumulator_value, .*; got 'betas'",
        ),
        ({"optimizer": {"name": "sgd", "lr": 0.1}}, "SGD takes .*; got 'lr'"),
        ({"optimizer": {"name": "adam", "maximize": True}}, "Adam takes .*; got 'maximize'"),
        ({"optimizer": {"name": "adam", "eps": math.nan}}, "eps must be a finite number.*nan"),
        ({"optimizer": {"name": "adam", "eps": "os:system"}}, "eps must be a finite number"),
        ({"optimizer": {"name": "adam", "betas": 0.9}}, "optimizer: Adam refuses this: "),
        ({"optimizer": {"name": "adam", "betas": [0.9, 2]}}, "Adam refuses this: Invalid beta"),
        ({"optimizer": "adam", "momentum": 0.9}, "Adam has no momentum; leave it at 0"),
        ({"optimizer": "rprop", "weight_decay": 0.1}, "Rprop has no weight_decay"),
        (
            {"optimizer": {"name": "sgd", "momentum": 0.5}, "momentum": 0.9},
            "momentum is given twice, as 0.9 and as 0.5",
        ),
        ({"schedule": "lion"}, "schedule: expected one of .*CosineAnnealingLR.*, got 'lion'"),
        ({"schedule": "LambdaLR"}, "schedule: LambdaLR cannot be used: it takes functions"),
        ({"schedule": "ReduceLROnPlateau"}, "it follows a metric, and clients that sit out"),
        ({"schedule": "OneCycleLR"}, "it has rates of its own beside client.lr"),
        ({"schedule": "StepLR"}, "schedule: StepLR refuses this: .*step_size"),
        ({"schedule": {"name": "StepLR", "step_size": 0}}, "schedule: StepLR refuses this"),
        (
            {"schedule": {"name": "StepLR", "step": 3}},
            "schedule: StepLR takes step_size, gamma, warm_up; got 'step'",
        ),
        (
            {"schedule": {"name": "ExponentialLR", "gamma": 0.9, "warm_up": -1}},
            "schedule: warm_up must be an integer >= 0, got -1",
        ),
        (
            {"schedule": {"name": "LinearLR", "start_factor": 0.0}},
            "schedule: LinearLR refuses this: Starting multiplicative factor",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as told:
        TrainingSettings(**settings)
    assert "\n" not in str(told.value)


@pytest.mark.skipif("Muon" not in OPTIMIZERS.names(), reason="an older torch has no Muon")
def test_an_optimizer_that_cannot_step_a_model_says_so():
    with pytest.raises(ValueError, match=r"Muon refuses this: .*2D"):
        TrainingSettings(optimizer="muon").check_model(nn.Linear(3, 2))
    TrainingSettings(optimizer="muon").check_model(new_model())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (None, lambda r: 0.4),
        ({"name": "StepLR", "step_size": 3, "gamma": 0.5}, lambda r: 0.4 * 0.5 ** ((r - 1) // 3)),
        ({"name": "exponentiallr", "gamma": 0.9}, lambda r: 0.4 * 0.9 ** (r - 1)),
        (
            {"name": "CosineAnnealingLR", "T_max": 12, "eta_min": 0.1},
            lambda r: 0.1 + 0.3 * (1 + math.cos(math.pi * (r - 1) / 12)) / 2,
        ),
        (
            {"name": "MultiStepLR", "milestones": [2, 7]},
            lambda r: 0.4 * 0.1 ** ((r > 2) + (r > 7)),
        ),
        (
            {"name": "ExponentialLR", "gamma": 0.9, "warm_up": 3},
            lambda r: 0.1 * r if r <= 3 else 0.4 * 0.9 ** (r - 4),
        ),
    ],
)
def test_the_rate_is_a_function_of_the_round_alone(schedule, expected):
    rates = LearningRates(0.4, schedule)
    for server_round in (9, 1, 4, 2, 8, 3, 12, 5):  # whatever was asked for before
        assert rates(server_round) == pytest.approx(expected(server_round))


def test_a_rate_that_is_no_rate_is_named_with_its_round():
    rates = LearningRates(0.4, {"name": "PolynomialLR", "total_iters": 5})
    rates.check(5)
    with pytest.raises(ValueError, match="round 6 has the learning rate 0, expected one > 0"):
        rates.check(8)
    with pytest.raises(ValueError, match=r"expected a round from 1 to 100,000, got 9007199"):
        rates(2**53)


def begun(config, instruction=None, **settings):
    model = nn.Linear(3, 2)
    message = message_with(instruction)
    message.content["arrays"] = ArrayRecord(model.state_dict())
    message.content["config"] = ConfigRecord(config)
    samples = (torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
    task = LocalTask(model, samples, settings=TrainingSettings(**settings))
    return begin_round(task, message, Context(1, 2, {"partition-id": 0}, RecordDict(), {}))


def test_a_client_trains_and_reports_with_the_rate_of_the_messages_round():
    """Whether or not it took part in the rounds before."""
    schedule = {"name": "ExponentialLR", "gamma": 0.5}
    local = begun({"server-round": 4}, lr=0.8, schedule=schedule)
    optimizer = local.task.settings.make_optimizer(local.model)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    assert local.reply().content["metrics"]["lr"] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="schedule: expected a round from 1 to"):
        begun({}, lr=0.8, schedule=schedule)


PROXIMAL = {"penalty_mode": "proximal"}


@pytest.mark.parametrize(
    "name", sorted({"Adadelta", "Adafactor", "ASGD", "Muon", "Rprop"} & set(OPTIMIZERS.names()))
)
def test_a_proximal_step_follows_no_optimizer_of_another_rate(name):
    with pytest.raises(ValueError, match=f"{name} .*out of proportion; use client.penalty_mode"):
        require_proximal(name.lower())
    if name != "Muon":  # which does not step biases
        with pytest.raises(ValueError, match=r"use client\.penalty_mode=gradient"):
            begun({"server-round": 1}, Instruction(0.5), optimizer=name, **PROXIMAL)
        begun({"server-round": 1}, Instruction(0.5), optimizer=name)
        begun({"server-round": 1}, optimizer=name, **PROXIMAL)  # no pull, nothing to follow
    with pytest.raises(ValueError, match="with lr_decay"):
        require_proximal({"name": "Adagrad", "lr_decay": 0.1})


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS.names()) - {"Muon"}))
def test_the_pull_of_an_optimizer_is_the_gradient_of_the_loss_with_the_penalty(name):
    """In mode gradient, a step is that of the loss with the penalty as a term of it."""
    ones = {n: torch.ones_like(p) for n, p in nn.Linear(3, 2).named_parameters()}
    pull = Instruction(
        0.5,
        sums_round=1,
        contributors=["a", "b"],
        sums=Curvature(ones, {n: 3 * value for n, value in ones.items()}),
    )
    local = begun({"server-round": 2}, pull, optimizer=name, lr=0.01)
    expected = nn.Linear(3, 2)
    expected.load_state_dict(local.model.state_dict())
    by_hand = local.task.settings.make_optimizer(expected)
    optimizer = local.task.settings.make_optimizer(local.model)
    for term in local.terms:
        term.attach(local.model, optimizer, local.task.settings)
    inputs, targets = local.samples
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(local.model(inputs), targets).backward()
        optimizer.step()
        by_hand.zero_grad()
        penalty = sum(0.5 * (p - 3).square().sum() for p in expected.parameters())
        (nn.functional.cross_entropy(expected(inputs), targets) + penalty).backward()
        by_hand.step()
    for one, other in zip(local.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
