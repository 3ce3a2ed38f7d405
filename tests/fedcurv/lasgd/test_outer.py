"""An outer optimizer: what it does to a round's progress, and that all replicas do the same."""

import copy
import logging
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from fedcurv.clients.settings import TrainingSettings
from fedcurv.lasgd import LASGD
from fedcurv.lasgd.outer import Outer, OuterOptimizer, share_of_round
from fedcurv.lasgd.plane import Interrupted, Plane
from fedcurv.lasgd.virtual import Plan, Site, recorded, taught
from tests.fedcurv.lasgd.site import (
    Host,
    assert_same_bits,
    bits,
    block,
    client,
    in_threads,
    sgd,
    steps,
    steps_in_rounds,
)

NESTEROV = {"outer": "nesterov", "outer_lr": 0.7, "outer_momentum": 0.9}
KINDS = ["nesterov", "momentum"]


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_whole_rounds_are_steps_of_torchs_sgd_with_the_progress_for_minus_the_gradient(
    kind, momentum
):
    torch.manual_seed(0)
    theirs = nn.Parameter(torch.randn(7, dtype=torch.float64))
    ours = theirs.detach().clone()
    nesterov = kind == "nesterov" and momentum > 0
    optimizer = torch.optim.SGD([theirs], lr=0.6, momentum=momentum, nesterov=nesterov)
    outer = OuterOptimizer(Outer(kind, 0.6, momentum), ours)
    for _ in range(12):
        progress = torch.randn(7, dtype=torch.float64)
        theirs.grad = -progress
        optimizer.step()
        outer.turn_into_step(progress, 1.0)
        ours += progress
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_a_progress_counts_alike_in_the_long_run_whatever_the_rounds(kind):
    """η / (1 − μ) times, were the rounds after it whole, short or without steps."""
    outer = OuterOptimizer(Outer(kind, 0.7, 0.8), torch.zeros(1, dtype=torch.float64))
    moved, shares = torch.zeros(1, dtype=torch.float64), np.random.default_rng(0).random(600)
    for number, share in enumerate([0.3, 0.0, 1.0, *shares]):
        progress = torch.full((1,), 1.0 if number == 0 else 0.0, dtype=torch.float64)
        outer.turn_into_step(progress, share)
        if share == 0.0:
            assert progress == 0.0
        moved += progress
    assert float(moved) == pytest.approx(0.7 / (1 - 0.8), rel=1e-12)


def test_a_round_that_holds_few_steps_is_a_part_of_one():
    assert [share_of_round(n, 8) for n in (0, 2, 8, 20)] == [0.0, 0.25, 1.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_learning_rate_one_without_momentum_is_no_outer_optimizer_bit_for_bit(kind, dtype):
    progress = torch.randn(1000, dtype=dtype)
    progress[0] = -0.0
    before = progress.clone()
    OuterOptimizer(Outer(kind, 1.0, 0.0), progress).turn_into_step(progress, 0.4)
    assert torch.equal(progress.view(torch.uint8), before.view(torch.uint8))


def test_a_site_with_learning_rate_one_without_momentum_is_todays_bit_for_bit():
    lengths = [[0.1, 0.13, 0.08], [0.4]]
    one, other = (
        Site(taught(), Plan(2, 8, outer=outer), recorded(lengths)).run(seconds=6.0)
        for outer in (Outer(), Outer("nesterov", 1.0, 0.0))
    )
    assert_same_bits([one.model, other.model])
    assert one.landings == other.landings and len(one.landings) > 5


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("number", [1, 3])
def test_all_end_with_the_same_bits(number, overlap):
    def work(rank, store, size):
        torch.manual_seed(rank)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        optimizer = sgd(model, momentum=0.5)
        with block(model, optimizer, store, rank, size, overlap=overlap, **NESTEROV) as lasgd:
            steps(model, optimizer, number=10 + 20 * rank)
        return bits(model), lasgd.state_dict(), lasgd.stats

    states, saved, stats = zip(*in_threads(work, number), strict=True)
    assert_same_bits(states)
    assert_same_bits([s["outer"] for s in saved])
    assert any(v.abs().max() > 0 for v in saved[0]["outer"].values())
    # the model that a state holds is the one that all end with
    assert all(torch.equal(value, states[0][name]) for name, value in saved[0]["model"].items())
    assert stats[0].steps_in_rounds == sum(s.steps for s in stats)


def in_step(rank, store, size, rounds=6, interrupt=(), **options):
    """Train so that what each round holds is known; return the model and the velocity."""
    model = nn.Linear(3, 2).double()
    nn.init.constant_(model.weight, 0.5), nn.init.zeros_(model.bias)
    optimizer, inputs = sgd(model), torch.eye(3).double() * (rank + 1)
    options = {"sync_every": 10**6, **NESTEROV, **options}
    with block(model, optimizer, store, rank, size, **options) as lasgd:
        steps_in_rounds(lasgd, model, optimizer, inputs, rounds, MEETINGS[size])
    return bits(model), lasgd.state_dict()["outer"], lasgd.stats


MEETINGS = {size: threading.Barrier(size) for size in (1, 2, 3)}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_round_that_is_redone_moves_the_model_once(when, monkeypatch):
    """A sum that fails at one worker, before or after it had it, is taken again by all."""
    undisturbed = in_threads(in_step, 2)
    original, calls = Plane.all_reduce, []

    def fails(self, given_up):
        calls.append(self._rank)
        if self._rank == 1 and calls.count(1) in (6, 9):
            if when == "before":
                raise Interrupted("as if the time were over")
            original(self, given_up)
            raise Interrupted("as if another were lost")
        original(self, given_up)

    monkeypatch.setattr(Plane, "all_reduce", fails)
    disturbed = in_threads(in_step, 2)
    assert calls.count(1) > 9
    for (one, velocity, _), (other, again, stats) in zip(undisturbed, disturbed, strict=True):
        assert stats.lost == ()
        assert one.keys() == other.keys() and velocity.keys() == again.keys()
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=0, atol=1e-15)
            torch.testing.assert_close(again[name], velocity[name], rtol=0, atol=1e-15)


