"""LASGD in virtual time: when things happen, what comes out, and that it is LASGD's arithmetic."""

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from fedcurv.lasgd.virtual import (
    Link,
    Outer,
    Plan,
    Problem,
    Site,
    equal,
    heavy_tailed,
    lognormal,
    recorded,
    rotating,
    straggler,
    synchronous,
    taught,
)
from tests.oracles import virtual as oracle

DOUBLE = torch.float64
NOTICE = 0.001


class Vector(nn.Module):
    """A model that is one vector, whatever it is given."""

    def __init__(self, start):
        super().__init__()
        self.w = nn.Parameter(start.clone())

    def forward(self, inputs):
        return self.w.expand(len(inputs), -1)


def vectors(samples, start, lr=0.1):
    """Return the oracle's problem: ½‖w − a‖² of one sample a step."""

    def loss(outputs, targets):
        return 0.5 * (outputs - targets).square().sum(1).mean()

    problem = Problem(
        lambda: Vector(start),
        lambda model: torch.optim.SGD(model.parameters(), lr=lr),
        loss,
        (samples, samples),
        (samples, samples),
        batch_size=1,
    )
    return problem


def in_the_sites_order(problem, number, seed=0):
    batches = problem.batches(seed)
    return [next(batches)[1][0].numpy() for _ in range(number)]


@pytest.mark.parametrize("outer", [Outer(), Outer("nesterov", 0.3, 0.7), Outer("momentum")])
@pytest.mark.parametrize("weights", ["gradient", "steps", "worker"])
@pytest.mark.parametrize("link", [0.0, 0.37, 2.9])
def test_a_run_is_the_ledgers_to_rounding(weights, link, outer):
    draws = random.Random(0)
    torch.manual_seed(0)
    samples, start = torch.randn(50, 3, dtype=DOUBLE), torch.randn(3, dtype=DOUBLE)
    lengths = [[draws.uniform(0.5, 1.5) * (1 + 2 * w) for _ in range(90)] for w in range(3)]
    problem = vectors(samples, start)
    plan = Plan(3, 5, weights=weights, outer=outer, max_in_flight=1000)
    got = Site(problem, plan, recorded(lengths), Link(link)).run(seconds=40.0)
    landings, model, made = oracle.run(
        start.numpy(),
        in_the_sites_order(problem, 150),
        lengths,
        lr=0.1,
        sync_every=5,
        link=link,
        notice=NOTICE,
        until=40.0,
        weights=weights,
        outer=(outer.kind, outer.lr, outer.momentum, 5) if outer.kind else None,
    )
    assert [landing.steps for landing in got.landings] == [steps for _, steps in landings]
    np.testing.assert_allclose([one.seconds for one in got.landings], [s for s, _ in landings])
    np.testing.assert_allclose(got.model["w"].numpy(), model, rtol=1e-12)
    assert got.steps == sum(made) > 50
    assert got.landings[-1].loss == pytest.approx(
        float(0.5 * (got.model["w"] - samples).square().sum(1).mean())
    )


def when(outcome):
    return [(round(landing.seconds, 3), landing.steps) for landing in outcome.landings]


def tiny():
    return vectors(torch.zeros(4, 2), torch.ones(2))


def test_rounds_run_beside_the_training_or_hold_it_up():
    lengths = recorded([[1.0], [3.0]])
    beside = Site(tiny(), Plan(2, 4), lengths, Link(2.0)).run(seconds=9.0)
    # steps end at 1, 2, 3, ... and 3, 6, ...: four at 3; of the four to 6 the last two in flight
    assert when(beside) == [(5.001, 4), (8.001, 8)]
    assert beside.steps == 9 + 3 and beside.share == 1.0
    assert beside.steps_in_flight == (2 + 0 + 2 + 0) / 4
    held = Site(tiny(), Plan(2, 4, overlap=False), lengths, Link(2.0)).run(seconds=20.0)
    # open at 3.001; who trains then comes to its next boundary at 4 and 6; landed at 8, and so on
    assert when(held)[0] == (8.0, 6)
    assert held.spans[0][:5] == [(0, 1), (1, 2), (2, 3), (3, 4), (8, 9)]
    assert held.share < 0.8


