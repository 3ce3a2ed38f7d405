"""One step that is not finite costs a worker about a round, whatever its optimizer remembers."""

import logging
import threading
import time

import pytest
import torch
from torch import nn

from fedcurv.lasgd import LASGD
from fedcurv.lasgd.replica import Replica
from fedcurv.lasgd.reset import clear_what_is_not_finite
from tests.fedcurv.lasgd.site import in_threads

DOUBLE = torch.float64
START = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE)
TARGET = torch.tensor([0.3, 0.1, -0.7], dtype=DOUBLE)
optim = torch.optim

LOCAL = {
    "momentum": lambda p: optim.SGD(p, lr=0.02, momentum=0.9, dampening=0.1),
    "adam": lambda p: optim.Adam(p, lr=0.02),
    "amsgrad": lambda p: optim.Adam(p, lr=0.02, foreach=False, amsgrad=True),
    "fused": lambda p: optim.AdamW(p, lr=0.02, fused=True),
    "nadam": lambda p: optim.NAdam(p, lr=0.02),
    "radam": lambda p: optim.RAdam(p, lr=0.02),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.02, momentum=0.5, centered=True),
    "adamax": lambda p: optim.Adamax(p, lr=0.02),
    "adadelta": lambda p: optim.Adadelta(p, lr=0.02),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.02, initial_accumulator_value=0.3),
}
if hasattr(optim, "Adafactor"):  # torch has it from 2.5 on
    LOCAL["adafactor"] = lambda p: optim.Adafactor(p, lr=0.02)
AVERAGED = {
    "amsgrad": (lambda p: optim.Adam(p, lr=0.02, amsgrad=True), "max_exp_avg_sq"),
    "centered": (lambda p: optim.RMSprop(p, lr=0.02, centered=True), "grad_avg"),
}


class Vector(nn.Module):
    def __init__(self, start=START):
        super().__init__()
        self.w = nn.Parameter(start.clone())


def step(model, optimizer, gradient=None):
    model.w.grad = (model.w.detach() - TARGET) if gradient is None else gradient
    optimizer.step()


class Workers:
    """Two in one thread; the All-Reduce is a sum."""

    def __init__(self, make, *, average_momentum):
        self.models = [Vector() for _ in range(2)]
        self.optimizers = [make([m.w]) for m in self.models]
        self.replicas = [
            Replica(m, o, average_momentum=average_momentum)
            for m, o in zip(self.models, self.optimizers, strict=True)
        ]
        for replica in self.replicas:
            replica.set_anchor()

    def round(self, steps=4, broken=()):
        """Let each make its steps and land; return whose progress was left out."""
        for worker, replica in enumerate(self.replicas):
            for number in range(steps):
                bad = worker in broken and number == 1
                gradient = torch.full_like(START, torch.nan) if bad else None
                step(self.models[worker], self.optimizers[worker], gradient)
                replica.count_step()
            replica.snapshot()
        out = [not replica.progress_is_finite() for replica in self.replicas]
        total = 0.0
        for replica, bad in zip(self.replicas, out, strict=True):
            body = torch.empty(replica.sizes.total, dtype=DOUBLE)
            replica.fill(body, 1.0, active=not bad)
            total = total + body
        left = 2 - sum(out)
        for replica, bad in zip(self.replicas, out, strict=True):
            counts = replica.counts(total)
            replica.land(total.clone(), 1.0 / max(1, left), left, counts, dropped=bad)
            replica.apply()
        return [worker for worker, bad in enumerate(out) if bad]


def first_step_of(make, start):
    """What a fresh optimizer's first step makes of these weights."""
    model = Vector(start)
    step(model, make([model.w]))
    return model.w.detach()


@pytest.mark.parametrize("name", LOCAL)
def test_state_of_the_worker_alone_begins_anew(name):
    make = LOCAL[name]
    workers = Workers(make, average_momentum=False)
    assert workers.round() == []
    assert workers.round(broken=[1]) == [1]
    common = workers.replicas[1].anchor.clone()
    assert torch.equal(workers.models[1].w, common)
    step(workers.models[1], workers.optimizers[1])
    torch.testing.assert_close(workers.models[1].w.detach(), first_step_of(make, common))
    workers.replicas[1].count_step()
    assert [workers.round() for _ in range(3)] == [[], [], []]


@pytest.mark.parametrize("name", AVERAGED)
def test_what_is_averaged_and_the_count_of_steps_remain_where_the_rest_begins_at_zero(name):
    make, rest = AVERAGED[name]
    workers = Workers(make, average_momentum=True)
    workers.round()
    assert workers.round(broken=[1]) == [1]
    good, reset = (o.state[m.w] for o, m in zip(workers.optimizers, workers.models, strict=True))
    averaged = {key for key in good if key not in ("step", rest)}
    assert all(torch.equal(good[key], reset[key]) for key in averaged)
    assert float(reset["step"]) == 8 and not reset[rest].any() and good[rest].all()
    assert [workers.round() for _ in range(3)] == [[], [], []]