def test_rounds_without_steps_move_nothing():
    def work(rank, store, size):
        model = nn.Linear(3, 1)
        optimizer = sgd(model)
        with block(model, optimizer, store, rank, size, **NESTEROV) as lasgd:
            steps(model, optimizer)
            lasgd.synchronize()
            MEETINGS[2].wait(30)
            lasgd.synchronize()
            before = bits(model)
            MEETINGS[2].wait(30)
            for _ in range(5):
                lasgd.synchronize()
            after = bits(model)
        return before, after, bits(model)

    for before, after, end in in_threads(work, 2):
        assert_same_bits([before, after, end])


def test_a_newcomer_gets_the_velocity():
    host, begun = Host(), threading.Event()

    def member(rank):
        model = nn.Linear(3, 1)
        optimizer = sgd(model)
        with block(model, optimizer, client(host.port), rank, 2, **NESTEROV) as lasgd:
            for _ in range(60):
                steps(model, optimizer, number=4)
                begun.set()
                time.sleep(0.02)
        return bits(model), lasgd.state_dict()["outer"]

    def newcomer():
        begun.wait(30)
        model = nn.Linear(3, 1)
        optimizer = sgd(model)
        options = {"sync_every": 4, "timeout_s": 20.0, **NESTEROV}
        with LASGD(model, optimizer, store=client(host.port), join=True, **options) as lasgd:
            first = lasgd.state_dict()["outer"]
            steps(model, optimizer)
        assert all(v.abs().max() > 0 for v in first.values())
        return bits(model), lasgd.state_dict()["outer"]

    results = in_threads(lambda rank, *_: newcomer() if rank == 2 else member(rank), 3)
    models, velocities = zip(*results, strict=True)
    assert_same_bits(models)
    assert_same_bits(velocities)


def test_a_saved_state_goes_on_as_if_it_had_not_been_interrupted():
    """Six rounds at once, and three and three with a state between them."""
    saved = {}

    def part(rank, store, size, state):
        model = nn.Linear(3, 2).double()
        nn.init.constant_(model.weight, 0.5), nn.init.zeros_(model.bias)
        optimizer, inputs = sgd(model), torch.eye(3).double() * (rank + 1)
        lasgd = block(model, optimizer, store, rank, size, sync_every=2, **NESTEROV)
        if state is not None:
            lasgd.load_state_dict(copy.deepcopy(state))
        with lasgd:
            for _ in range(6 if state is None and not saved["halves"] else 3):
                optimizer.zero_grad()
                model(inputs).square().mean().backward()
                optimizer.step()
                MEETINGS[2].wait(30)
                lasgd.synchronize()
                MEETINGS[2].wait(30)
        return lasgd.state_dict()

    saved["halves"] = False
    whole = in_threads(part, 2, None)[0]
    saved["halves"] = True
    first = in_threads(part, 2, None)[0]
    second = in_threads(part, 2, first)[0]
    for name in whole["model"]:
        torch.testing.assert_close(second["model"][name], whole["model"][name], rtol=0, atol=1e-14)
        torch.testing.assert_close(second["outer"][name], whole["outer"][name], rtol=0, atol=1e-14)
    assert not torch.allclose(first["model"]["weight"], whole["model"]["weight"])


