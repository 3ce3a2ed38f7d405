"""The arithmetic of rounds in one thread: whatever the schedule, against a ledger of updates."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from fedcurv.lasgd.header import Report
from fedcurv.lasgd.outer import NONE, Outer, share_of_round
from fedcurv.lasgd.replica import Replica
from fedcurv.lasgd.weights import common_factor, own_weight
from tests.oracles.lasgd import Ledger

LR = 0.1


def make_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


class Site:
    """Workers in one thread; the All-Reduce is a sum."""

    def __init__(
        self, number, make_optimizer, weights="gradient", make_model=make_model, outer=NONE, whole=8
    ):
        self.weights, self.whole = weights, whole
        self.models = [make_model() for _ in range(number)]
        self.optimizers = [make_optimizer(m.parameters()) for m in self.models]
        self.replicas = [
            Replica(m, o, outer=outer) for m, o in zip(self.models, self.optimizers, strict=True)
        ]
        for replica in self.replicas:
            replica.set_anchor()

    def step(self, worker, gradient):
        """One optimizer step with this gradient, a flat array."""
        parameters = list(self.models[worker].parameters())
        parts = torch.as_tensor(gradient).split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).clone()
        self.optimizers[worker].step()
        self.replicas[worker].count_step()

    def snapshot(self):
        self.steps = [replica.snapshot() for replica in self.replicas]

    def land(self):
        broken = [not replica.progress_is_finite() for replica in self.replicas]
        reports = [
            Report(steps=0 if bad else n, active=1, broken=bad)
            for n, bad in zip(self.steps, broken, strict=True)
        ]
        bodies = []
        for replica, report in zip(self.replicas, reports, strict=True):
            body = torch.full((replica.sizes.total,), torch.nan, dtype=replica.dtype)
            weight = own_weight(self.weights, report)
            replica.fill(body, weight, active=not report.broken)
            bodies.append(body)
        total = torch.stack(bodies).sum(0)
        factor = common_factor(self.weights, reports)
        for replica, bad in zip(self.replicas, broken, strict=True):
            number, counts = len(reports) - sum(broken), replica.counts(total)
            share = share_of_round(sum(r.steps for r in reports), self.whole)
            replica.land(total.clone(), factor, number, counts, share, dropped=bad)

    def weights_of(self, worker):
        return flat(self.models[worker])


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=LR)


OUTERS = [NONE, Outer("nesterov"), Outer("momentum", 1.3, 0.5), Outer("nesterov", 0.4, 0.0)]


@pytest.mark.parametrize("outer", OUTERS, ids=str)
@pytest.mark.parametrize("weights", ["gradient", "steps", "worker"])
@pytest.mark.parametrize("seed", range(5))
def test_any_schedule_agrees_with_the_ledger(weights, seed, outer):
    """Steps in flight, rounds back to back, short and without steps, corrections that wait."""
    schedule, rng = random.Random(seed), np.random.default_rng(seed)
    site = Site(3, sgd, weights, outer=outer, whole=5)
    kept = (outer.kind, outer.lr, outer.momentum, 5) if outer.kind else None
    ledger = Ledger(site.weights_of(0), 3, kept)
    in_flight = False
    for _ in range(60):
        for _ in range(schedule.randrange(4)):
            worker, gradient = schedule.choice([0, 0, 1, 2]), rng.normal(size=ledger.anchor.shape)
            site.step(worker, gradient)
            ledger.step(worker, -LR * gradient)
            if schedule.random() < 0.5:
                site.replicas[worker].apply()
        if in_flight:
            site.land()
            ledger.land(weights)
        in_flight = not in_flight
        if in_flight:
            site.snapshot()
            ledger.snapshot()
    for worker, replica in enumerate(site.replicas):
        replica.apply()
        assert np.allclose(site.weights_of(worker), ledger.model(worker), rtol=0, atol=1e-12)
        assert np.allclose(replica.anchor.numpy(), ledger.anchor, rtol=0, atol=1e-12)
        assert torch.equal(replica.anchor, site.replicas[0].anchor)


def test_a_merge_with_uniform_weights_leaves_the_mean_model():
    site, rng = Site(4, sgd), np.random.default_rng(1)
    for worker, steps in enumerate([0, 1, 2, 5]):
        for _ in range(steps):
            site.step(worker, rng.normal(size=flat(site.models[0]).shape))
    mean = np.mean([site.weights_of(w) for w in range(4)], axis=0)
    site.snapshot()
    site.land()
    for worker, replica in enumerate(site.replicas):
        assert replica.apply()
        assert not replica.apply()
        assert np.allclose(site.weights_of(worker), mean, rtol=0, atol=1e-15)


def test_one_step_each_is_synchronous_sgd():
    site, rng = Site(3, sgd), np.random.default_rng(1)
    alone = make_model()
    for _ in range(10):
        gradients = rng.normal(size=(3, len(flat(alone))))
        for worker in range(3):
            site.step(worker, gradients[worker])
        site.snapshot()
        site.land()
        for replica in site.replicas:
            replica.apply()
        with torch.no_grad():
            start = torch.as_tensor(flat(alone) - LR * gradients.mean(0))
            nn.utils.vector_to_parameters(start, alone.parameters())
    assert np.allclose(site.weights_of(0), flat(alone), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("weights", "by_hand"),
    [
        ("gradient", (1 * 1.0 + 3 * 2.0) / 3),
        ("steps", (1 * 1 * 1.0 + 3 * 3 * 2.0) / 4),
        ("worker", (1.0 + 2.0) / 2 * (1 + 3) / 2),
    ],
)
def test_weights_by_hand(weights, by_hand):
    """Three active workers: one step of 1, three steps of 2, none."""
    reports = [Report(steps=1, active=1), Report(steps=3, active=1), Report(active=1)]
    progress = [1 * 1.0, 3 * 2.0, 0.0]
    summed = sum(own_weight(weights, r) * d for r, d in zip(reports, progress, strict=True))
    assert summed * common_factor(weights, reports) == pytest.approx(by_hand)


@pytest.mark.parametrize("weights", ["gradient", "steps", "worker"])
def test_who_has_finished_or_is_broken_does_not_count(weights):
    reports = [Report(steps=2, active=1), Report(finished=1), Report(active=1, broken=1)]
    assert [own_weight(weights, r) * 2 for r in reports[1:]] == [0, 0]
    assert own_weight(weights, reports[0]) * common_factor(weights, reports) == 1
    assert common_factor(weights, reports[1:]) == 0


def momentum_of(optimizer, key):
    return torch.cat(
        [optimizer.state[p][key].flatten() for g in optimizer.param_groups for p in g["params"]]
    )


@pytest.mark.parametrize(
    ("make_optimizer", "keys"),
    [
        (lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9), ["momentum_buffer"]),
        (lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.95)), ["exp_avg", "exp_avg_sq"]),
        (
            lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9, momentum=0.5),
            ["square_avg", "momentum_buffer"],
        ),
    ],
)
@pytest.mark.parametrize("in_flight", [0, 1, 4])
def test_momentum_is_as_if_it_had_been_averaged_at_the_snapshot(make_optimizer, keys, in_flight):
    site, rng = Site(2, make_optimizer), np.random.default_rng(1)
    size = len(flat(site.models[0]))
    for worker in (0, 0, 1, 1, 1):
        site.step(worker, rng.normal(size=size))
    site.snapshot()
    optimizers = site.optimizers
    twin_model = make_model()
    twin = make_optimizer(twin_model.parameters())
    state = copy.deepcopy(optimizers[0].state_dict())
    other = optimizers[1].state_dict()["state"]
    for index, values in state["state"].items():
        for key in keys:
            values[key] = (values[key] + other[index][key]) / 2
    twin.load_state_dict(state)
    for step in range(in_flight):
        gradient = rng.normal(size=size)
        site.step(0, gradient)
        for parameter, part in zip(
            twin_model.parameters(),
            torch.as_tensor(gradient).split([p.numel() for p in twin_model.parameters()]),
            strict=True,
        ):
            parameter.grad = part.view_as(parameter)
        twin.step()
        if step == 1:
            site.land()
    if in_flight < 2:
        site.land()
    site.replicas[0].apply()
    if keys[-1] == "momentum_buffer" and len(keys) == 2 and in_flight:
        keys = keys[:1]  # RMSprop's momentum is of gradients that the squares have scaled
    for key in keys:
        torch.testing.assert_close(momentum_of(optimizers[0], key), momentum_of(twin, key))


def test_a_worker_without_momentum_takes_part():
    """Before its first step it has none; then it goes on with the others'."""
    site = Site(2, lambda p: torch.optim.SGD(p, lr=LR, momentum=0.5))
    size = len(flat(site.models[0]))
    site.step(0, np.ones(size))
    site.snapshot()
    site.step(1, np.zeros(size))
    site.land()
    site.replicas[1].apply()
    expected = torch.full((size,), 0.5, dtype=torch.double)
    torch.testing.assert_close(momentum_of(site.optimizers[1], "momentum_buffer"), expected)


