import math
import re
import sys
import warnings

import pytest
import torch
from torch import nn

from fedcurv import Curvature, CurvaturePenalty
from tests.memory import living_bytes
from tests.oracles import fedcurv as oracle


class Vector(nn.Module):
    """One parameter vector, so that the oracle's matrices fit it."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(values.clone())


def nodes(number: int, size: int, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(size, generator=generator, dtype=torch.float64)
    solutions = [
        (centre + torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype)
        for _ in range(number)
    ]
    fishers = [
        torch.rand(size, generator=generator, dtype=torch.float64).square().to(dtype)
        for _ in range(number)
    ]
    parts = [
        Curvature({"theta": f}, {"theta": f * s}) for f, s in zip(fishers, solutions, strict=True)
    ]
    terms = [oracle.NodeTerm(f, s) for f, s in zip(fishers, solutions, strict=True)]
    return centre.to(dtype), parts, terms


def gradient_of(penalty: CurvaturePenalty, model: nn.Module) -> torch.Tensor:
    model.zero_grad(set_to_none=True)
    penalty.add_gradient()
    return model.theta.grad


@pytest.mark.parametrize("number", range(2, 9))
@pytest.mark.parametrize("own", [None, 0, 1])
@pytest.mark.parametrize("absent", [(), (1,)])
def test_value_and_gradient_equal_the_double_sum(number, own, absent):
    """With and without the node's own term in the sum, all nodes or some taking part."""
    theta, parts, terms = nodes(number, 7)
    present = [i for i in range(number) if i not in absent]
    total = Curvature.sum(parts[i] for i in present)
    if own in present:
        total = total - parts[own]
    others = [terms[i] for i in present if i != own]
    model = Vector(theta)
    penalty = CurvaturePenalty(model, total, strength=0.7)

    expected = oracle.gradient(theta, others, 0.7)
    torch.testing.assert_close(gradient_of(penalty, model), expected)
    (by_autograd,) = torch.autograd.grad(penalty.value(), model.theta)
    torch.testing.assert_close(by_autograd, expected)
    constant = oracle.smallest_penalty(others, 0.7) if others else 0.0
    torch.testing.assert_close(
        penalty.value() + constant, torch.as_tensor(oracle.penalty(theta, others, 0.7)).double()
    )


def test_there_is_no_half_in_front():
    model = Vector(torch.tensor([3.0]))
    penalty = CurvaturePenalty(
        model, Curvature({"theta": torch.tensor([2.0])}, {"theta": torch.tensor([2.0])}), strength=5
    )
    # 5 · 2 · (3 − 1)² and its derivative 2 · 5 · 2 · (3 − 1)
    assert penalty.value().item() == 40.0
    assert gradient_of(penalty, model).item() == 40.0


@pytest.mark.parametrize(("size", "together"), [(0.05, False), (1.0, True)])
def test_float32_gradient_from_the_sums_of_100_nodes_is_accurate(size, together):
    """Solutions 1e-3 from θ: round it, with weights as networks have them, or to one side."""
    generator = torch.Generator().manual_seed(0)
    theta = size * torch.randn(2000, generator=generator)
    fishers = [torch.rand(2000, generator=generator).square() for _ in range(100)]
    away = [torch.randn(2000, generator=generator) for _ in range(100)]
    solutions = [theta + 1e-3 * (a.abs() if together else a) for a in away]
    parts = [
        Curvature({"theta": f.double()}, {"theta": f.double() * s.double()})
        for f, s in zip(fishers, solutions, strict=True)
    ]
    # as the server and the client do it: summed in float64, sent and subtracted in float32
    total = Curvature.sum(parts).to(torch.float32) - parts[0].to(torch.float32)
    model = Vector(theta)
    got = gradient_of(CurvaturePenalty(model, total, strength=1.0), model)
    others = zip(fishers[1:], solutions[1:], strict=True)
    expected = 2 * sum(f.double() * (theta.double() - s.double()) for f, s in others)
    assert (got.double() - expected).norm() / expected.norm() <= 1e-4


def test_proximal_step_minimises_its_objective():
    theta, parts, _ = nodes(4, 6)
    total, lr, strength = Curvature.sum(parts), 0.3, 0.8
    model = Vector(theta)
    CurvaturePenalty(model, total, strength=strength).proximal_step(lr)
    u = model.theta.detach().requires_grad_()
    p, q = total.precision["theta"], total.weighted_parameters["theta"]
    objective = (u - theta).square().sum() / (2 * lr) + strength * (p * u * u - 2 * q * u).sum()
    (slope,) = torch.autograd.grad(objective, u)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-12, rtol=0)