def test_a_velocity_that_one_worker_has_alone_is_named_at_each():
    def work(rank, store, size):
        model = nn.Linear(3, 1)
        lasgd = block(model, sgd(model), store, rank, size, **NESTEROV)
        state = lasgd.state_dict()
        if rank:
            state["outer"] = {name: v + 1 for name, v in state["outer"].items()}
        lasgd.load_state_dict(state)
        with lasgd:
            pass

    for error in in_threads(work, 2, may_fail=True):
        assert "'outer weight' differs between worker" in str(error)


def test_a_state_with_a_velocity_where_there_is_none_and_without_one_are_told(caplog):
    def work(rank, store, size):
        model = nn.Linear(3, 1)
        plain = block(model, sgd(model), store, rank, size)
        store = torch.distributed.PrefixStore("b", store)
        outer = block(model, sgd(model), store, rank, size, **NESTEROV)
        assert "outer" not in plain.state_dict()
        with caplog.at_level(logging.WARNING):
            outer.load_state_dict(plain.state_dict())
            plain.load_state_dict(outer.state_dict())
        other = {"weight": torch.zeros(2), "bias": torch.zeros(1)}
        with pytest.raises(ValueError, match="expected an outer optimizer's state of a model with"):
            outer.load_state_dict({**outer.state_dict(), "outer": other})
        with pytest.raises(ValueError, match="under 'outer' no floating-point tensors by name"):
            outer.load_state_dict({**outer.state_dict(), "outer": [1]})

    in_threads(work, 1)
    assert "the saved state has no outer optimizer's velocity: it begins with none" in caplog.text
    assert "velocity is left out: outer is off here" in caplog.text


def test_other_outer_settings_are_named_at_every_worker():
    def work(rank, store, size):
        model = nn.Linear(3, 1)
        options = {**NESTEROV, "outer_momentum": 0.5 + 0.25 * rank}
        block(model, sgd(model), store, rank, size, **options)

    for error in in_threads(work, 2, may_fail=True):
        assert "'outer_momentum' is 0.5 at worker 0 and 0.75 at worker 1" in str(error)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outer": "adam"}, "outer must be nesterov, momentum or None, got 'adam'"),
        ({"outer": torch.zeros(2)}, "outer must be .*, got one of class Tensor"),
        ({"outer": "nesterov", "outer_lr": 0}, "outer_lr must be a finite number > 0, got 0"),
        ({"outer": "nesterov", "outer_lr": float("nan")}, "outer_lr must be .*, got nan"),
        ({"outer": "nesterov", "outer_lr": "1"}, "outer_lr must be .*, got '1'"),
        ({"outer": "momentum", "outer_momentum": 1}, r"outer_momentum must be .* \[0, 1\), got 1"),
        ({"outer": "momentum", "outer_momentum": True}, "outer_momentum must be .*, got True"),
        ({"outer_lr": 0.5}, "must be left out without outer, got 0.5 and 0.9; say outer=nesterov"),
    ],
)
def test_what_cannot_be_is_named(settings, message):
    model = nn.Linear(3, 1)
    with pytest.raises(ValueError, match=message) as raised:
        LASGD(model, sgd(model), **settings)
    assert "\n" not in str(raised.value)
    names = {"outer": "kind", "outer_lr": "lr", "outer_momentum": "momentum"}
    with pytest.raises(ValueError, match=message):
        Outer(**{names[name]: value for name, value in settings.items()})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outer": "adam"}, "client.outer must be nesterov, momentum or null, got 'adam'"),
        ({"outer": "nesterov", "trainer": "local"}, "client.outer must be null where .* is local"),
        ({"outer": "nesterov", "outer_lr": -1}, "client.outer_lr must be > 0 and finite, got -1"),
        ({"outer_momentum": 1.0}, r"client.outer_momentum must be in \[0, 1\), got 1.0"),
        ({"outer_lr": 0.5}, "client.outer_lr and client.outer_momentum must be left out without"),
    ],
)
def test_a_sites_settings_that_cannot_be_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**{"trainer": "lasgd", **settings})


def test_a_sites_settings_have_the_same_defaults():
    settings = TrainingSettings()
    assert (settings.outer, settings.outer_lr, settings.outer_momentum) == (
        Outer.kind,
        Outer.lr,
        Outer.momentum,
    )