def test_second_moments_stay_positive():
    site = Site(2, lambda p: torch.optim.Adam(p, lr=0.01), make_model=lambda: make_model().float())
    rng = np.random.default_rng(1)
    size = len(flat(site.models[0]))
    for _ in range(50):
        site.step(0, rng.normal(size=size).astype(np.float32) * 1e4)
        site.step(1, np.zeros(size, dtype=np.float32))
        site.snapshot()
        site.land()
        for replica in site.replicas:
            replica.apply()
        assert all(momentum_of(o, "exp_avg_sq").min() >= 0 for o in site.optimizers)


def test_buffers_are_averaged_into_the_anchor_only():
    def make():
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()

    site = Site(2, sgd, make_model=make)
    for worker, model in enumerate(site.models):
        model[1].running_var.fill_(worker + 1.0)
        model[1].num_batches_tracked.fill_(worker)
    site.snapshot()
    site.land()
    for worker, (replica, model) in enumerate(zip(site.replicas, site.models, strict=True)):
        replica.apply()
        assert model[1].running_var.tolist() == [worker + 1.0] * 2
        replica.take_anchor()
        assert model[1].running_var.tolist() == [1.5, 1.5]
        assert model[1].num_batches_tracked == worker


@pytest.mark.parametrize("worth", [float("nan"), float("inf")])
def test_progress_that_is_not_finite_is_left_out_and_that_worker_goes_on_from_the_anchor(worth):
    site = Site(2, lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9))
    rng = np.random.default_rng(1)
    size = len(flat(site.models[0]))
    start = site.weights_of(0)
    good = rng.normal(size=size)
    site.step(0, good)
    site.step(1, np.full(size, worth))
    site.snapshot()
    site.land()
    for replica in site.replicas:
        replica.apply()
    for worker in range(2):
        assert np.allclose(site.weights_of(worker), start - LR * good)
        momentum = momentum_of(site.optimizers[worker], "momentum_buffer")
        assert np.allclose(momentum, good)
    site.step(1, good)
    site.snapshot()
    site.land()
    assert torch.isfinite(site.replicas[0].anchor).all()