@pytest.mark.parametrize("lr_times_strength", [1e-3, 1.0, 1e3, 1e9])
def test_proximal_steps_converge_for_every_strength_where_gradient_steps_diverge(
    lr_times_strength,
):
    theta, parts, _ = nodes(3, 6)
    total = Curvature.sum(parts)
    optimum = total.weighted_parameters["theta"] / total.precision["theta"]
    model = Vector(theta)
    penalty = CurvaturePenalty(model, total, strength=lr_times_strength)
    distance = (model.theta - optimum).norm()
    for _ in range(20):
        penalty.proximal_step(1.0)
        assert (model.theta - optimum).norm() <= distance
        distance = (model.theta - optimum).norm()
    if lr_times_strength >= 1e3:
        diverging = Vector(theta)
        penalty = CurvaturePenalty(diverging, total, strength=lr_times_strength)
        optimizer = torch.optim.SGD(diverging.parameters(), lr=1.0)
        penalty.attach(optimizer)
        for _ in range(20):
            optimizer.zero_grad()
            optimizer.step()
        assert (diverging.theta - optimum).norm() > 1e3


@pytest.mark.parametrize(
    ("mode", "strength", "warns"),
    [("gradient", 4.9, False), ("gradient", 5.1, True), ("proximal", 5.1, False)],
)
def test_steps_that_would_diverge_are_warned_of(mode, strength, warns):
    ones = torch.ones(2)
    model = Vector(ones)
    penalty = CurvaturePenalty(
        model, Curvature({"theta": 2 * ones}, {"theta": 0 * ones}), strength=strength
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        penalty.attach(optimizer, mode=mode)
    said = ["strength=5.1 at lr=0.1" in str(warning.message) for warning in caught]
    assert said == [True] * warns
    for _ in range(200):
        optimizer.zero_grad()
        optimizer.step()
    assert (model.theta.abs().max() > 1) == warns


@pytest.mark.parametrize(
    ("make", "mode", "says"),
    [
        (lambda p: torch.optim.Rprop(p), "proximal", "Rprop finds the size of its steps by itself"),
        (
            lambda p: type("Mine", (torch.optim.ASGD,), {})(p),
            "proximal",
            "Mine lowers its",
        ),
        (lambda p: torch.optim.Adagrad(p, lr_decay=0.1), "proximal", "Adagrad lowers .* lr_decay"),
        (lambda p: torch.optim.Rprop(p), "gradient", ""),
        (lambda p: torch.optim.Adam(p), "proximal", ""),
        (lambda p: torch.optim.Adagrad(p), "proximal", ""),
    ],
)
def test_steps_of_other_sizes_than_the_learning_rate_are_told_beside_proximal_ones(
    make, mode, says
):
    ones = torch.ones(2)
    model = Vector(ones)
    sums = Curvature({"theta": 0.01 * ones}, {"theta": 0 * ones})
    penalty, told = CurvaturePenalty(model, sums, strength=0.1), []
    penalty.tell = told.append
    penalty.attach(make(model.parameters()), mode=mode)
    assert len(told) == bool(says)
    assert all(re.search(f"^{says}.* out of proportion; use mode='gradient'", one) for one in told)


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_strength_zero_changes_no_bit(mode):
    theta, parts, _ = nodes(3, 6, torch.float32)
    results = []
    for attached in (False, True):
        model = Vector(theta)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if attached:
            CurvaturePenalty(model, Curvature.sum(parts), strength=0.0).attach(optimizer, mode=mode)
        for _ in range(5):
            optimizer.zero_grad()
            model.theta.sin().sum().backward()
            optimizer.step()
        results.append(model.theta.detach().clone())
    assert torch.equal(*results)


def test_attached_gradient_is_the_penalised_loss():
    theta, parts, _ = nodes(3, 6)
    total = Curvature.sum(parts)
    with_term, attached = Vector(theta), Vector(theta)
    term = CurvaturePenalty(with_term, total, strength=0.2)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (with_term, attached)]
    CurvaturePenalty(attached, total, strength=0.2).attach(optimizers[1])
    for _ in range(10):
        for model, optimizer in zip((with_term, attached), optimizers, strict=True):
            optimizer.zero_grad()
            loss = model.theta.sin().sum()
            (loss + term.value() if model is with_term else loss).backward()
            optimizer.step()
    torch.testing.assert_close(with_term.theta, attached.theta)