def test_a_worker_waits_that_is_too_far_ahead():
    lengths = equal(1.0)
    free = Site(tiny(), Plan(2, 2, max_in_flight=50), lengths, Link(7.0)).run(seconds=30.0)
    bound = Site(tiny(), Plan(2, 2, max_in_flight=3), lengths, Link(7.0)).run(seconds=30.0)
    assert free.share == 1.0 and free.steps_in_flight == 7.0
    assert bound.steps_in_flight == 3.0 and bound.share == pytest.approx(0.5, abs=0.1)


def test_a_run_is_the_same_every_time():
    plan, lengths = Plan(5, 16), lognormal(0.1, 0.6, 0.5)
    first, again = (
        Site(taught(), plan, lognormal(0.1, 0.6, 0.5), Link(0.05), seed=3).run(seconds=3.0)
        for _ in range(2)
    )
    assert first.landings == again.landings and first.spans == again.spans
    other = Site(taught(), plan, lengths, Link(0.05), seed=4).run(seconds=3.0)
    assert other.landings != first.landings


def test_a_run_ends_at_its_loss():
    run = Site(taught(), Plan(4, 16), straggler(), Link(0.05)).run(loss=1.0, seconds=60.0)
    assert run.landings[-1].loss <= 1.0 < min(one.loss for one in run.landings[:-1])
    assert run.first_below(1.0) is run.landings[-1]
    assert run.first_below(0.0) is None
    assert run.seconds == run.landings[-1].seconds < 60


def test_the_others_go_on_without_a_worker_that_is_lost():
    plan = Plan(4, 8, timeout_s=5.0)
    run = Site(tiny(), plan, equal(0.1), Link(0.01), lost={1: 2.05}).run(seconds=20.0)
    times = [landing.seconds for landing in run.landings]
    gaps = np.diff(times)
    assert gaps.max() > 5.0 and np.sum(gaps > 1.0) == 1
    assert times[-1] > 19.0
    assert run.spans[1][-1][1] == 2.05
    # three in rounds of eight steps since
    later = [landing.steps for landing in run.landings if landing.seconds > 8]
    assert set(np.diff(later)) <= {8, 9, 10}
    with pytest.raises(ValueError, match=r"all 2 workers were lost within"):
        Site(tiny(), Plan(2, 4), equal(), lost={0: 1.0, 1: 1.0}).run(seconds=20.0)


@pytest.mark.parametrize("overlap", [True, False])
def test_one_worker_alone_trains(overlap):
    run = Site(tiny(), Plan(1, 4, overlap=overlap), equal(1.0), Link(9.0, 1e3)).run(seconds=30.0)
    assert run.landings and run.steps > 5


def test_synchronous_steps_are_as_long_as_the_slowest_and_their_gradients_averaged():
    torch.manual_seed(0)
    samples, start = torch.randn(8, 3, dtype=DOUBLE), torch.randn(3, dtype=DOUBLE)
    problem = vectors(samples, start)
    run = synchronous(problem, 2, recorded([[1.0], [3.0]]), Link(2.5), seconds=21.0)
    # of a sum of 2.5 s 2 s pass beside the slowest step's backward pass
    assert when(run) == [(3.5 * n, 2 * n) for n in range(1, 7)]
    assert run.share == pytest.approx((1 / 3.5 + 1 / 3.5) / (1 / 1 + 1 / 3))
    w, taken = start.numpy(), in_the_sites_order(problem, 12)
    for one, other in zip(taken[::2], taken[1::2], strict=True):
        w = w - 0.1 * ((w - one) + (w - other)) / 2
    np.testing.assert_allclose(run.model["w"].numpy(), w, rtol=1e-12)


def test_a_ring_sends_almost_twice_the_bytes():
    assert Link(0.5, 100.0).all_reduce(1000, 4) == 0.5 + 2 * 3 / 4 * 1000 / 100
    assert Link(0.5, 100.0).all_reduce(1000, 1) == 0.5