@pytest.mark.parametrize(
    ("make", "key", "first"),
    [
        (lambda p: optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.3), "sum", 0.3),
        (lambda p: optim.ASGD(p, lr=0.1), "ax", START[1]),
    ],
    ids=["adagrad", "asgd"],
)
def test_a_schedule_by_the_count_of_steps_goes_on(make, key, first):
    model = Vector()
    optimizer = make([model.w])
    step(model, optimizer)
    step(model, optimizer)
    state = optimizer.state[model.w]
    state[key][1] = torch.nan
    with torch.no_grad():
        model.w.copy_(START)
    clear_what_is_not_finite(optimizer, [model.w])
    assert state[key][1] == first and float(state["step"]) == 2


def test_what_is_finite_and_other_parameters_state_stay_as_they_are():
    models = Vector(), Vector()
    optimizer = optim.Adam([m.w for m in models], lr=0.1)
    for model in models:
        model.w.grad = torch.ones_like(START)
    optimizer.step()
    optimizer.state[models[0].w]["exp_avg_sq"][2] = torch.inf
    kept = {key: value.clone() for key, value in optimizer.state[models[1].w].items()}
    clear_what_is_not_finite(optimizer, [m.w for m in models])
    assert not optimizer.state[models[0].w]
    assert all(torch.equal(optimizer.state[models[1].w][key], kept[key]) for key in kept)


def test_an_optimizer_that_is_not_torchs_keeps_its_entries():
    class Own(optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {})
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p] = {"mean": torch.ones_like(p)}

        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data -= 0.1 * self.state[p]["mean"].mul_(0.5).add_(p.grad)

    workers = Workers(Own, average_momentum=True)
    workers.round()
    assert workers.round(broken=[0]) == [0]
    assert not workers.optimizers[0].state[workers.models[0].w]["mean"].any()
    assert [workers.round() for _ in range(3)] == [[], [], []]


def test_averaged_momentum_that_no_worker_has_begins_anew():
    """Means that begin at zero after many counted steps would make the next ones too large."""
    make = LOCAL["adam"]
    workers = Workers(make, average_momentum=True)
    workers.round(20)
    common = workers.replicas[0].anchor.clone()
    assert workers.round(broken=[0, 1]) == [0, 1]
    for model, optimizer in zip(workers.models, workers.optimizers, strict=True):
        assert torch.equal(model.w, common)
        step(model, optimizer)
        torch.testing.assert_close(model.w.detach(), first_step_of(make, common))


def test_a_nan_gradient_costs_a_real_worker_one_round_and_is_told_once(caplog):
    make = LOCAL["adamax"]

    def work(rank, store, size):
        model = Vector()
        optimizer = make([model.w])
        options = {"store": store, "rank": rank, "world_size": size}
        with LASGD(model, optimizer, sync_every=10**6, **options) as lasgd:
            for number in range(6):
                for index in range(3):
                    bad = rank == 1 and (number, index) == (1, 1)
                    step(model, optimizer, torch.full_like(START, torch.nan) if bad else None)
                    time.sleep(0.001)
                lasgd.synchronize()
        return model.w.detach(), lasgd.stats.broken_rounds

    with caplog.at_level(logging.WARNING):
        (one, whole), (other, broken) = in_threads(work, 2)
    assert torch.equal(one, other) and (whole, broken) == (0, 1)
    told = [r.getMessage() for r in caplog.records if "not finite" in r.getMessage()]
    assert len(told) == 1
    assert told[0].endswith("what of its optimizer's state is not finite begins anew")


def test_steps_that_are_left_out_count_for_no_later_round():
    """Else rounds would come the more often, the more steps have been left out."""
    barrier = threading.Barrier(2, timeout=60)

    def work(rank, store, size):
        model = Vector()
        optimizer = LOCAL["adam"]([model.w])
        options = {"store": store, "rank": rank, "world_size": size}
        with LASGD(model, optimizer, sync_every=8, **options) as lasgd:
            for index in range(40):
                bad = rank == 1 and index in (10, 21)
                step(model, optimizer, torch.full_like(START, torch.nan) if bad else None)
                time.sleep(0.001)
            lasgd.synchronize()
            barrier.wait()
            lasgd.synchronize()
            barrier.wait()
            deadline = time.monotonic() + 20
            while (counted := lasgd._control.count(0, 0)) != lasgd.stats.steps_in_rounds:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.01)
            barrier.wait()
            return counted, lasgd.stats

    (counted, stats), (_, broken) = in_threads(work, 2)
    assert 1 <= broken.broken_rounds <= 2
    assert counted == stats.steps_in_rounds < 80