def test_each_parameter_group_has_its_own_learning_rate_and_schedules_are_followed():
    model = nn.Linear(1, 1).double()
    shape = {"weight": (1, 1), "bias": (1,)}
    ones = {name: torch.ones(s, dtype=torch.float64) for name, s in shape.items()}
    penalty = CurvaturePenalty(model, Curvature(ones, ones), strength=1.0)
    optimizer = torch.optim.SGD(
        [{"params": [model.weight], "lr": 0.5}, {"params": [model.bias], "lr": 0.25}]
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    penalty.attach(optimizer, mode="proximal")
    expected = {name: p.item() for name, p in model.named_parameters()}
    for step in range(3):
        optimizer.step()
        for name, lr in (("weight", 0.5), ("bias", 0.25)):
            factor = 2 * lr * 0.5**step
            expected[name] = (expected[name] + factor) / (1 + factor)
        schedule.step()
    assert {name: p.item() for name, p in model.named_parameters()} == pytest.approx(expected)


def rates(number: int) -> list[float]:
    """Learning rates over six decades, some of them twice, some 0."""
    generator = torch.Generator().manual_seed(0)
    values = 10 ** (6 * torch.rand(number, generator=generator, dtype=torch.float64) - 4)
    values[::7] = 0
    return values.repeat_interleave(2).tolist()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_proximal_steps_are_exact_under_a_schedule(dtype, tolerance):
    """Between two steps the penalty is held in a form that belongs to one learning rate."""
    theta, parts, _ = nodes(3, 50, dtype)
    total = Curvature.sum(parts)
    precision, weighted = (
        total.precision["theta"].double(),
        total.weighted_parameters["theta"].double(),
    )
    model, expected = Vector(theta), theta.double()
    penalty = CurvaturePenalty(model, total, strength=0.7)
    kicks = torch.Generator().manual_seed(1)
    for lr in rates(100):
        kick = 0.1 * torch.randn(50, generator=kicks, dtype=torch.float64)
        model.theta.data += kick.to(dtype)
        expected = (expected + kick + 2 * lr * 0.7 * weighted) / (1 + 2 * lr * 0.7 * precision)
        penalty.proximal_step(lr)
        error = (model.theta.double() - expected).abs().max() / expected.abs().max()
        assert error <= tolerance
        model.theta.data.copy_(expected)


def test_value_and_gradient_are_the_same_after_proximal_steps():
    theta, parts, terms = nodes(3, 7)
    model = Vector(theta)
    penalty = CurvaturePenalty(model, Curvature.sum(parts), strength=0.7)
    for lr in (0.3, 0.02, 5.0):
        penalty.proximal_step(lr)
        there = model.theta.detach().clone()
        constant = oracle.smallest_penalty(terms, 0.7)
        torch.testing.assert_close(penalty.value() + constant, oracle.penalty(there, terms, 0.7))
        (by_autograd,) = torch.autograd.grad(penalty.value(), model.theta)
        torch.testing.assert_close(by_autograd, oracle.gradient(there, terms, 0.7))
    total = Curvature.sum(parts)
    torch.testing.assert_close(penalty.curvature.precision, total.precision)
    torch.testing.assert_close(penalty.curvature.weighted_parameters, total.weighted_parameters)
    torch.testing.assert_close(gradient_of(penalty, model), oracle.gradient(there, terms, 0.7))
    penalty.proximal_step(0.3)
    torch.testing.assert_close(
        model.theta.detach(),
        (there + 0.42 * Curvature.sum(parts).weighted_parameters["theta"])
        / (1 + 0.42 * Curvature.sum(parts).precision["theta"]),
    )


def test_the_users_statistics_stay_as_they_are():
    theta, parts, _ = nodes(2, 3)
    before = parts[0].precision["theta"].clone(), parts[0].weighted_parameters["theta"].clone()
    penalty = CurvaturePenalty(Vector(theta), parts[0], strength=1.0)
    penalty.proximal_step(0.5)
    assert torch.equal(parts[0].precision["theta"], before[0])
    assert torch.equal(parts[0].weighted_parameters["theta"], before[1])


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_there_is_no_pull_without_precision(mode):
    """Only rounding could leave weighted parameters there, and its slope would have no end."""
    model = Vector(torch.tensor([1.0, 1.0]))
    statistics = Curvature({"theta": torch.tensor([0.0, 2.0])}, {"theta": torch.tensor([5.0, 4.0])})
    penalty = CurvaturePenalty(model, statistics, strength=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalty.attach(optimizer, mode=mode)
    optimizer.zero_grad()
    model.theta.sum().mul(0).backward()
    optimizer.step()
    moved = 1 + 0.4 if mode == "gradient" else (1 + 0.8) / 1.4
    torch.testing.assert_close(model.theta.detach(), torch.tensor([1.0, moved]))
    torch.testing.assert_close(penalty.value(), torch.tensor(2 * (moved - 2) ** 2))


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_the_penalty_holds_two_numbers_for_each_parameter(mode):
    model = nn.Sequential(nn.Linear(50, 40), nn.Linear(40, 30))
    fisher = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.zero_grad()
    model(torch.randn(2, 50)).sum().backward()
    gradients = [p.grad for p in model.parameters()]  # seen by Python, and so counted
    before = living_bytes()
    penalty = CurvaturePenalty(model, Curvature.at(model, fisher), strength=1.0)
    penalty.attach(optimizer, mode=mode)
    optimizer.step()
    assert living_bytes() - before <= 2 * sum(g.nbytes for g in gradients)


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_compiled_models_and_optimizers_feel_the_penalty(mode):
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        fisher = {name: torch.rand_like(p) for name, p in model.named_parameters()}
        statistics = Curvature.at(model, fisher)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        CurvaturePenalty(model, statistics, strength=0.5).attach(optimizer, mode=mode)
        forward = torch.compile(model, backend="eager") if compiled else model
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for _ in range(3):
            optimizer.zero_grad()
            forward(torch.ones(2, 4)).square().sum().backward()
            step()
        results.append([p.detach().clone() for p in model.parameters()])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_clipping_is_of_the_losss_own_gradient(mode):
    theta, parts, terms = nodes(2, 3)
    model = Vector(theta)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    CurvaturePenalty(model, parts[0], strength=0.1).attach(optimizer, mode=mode)
    (model.theta.sum() * 100).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    clipped = torch.full_like(theta, 1e-3 / math.sqrt(3))
    optimizer.step()
    if mode == "gradient":
        expected = theta - clipped - oracle.gradient(theta, terms[:1], 0.1)
    else:
        p, q = parts[0].precision["theta"], parts[0].weighted_parameters["theta"]
        expected = (theta - clipped + 0.2 * q) / (1 + 0.2 * p)
    torch.testing.assert_close(model.theta.detach(), expected)


def test_layouts_other_than_the_statistics_own_are_fine():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    fisher = {name: torch.rand(p.shape) for name, p in model.named_parameters()}
    solution = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
    statistics = Curvature(fisher, {name: f * solution[name] for name, f in fisher.items()})
    expected = {
        name: (p + 0.2 * statistics.weighted_parameters[name]) / (1 + 0.2 * fisher[name])
        for name, p in model.named_parameters()
    }
    CurvaturePenalty(model, statistics, strength=1.0).proximal_step(0.1)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, expected[name])


def test_a_removed_handle_ends_the_penalty():
    theta, parts, _ = nodes(2, 3)
    model = Vector(theta)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    CurvaturePenalty(model, parts[0], strength=1.0).attach(optimizer).remove()
    optimizer.step()
    assert torch.equal(model.theta, theta)


def test_gradient_accumulation_feels_the_penalty_once_per_step():
    theta, parts, terms = nodes(2, 3)
    model = Vector(theta)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    CurvaturePenalty(model, parts[0], strength=0.1).attach(optimizer)
    for _ in range(4):
        (model.theta.sum() / 4).backward()
    optimizer.step()
    torch.testing.assert_close(model.theta, theta - 1 - oracle.gradient(theta, terms[:1], 0.1))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_gradient_scaling_does_not_scale_the_penalty(fused, mode):
    theta, parts, _ = nodes(2, 3, torch.float32)
    results = []
    for scaled in (False, True):
        model = Vector(theta)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        CurvaturePenalty(model, parts[0], strength=0.1).attach(optimizer, mode=mode)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(model.theta.sin().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append(model.theta.detach())
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_a_step_that_the_scaler_skips_moves_nothing(fused, mode):
    theta, parts, _ = nodes(2, 3, torch.float32)
    model = Vector(theta)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    CurvaturePenalty(model, parts[0], strength=0.1).attach(optimizer, mode=mode)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale((model.theta * math.inf).sum()).backward()
    scaler.step(optimizer)
    assert torch.equal(model.theta.detach(), theta)


def test_a_closure_is_refused_before_its_backward_pass_erases_the_penalty():
    theta, parts, _ = nodes(2, 3)
    model = Vector(theta)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalty = CurvaturePenalty(model, parts[0], strength=1.0)
    penalty.attach(optimizer)
    for step in (lambda: optimizer.step(lambda: 0.0), lambda: optimizer.step(closure=lambda: 0.0)):
        with pytest.raises(RuntimeError, match=r"add penalty\.value\(\) to the loss"):
            step()
    with pytest.raises(TypeError, match="LBFGS"):
        penalty.attach(torch.optim.LBFGS(model.parameters()))


def test_an_optimizer_of_another_model_is_refused():
    theta, parts, _ = nodes(2, 3)
    penalty = CurvaturePenalty(Vector(theta), parts[0], strength=1.0)
    with pytest.raises(ValueError, match="got one without theta"):
        penalty.attach(torch.optim.SGD(Vector(theta).parameters(), lr=0.1))
    with pytest.raises(ValueError, match="mode must be one of gradient, proximal, got 'both'"):
        penalty.attach(torch.optim.SGD(Vector(theta).parameters(), lr=0.1), mode="both")


@pytest.mark.parametrize("strength", [-0.1, math.nan, math.inf])
def test_strength_must_be_finite_and_not_negative(strength):
    theta, parts, _ = nodes(2, 3)
    with pytest.raises(ValueError, match="strength must be finite and >= 0"):
        CurvaturePenalty(Vector(theta), parts[0], strength=strength)


def test_statistics_of_other_parameters_are_refused():
    with pytest.raises(ValueError, match="'theta' is missing in the statistics"):
        CurvaturePenalty(
            Vector(torch.ones(2)), Curvature({"w": torch.ones(2)}, {"w": torch.ones(2)}), strength=1
        )


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_statistics_of_a_bfloat16_model_stay_in_float32(mode):
    """In bfloat16 Pθ − Q would be off by more than it is worth."""
    theta = torch.tensor([1.0, -2.0], dtype=torch.bfloat16)
    model = Vector(theta)
    precision, optimum = torch.tensor([3.0, 5.0]), theta.float() + 0.001
    penalty = CurvaturePenalty(
        model, Curvature({"theta": precision}, {"theta": precision * optimum}), strength=1.0
    )
    gradient = gradient_of(penalty, model).float()
    torch.testing.assert_close(gradient, 2 * precision * -0.001, rtol=0.01, atol=0)
    penalty.attach(torch.optim.SGD(model.parameters(), lr=0.1), mode=mode)


def test_frozen_parameters_stay():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    shape = {"weight": torch.ones(2, 2)}
    penalty = CurvaturePenalty(model, Curvature(shape, shape), strength=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalty.attach(optimizer)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(model.bias, before)


# ---- training code that makes its own optimizer


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_whichever_optimizer_steps_feels_the_same_as_one_that_is_named(mode):
    def train(attach_first: bool) -> torch.Tensor:
        start, parts, _ = nodes(3, 5)
        model = Vector(start)
        penalty = CurvaturePenalty(model, sum(parts[1:], parts[0]), strength=0.05)
        if attach_first:
            penalty.attach(mode=mode)
        optimizer = torch.optim.SGD(
            [{"params": [model.theta], "lr": 0.2}, {"params": [torch.zeros(1)], "lr": 9.0}]
        )
        if not attach_first:
            penalty.attach(optimizer, mode=mode)
        for _ in range(4):
            model.theta.grad = torch.cos(model.theta.detach())
            optimizer.step()
        return model.theta.detach()

    named, found = train(False), train(True)
    assert torch.equal(named, found)
    assert not torch.equal(named, nodes(3, 5)[0])


def a_step(parameter: nn.Parameter) -> torch.Tensor:
    parameter.grad = torch.zeros_like(parameter)
    torch.optim.SGD([parameter], lr=0.1).step()
    return parameter.detach().clone()


def test_optimizers_of_other_models_feel_nothing():
    start, parts, _ = nodes(3, 5)
    model, other = Vector(start), Vector(start)
    penalty = CurvaturePenalty(model, parts[0], strength=0.5)
    handle = penalty.attach()
    assert torch.equal(a_step(other.theta), start)
    assert not penalty.found_optimizer
    moved = a_step(model.theta)
    assert not torch.equal(moved, start)
    assert penalty.found_optimizer
    handle.remove()
    assert torch.equal(a_step(model.theta), moved)


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_a_penalty_that_is_forgotten_ends_by_itself(mode):
    """As when the training code raises, in a process that goes on to other clients."""
    start, parts, _ = nodes(3, 5)
    model = Vector(start)
    hooks = sys.modules["torch.optim.optimizer"]
    before = len(hooks._global_optimizer_pre_hooks), len(hooks._global_optimizer_post_hooks)
    CurvaturePenalty(model, parts[0], strength=0.5).attach(mode=mode)
    assert torch.equal(a_step(model.theta), start)
    after = len(hooks._global_optimizer_pre_hooks), len(hooks._global_optimizer_post_hooks)
    assert after == before


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
@pytest.mark.parametrize("is_named", [True, False])
def test_two_optimizers_pull_each_its_own_part_once(mode, is_named):
    results = []
    for number in (1, 2):
        model, statistics = linear_and_statistics()
        penalty = CurvaturePenalty(model, statistics, strength=0.5)
        parts = [[model.weight], [model.bias]] if number == 2 else [[*model.parameters()]]
        optimizers = [torch.optim.SGD(part, lr=0.1) for part in parts]
        for optimizer in optimizers if is_named else [None]:
            penalty.attach(optimizer, mode=mode)
        for _ in range(3):
            model.zero_grad()
            model(torch.ones(1, 2).double()).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


# ---- whatever the optimizer does


def linear_and_statistics() -> tuple[nn.Linear, Curvature]:
    torch.manual_seed(0)
    model = nn.Linear(2, 2).double()
    fisher = {n: torch.rand_like(p) for n, p in model.named_parameters()}
    return model, Curvature(fisher, {n: f * torch.randn_like(f) for n, f in fisher.items()})


def pulled(theta: torch.Tensor, statistics: Curvature, name: str, factor: float) -> torch.Tensor:
    """The proximal step, from its formula."""
    p, q = statistics.precision[name], statistics.weighted_parameters[name]
    return (theta + factor * q) / (1 + factor * p)


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_what_is_frozen_after_attaching_stays_and_moves_again_once_unfrozen(mode):
    model, statistics = linear_and_statistics()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalty = CurvaturePenalty(model, statistics, strength=0.5)
    penalty.attach(optimizer, mode=mode)
    model.bias.requires_grad_(False)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer.step()
    penalty.add_gradient()
    penalty.proximal_step(0.1)
    assert torch.equal(model.bias, before["bias"]) and model.bias.grad is None
    assert not torch.equal(model.weight, before["weight"])
    model.bias.requires_grad_(True)
    optimizer.step()
    assert not torch.equal(model.bias, before["bias"])


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_what_the_optimizer_does_not_hold_stays_until_a_group_brings_it(mode):
    model, statistics = linear_and_statistics()
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    CurvaturePenalty(model, statistics, strength=0.5).attach(optimizer, mode=mode)
    bias = model.bias.detach().clone()
    optimizer.step()
    assert torch.equal(model.bias, bias)
    optimizer.add_param_group({"params": [model.bias], "lr": 0.2})
    optimizer.zero_grad()
    model.bias.grad = torch.zeros_like(bias)
    optimizer.step()
    p, q = statistics.precision["bias"], statistics.weighted_parameters["bias"]
    if mode == "gradient":
        expected = bias - 0.2 * 2 * 0.5 * (p * bias - q)
    else:
        expected = pulled(bias, statistics, "bias", 2 * 0.2 * 0.5)
    torch.testing.assert_close(model.bias.detach(), expected)


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_maximising_optimizers_are_pulled_towards_the_optimum_too(mode, options):
    theta, parts, terms = nodes(3, 6)
    total, lr, strength = Curvature.sum(parts), 0.05, 0.4
    model, expected = Vector(theta), theta.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, maximize=True, **options)
    CurvaturePenalty(model, total, strength=strength).attach(optimizer, mode=mode)
    for _ in range(20):
        optimizer.zero_grad()
        model.theta.sin().sum().backward()
        optimizer.step()
        ascent = lr * expected.cos()
        if mode == "gradient":
            expected = expected + ascent - lr * oracle.gradient(expected, terms, strength)
        else:
            expected = pulled(expected + ascent, total, "theta", 2 * lr * strength)
    torch.testing.assert_close(model.theta.detach(), expected)


def test_a_group_that_maximises_beside_one_that_minimises_is_pulled_the_same_way():
    model, statistics = linear_and_statistics()
    groups = [{"params": [model.weight], "maximize": True}, {"params": [model.bias]}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    CurvaturePenalty(model, statistics, strength=0.5).attach(optimizer)
    expected = {
        n: p.detach()
        - 0.1 * (statistics.precision[n] * p.detach() - statistics.weighted_parameters[n])
        for n, p in model.named_parameters()
    }
    optimizer.step()
    torch.testing.assert_close(dict(model.state_dict()), expected)


EVERY_OPTIMIZER = [
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.Optimizer)
    and name not in ("Optimizer", "LBFGS", "SparseAdam", "Muon")
]


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("mode", ["gradient", "proximal"])
@pytest.mark.parametrize("name", EVERY_OPTIMIZER)
def test_every_optimizer_goes_towards_the_optimum_if_nothing_else_pulls(name, mode, maximize):
    theta, parts, _ = nodes(3, 6)
    total = Curvature.sum(parts)
    optimum = total.weighted_parameters["theta"] / total.precision["theta"]
    model = Vector(theta)
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01, maximize=maximize)
    CurvaturePenalty(model, total, strength=1.0).attach(optimizer, mode=mode)
    for _ in range(40):
        model.theta.grad = torch.zeros_like(theta)
        optimizer.step()
    after, before = (model.theta.detach() - optimum).abs(), (theta - optimum).abs()
    assert bool((after <= before).all()) and bool((after < before).any())


class Words(nn.Module):
    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(table.clone(), freeze=False, sparse=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table(x).square().sum()


def words_and_statistics() -> tuple[Words, Curvature]:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    precision = torch.rand(7, 3, generator=generator, dtype=torch.float64)
    optimum = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    name = "table.weight"
    return Words(table), Curvature({name: precision}, {name: precision * optimum})


def test_sparse_gradients_are_pulled_in_every_row():
    words, looked_up = words_and_statistics(), torch.tensor([1, 4, 4])
    for mode in ("gradient", "proximal"):
        model, statistics = words_and_statistics()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        CurvaturePenalty(model, statistics, strength=0.5).attach(optimizer, mode=mode)
        expected = words[0].table.weight.detach().clone()
        p, q = statistics.precision["table.weight"], statistics.weighted_parameters["table.weight"]
        for _ in range(3):
            optimizer.zero_grad()
            model(looked_up).backward()
            optimizer.step()
            step = torch.zeros_like(expected)
            for row in looked_up.tolist():
                step[row] += 0.1 * 2 * expected[row]
            if mode == "gradient":
                expected = expected - step - 0.1 * (p * expected - q)
            else:
                expected = pulled(expected - step, statistics, "table.weight", 0.1)
        torch.testing.assert_close(model.table.weight.detach(), expected)


def test_adagrad_takes_a_pulled_sparse_gradient_as_the_dense_one():
    results = []
    for sparse in (True, False):
        model, statistics = words_and_statistics()
        model.table.sparse = sparse
        optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
        CurvaturePenalty(model, statistics, strength=0.5).attach(optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.tensor([1, 4, 4])).backward()
            optimizer.step()
        results.append(model.table.weight.detach())
    torch.testing.assert_close(*results)


def test_sparse_adam_is_refused_in_gradient_mode_and_followed_by_proximal_steps():
    model, statistics = words_and_statistics()
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.1)
    penalty = CurvaturePenalty(model, statistics, strength=0.5)
    with pytest.raises(TypeError, match=r"SparseAdam for table\.weight.*use mode='proximal'"):
        penalty.attach(optimizer)
    penalty.attach(optimizer, mode="proximal")
    alone = words_and_statistics()[0]
    other = torch.optim.SparseAdam(alone.parameters(), lr=0.1)
    for one, its in ((model, optimizer), (alone, other)):
        one(torch.tensor([1, 4])).backward()
        its.step()
    expected = pulled(alone.table.weight.detach(), statistics, "table.weight", 0.1)
    torch.testing.assert_close(model.table.weight.detach(), expected)


def test_complex_parameters_are_refused_by_name():
    model = Vector(torch.ones(2, dtype=torch.complex128))
    ones = {"theta": torch.ones(2).double()}
    with pytest.raises(ValueError, match="real parameters, got complex theta"):
        CurvaturePenalty(model, Curvature(ones, ones), strength=1.0)
    with pytest.raises(ValueError, match="real parameters, got complex theta"):
        Curvature.at(model, ones)


class Tagged(torch.Tensor):
    """A tensor that carries something, and does so through every operation that sees it."""

    seen = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        Tagged.seen += 1
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_parameters_of_a_tensor_subclass_are_pulled_as_plain_ones(mode):
    theta, parts, _ = nodes(2, 4)
    results = []
    for is_subclass in (False, True):
        model = Vector(theta)
        if is_subclass:
            model.theta = nn.Parameter(theta.clone().as_subclass(Tagged))
        penalty = CurvaturePenalty(model, parts[0], strength=0.3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        penalty.attach(optimizer, mode=mode)
        for _ in range(3):
            optimizer.zero_grad()
            model.theta.sin().sum().backward()
            optimizer.step()
        value = penalty.value()
        assert type(value) is torch.Tensor and value.requires_grad
        assert all(type(p) is torch.Tensor for p in penalty.curvature.precision.values())
        results.append(torch.cat([model.theta.detach().as_subclass(torch.Tensor), value[None]]))
    torch.testing.assert_close(*results)


# ---- some of the parameters


@pytest.mark.parametrize("parameters", [["weight"], lambda name: name == "weight"])
@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_only_chosen_parameters_are_pulled(parameters, mode):
    model, statistics = linear_and_statistics()
    penalty = CurvaturePenalty(model, statistics, strength=0.5, parameters=parameters)
    assert list(penalty.curvature.precision) == ["weight"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalty.attach(optimizer, mode=mode)
    bias, weight = model.bias.detach().clone(), model.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.bias, bias)
    assert not torch.equal(model.weight, weight)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (["weigth"], "must name parameters of the model, got weigth; it has weight, bias"),
        ("weight", "got one string, 'weight'; put it into a list"),
        ([], "must choose at least one parameter, got none of weight, bias"),
        (lambda name: False, "must choose at least one parameter, got none of weight, bias"),
    ],
)
def test_a_choice_that_does_not_fit_the_model_is_refused(parameters, message):
    model, statistics = linear_and_statistics()
    with pytest.raises(ValueError, match=message):
        CurvaturePenalty(model, statistics, strength=0.5, parameters=parameters)