def test_lengths_are_those_that_were_asked_for():
    draws = random.Random(0)
    assert [straggler(0.1, 4.0)(w, 0.0, draws) for w in range(3)] == [0.4, 0.1, 0.1]
    turns = rotating(0.1, 4.0, turn=2.0, workers=2)
    assert [turns(0, now, draws) for now in (0.0, 1.9, 2.0, 4.0)] == [0.4, 0.4, 0.1, 0.4]
    heavy = [heavy_tailed(0.1, 10.0, 0.2)(0, 0.0, draws) for _ in range(2000)]
    assert set(heavy) == {0.1, 1.0} and np.mean(np.equal(heavy, 1.0)) == pytest.approx(
        0.2, abs=0.03
    )
    normal = lognormal(0.1, 0.5, 1.0)
    of_one, of_other = ([normal(w, 0.0, draws) for _ in range(2000)] for w in range(2))
    assert np.std(np.log(of_one)) == pytest.approx(0.5, abs=0.03)
    assert abs(np.mean(np.log(of_one)) - np.mean(np.log(of_other))) > 0.1
    record = recorded([[1.0, 2.0], [5.0]])
    assert [record(0, 0.0, draws) for _ in range(3)] == [1.0, 2.0, 1.0]
    assert record(3, 0.0, draws) == 5.0


@pytest.mark.parametrize("compression", [None, "int8"])
@pytest.mark.parametrize("overlap", [True, False])
def test_a_sample_that_is_not_finite_costs_one_worker_one_round(compression, overlap):
    clean = taught()
    inputs = clean.train[0].clone()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    inputs[order[60 * clean.batch_size]] = math.nan
    plan = Plan(workers=4, sync_every=16, overlap=overlap, compression=compression)
    problem = dataclasses.replace(clean, train=(inputs, clean.train[1]))
    outcome, other = (
        Site(one, plan, straggler(seconds=0.1, times=4.0), Link(0.2)).run(seconds=15.0)
        for one in (problem, clean)
    )
    # an epoch has 500 batches: the sample comes once
    assert 60 < outcome.steps < 500 and (outcome.broken, other.broken) == (1, 0)
    assert all(math.isfinite(landing.loss) for landing in outcome.landings)
    assert outcome.landings[-1].loss == pytest.approx(other.landings[-1].loss, rel=0.1)
    # what is left out counts for no later round: these come as seldom as before
    assert abs(len(outcome.landings) - len(other.landings)) <= 1
    assert 0 < other.landings[-1].steps - outcome.landings[-1].steps < 2 * plan.sync_every


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: taught(lr=math.nan), "lr must be finite and >= 0, got nan"),
        (lambda: taught(momentum=math.inf), "momentum must be finite and >= 0, got inf"),
        (lambda: equal(0.0), "seconds must be finite and > 0, got 0.0"),
        (lambda: straggler(times=math.inf), "times must be finite and > 0"),
        (lambda: heavy_tailed(share=1.5), r"share must be in \[0, 1\], got 1.5"),
        (lambda: lognormal(sigma=-1.0), "deviations must be finite and >= 0, got -1.0"),
        (lambda: recorded([[1.0], []]), "at least one step of each worker"),
        (lambda: recorded([[1.0], [0.0]]), "seconds > 0 of each step, got 0.0 for worker 1"),
        (lambda: Link(-1.0), "seconds must be finite and >= 0"),
        (lambda: Link(bandwidth=0.0), "bandwidth must be > 0 bytes a second"),
        (lambda: Plan(workers=0), "workers must be an integer >= 1, got 0"),
        (lambda: Plan(sync_every=1.5), "sync_every must be an integer >= 1, got 1.5"),
        (lambda: Plan(timeout_s=math.nan), "timeout_s must be finite"),
        (lambda: Site(tiny(), Plan(2), equal(), lost={2: 1.0}), "workers from 0 to 1, got 2"),
        (lambda: Site(tiny(), Plan(2), equal()).run(), "expected seconds > 0 or a loss"),
        (lambda: synchronous(tiny(), 0, equal(), loss=0.0), "workers must be an integer >= 1"),
        (lambda: synchronous(tiny(), 2, equal()), "expected seconds > 0 or a loss"),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