def test_a_worker_that_is_reset_contributes_nothing_until_it_has_been():
    site = Site(2, sgd)
    size = len(flat(site.models[0]))
    site.step(1, np.full(size, np.nan))
    site.snapshot()
    site.land()
    before = site.replicas[0].anchor.clone()
    site.step(0, np.ones(size))
    site.snapshot()  # worker 1 has not applied its reset
    site.land()
    assert torch.allclose(site.replicas[0].anchor, before - LR / 2)
    site.replicas[1].apply()
    assert np.allclose(site.weights_of(1), site.replicas[1].anchor.numpy())


def test_tied_frozen_and_strided_parameters():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False)
            self.b = nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight
            self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
            self.conv = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
            self.turned = nn.Parameter(torch.randn(4, 2).t())

    torch.manual_seed(0)
    model = Model().double()
    trainable = [p for p in model.parameters() if p.requires_grad]
    replica = Replica(model, sgd(trainable))
    assert replica.names == ["turned", "a.weight", "conv.weight", "conv.bias"]
    replica.set_anchor()
    before = [p.detach().clone() for p in trainable]
    with torch.no_grad():
        for parameter in trainable:
            parameter += 1
    replica.count_step()
    replica.snapshot()
    body = torch.zeros(replica.sizes.total, dtype=torch.double)
    replica.fill(body, 1.0, active=True)
    replica.land(body, 0.5, 1, replica.counts(body))
    replica.apply()
    for old, new in zip(before, trainable, strict=True):
        torch.testing.assert_close(new.detach(), old + 0.5)


def test_an_optimizer_of_another_model_is_refused():
    model = make_model()
    with pytest.raises(ValueError, match=r"without 2\.weight, 2\.bias and with 0 that are not"):
        Replica(model, sgd(model[0].parameters()))
    with pytest.raises(ValueError, match=r"with 4 that are not the model's; build it from"):
        Replica(model, sgd([*model.parameters(), *make_model().parameters()]))


def test_a_state_of_another_model_is_refused():
    model = make_model()
    replica = Replica(model, sgd(model.parameters()))
    state = replica.anchor_by_name()
    with pytest.raises(ValueError, match=r"expected the state of a model with 0\.weight"):
        replica.load_anchor({**state, "0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="got one with nothing"):
        replica.load_anchor({"nothing": torch.zeros(1)})