def test_chosen_parameters_need_statistics():
    model, statistics = linear_and_statistics()
    with pytest.raises(ValueError, match="'bias' is missing in the statistics"):
        CurvaturePenalty(
            model, statistics.only(["weight"]), strength=0.5, parameters=["weight", "bias"]
        )


class Subclass(torch.optim.SGD):
    """Clips, and leaves the step to its parent, whose hooks torch calls once more."""

    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, 100.0)
        return super().step(closure)


class Wrapper(torch.optim.Optimizer):
    """Steps by another optimizer of the same parameters."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        super().__init__(inner.param_groups, {})

    def step(self, closure=None):
        return self.inner.step(closure)


NESTED = {
    "plain": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "subclass": lambda parameters: Subclass(parameters, lr=0.1),
    "wrapper": lambda parameters: Wrapper(torch.optim.SGD(parameters, lr=0.1)),
    "wrapped subclass": lambda parameters: Wrapper(Subclass(parameters, lr=0.1)),
}


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("mode", ["gradient", "proximal"])
@pytest.mark.parametrize("name", NESTED)
def test_steps_within_a_step_pull_once(name, mode, is_named):
    start, parts, _ = nodes(3, 5)
    model, p, q = Vector(start), parts[0].precision["theta"], parts[0].weighted_parameters["theta"]
    optimizer = NESTED[name]([model.theta])
    penalty = CurvaturePenalty(model, parts[0], strength=0.5)
    penalty.attach(optimizer if is_named else None, mode=mode)
    expected = start.clone()
    for number in range(3):
        model.theta.grad = torch.cos(model.theta.detach())
        if mode == "gradient":
            expected -= 0.1 * (expected.cos() + 2 * 0.5 * (p * expected - q))
        else:
            expected -= 0.1 * expected.cos()
            expected = (expected + 2 * 0.1 * 0.5 * q) / (1 + 2 * 0.1 * 0.5 * p)
        if number == 1:  # a step that raises leaves nothing behind
            good, optimizer.param_groups[0]["params"] = optimizer.param_groups[0]["params"], [None]
            with pytest.raises((AttributeError, TypeError)):
                optimizer.step()
            optimizer.param_groups[0]["params"] = good
        optimizer.step()
    torch.testing.assert_close(model.theta.detach(), expected)


@pytest.mark.parametrize(
    ("first", "second"), [("named", "named"), ("all", "named"), ("named", "all"), ("all", "all")]
)
def test_a_penalty_is_felt_once_or_refused(first, second):
    start, parts, _ = nodes(3, 5)
    model = Vector(start)
    optimizer = torch.optim.SGD([model.theta], lr=0.1)
    penalty = CurvaturePenalty(model, parts[0], strength=0.5)
    handle = penalty.attach(optimizer if first == "named" else None)
    with pytest.raises(ValueError, match=r"attached already.*remove\(\) its handle first"):
        penalty.attach(optimizer if second == "named" else None, mode="proximal")
    handle.remove()
    penalty.attach(optimizer if second == "named" else None)
    penalty_of_another_model = CurvaturePenalty(Vector(start), parts[0], strength=0.5)
    penalty_of_another_model.attach()


class Duck:
    """Has parameters and a step, and calls no hooks."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups = inner, inner.param_groups


class WithoutConstructor(torch.optim.Optimizer):
    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups = inner, inner.param_groups


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
@pytest.mark.parametrize("kind", [Duck, WithoutConstructor])
def test_what_calls_no_hooks_is_refused(kind, mode):
    start, parts, _ = nodes(3, 5)
    model = Vector(start)
    penalty = CurvaturePenalty(model, parts[0], strength=0.5)
    inner = torch.optim.SGD([model.theta], lr=0.1)
    with pytest.raises(TypeError, match=f"got {kind.__name__}; give the optimizer that it wraps"):
        penalty.attach(kind(inner), mode=mode)


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_model_may_change_its_type_after_the_penalty_was_made(dtype, mode):
    start, parts, _ = nodes(3, 5)
    moved = []
    for first in (True, False):
        model = Vector(start if first else start.to(dtype))
        penalty = CurvaturePenalty(model, parts[0], strength=0.5)
        model.to(dtype)
        optimizer = torch.optim.SGD([model.theta], lr=0.1)
        penalty.attach(optimizer, mode=mode)
        model.theta.grad = torch.zeros_like(model.theta)
        optimizer.step()
        moved.append(model.theta.detach())
    assert not torch.equal(moved[0], start.to(dtype))
    torch.testing.assert_close(moved[0], moved[1])
