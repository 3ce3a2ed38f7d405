"""Progress in few bits: the codes, what they leave unsent, and that all workers decode alike."""

import copy
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from fedcurv.clients.settings import TrainingSettings
from fedcurv.lasgd import LASGD
from fedcurv.lasgd.coding import (
    BLOCK,
    Coder,
    block_maxima,
    decode,
    encode,
    levels_for,
    most_workers,
)
from fedcurv.lasgd.outer import Outer
from fedcurv.lasgd.plane import Interrupted, Plane
from fedcurv.lasgd.replica import Replica
from fedcurv.lasgd.virtual import Link, Plan, Site, equal, straggler, taught
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
from tests.oracles import few_bits as oracle

KINDS = ["int8", "int4"]


@pytest.mark.parametrize("number", [1, 255, 256, 1000])
@pytest.mark.parametrize(
    ("kind", "workers"), [("int8", 2), ("int8", 5), ("int8", 127), ("int4", 3)]
)
def test_a_sum_of_codes_is_the_oracles(kind, workers, number):
    values = np.random.default_rng(0).normal(size=(workers, number)).astype(np.float32)
    values[:, : number // 3] *= 100.0
    values[0, number // 2] = 0.0
    tensors = torch.from_numpy(values)
    scales = torch.stack([block_maxima(t) for t in tensors]).amax(0)
    levels = levels_for(kind, workers)
    codes = torch.stack([encode(t, scales, levels, kind) for t in tensors])
    assert codes.dtype == torch.uint8
    assert codes.shape[1] == (number if kind == "int8" else -(-number // 2))
    got = decode(codes.sum(0, dtype=torch.uint8), scales, levels, workers, number)
    expected, each = oracle.summed(values, {"int8": 8, "int4": 4}[kind])
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6, atol=1e-6 * abs(expected).max())
    for row, code in zip(each, codes, strict=True):
        alone = decode(code, scales, levels, 1, number).numpy()
        np.testing.assert_allclose(alone, row, rtol=1e-6, atol=1e-6 * abs(row).max())


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_to_the_nearest_level_and_zeros_stay(kind):
    values = torch.linspace(-3.0, 3.0, BLOCK)
    values[10] = 0.0
    scales, levels = block_maxima(values), levels_for(kind, 2)
    got = decode(encode(values, scales, levels, kind), scales, levels, 1, BLOCK)
    assert (got - values).abs().max() <= 3.0 / levels / 2 * (1 + 1e-5)
    assert got[10] == 0.0 and got[0] == -3.0 and got[-1] == 3.0
    nothing = torch.zeros(5)
    assert torch.equal(
        decode(encode(nothing, nothing[:1], levels, kind), nothing[:1], 1, 1, 5), nothing
    )


def test_codes_of_as_many_workers_as_fit_do_not_overflow():
    for kind in KINDS:
        workers = most_workers(kind)
        levels = levels_for(kind, workers)
        assert levels == 1 and levels_for(kind, workers + 1) == 0
        ones = torch.ones(BLOCK)
        codes = encode(ones, ones[:1], levels, kind)
        total = torch.stack([codes] * workers).sum(0, dtype=torch.uint8)
        assert torch.equal(decode(total, ones[:1], levels, workers, BLOCK), workers * ones)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_unsent_is_always_what_the_common_model_lacks(kind):
    """Over rounds of other factors, some without steps, and a last one that is not coded."""
    rng, workers, number = np.random.default_rng(1), 3, 700
    coders = [Coder(kind, number, 0, torch.zeros(0, dtype=torch.float64)) for _ in range(workers)]
    wanted = landed = torch.zeros(number, dtype=torch.float64)
    for turn in range(30):
        factor = 0.0 if turn % 7 == 3 else float(rng.uniform(0.1, 1.0))
        given = [torch.from_numpy(rng.normal(size=number)) for _ in range(workers)]
        scales = torch.stack(
            [block_maxima(c.values(g)) for c, g in zip(coders, given, strict=True)]
        ).amax(0)
        codes = [c.encode(g, scales, workers) for c, g in zip(coders, given, strict=True)]
        total = torch.stack(codes).sum(0, dtype=torch.uint8)
        sums = [c.decode(total, scales, workers) for c in coders]
        assert all(torch.equal(one, sums[0]) for one in sums)
        wanted = wanted + factor * sum(given)
        landed = landed + factor * sums[0]
        for coder in coders:
            coder.land(factor, whole=False)
        lacking = sum(coder.unsent for coder in coders)
        torch.testing.assert_close(landed + lacking, wanted, rtol=0, atol=1e-9)
    assert not torch.allclose(landed, wanted, atol=1e-3)
    for coder in coders:
        coder.land(0.5, whole=True)
        assert not coder.unsent.any()


def in_step(rank, store, size, compression, rounds=8, make=sgd, **options):
    """Train so that what each round holds is known; what it returns ends with the model's bits."""
    model = copy.deepcopy(NETWORK)
    optimizer = make(model)
    inputs = torch.randn(16, 20, generator=torch.Generator().manual_seed(rank)).double()
    options = {"sync_every": 10**6, "compression": compression, **options}
    with block(model, optimizer, store, rank, size, **options) as lasgd:
        steps_in_rounds(lasgd, model, optimizer, inputs, rounds, MEETINGS[size])
        unsent = lasgd.state_dict().get("unsent")
    return bits(model), unsent, lasgd.stats


NETWORK = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 2)).double()
MEETINGS = {size: threading.Barrier(size) for size in (2, 3)}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("compression", KINDS)
def test_all_end_with_the_same_bits_and_nothing_unsent(compression, size):
    def work(rank, store, size, compression):
        model = nn.Linear(300, 1, bias=False).double()
        nn.init.zeros_(model.weight)
        optimizer, rows = sgd(model), torch.Generator().manual_seed(rank)
        with block(model, optimizer, store, rank, size, compression=compression) as lasgd:
            for _ in range(15 + rank):
                optimizer.zero_grad()
                model(torch.randn(1, 300, generator=rows).double()).sum().backward()
                optimizer.step()
                time.sleep(0.002)
        return bits(model), lasgd.stats, lasgd.state_dict()["unsent"]

    coded = in_threads(work, size, compression)
    assert_same_bits([model for model, _, _ in coded])
    assert not any(unsent["progress"].any() for _, _, unsent in coded)
    assert coded[0][1].steps_in_rounds == sum(s.steps for _, s, _ in coded)


@pytest.mark.parametrize("compression", KINDS)
def test_a_forced_schedule_lacks_nothing_at_the_end(compression):
    """All workers take the same number of steps, of gradients that do not depend on the model."""

    def work(rank, store, size, compression):
        model = nn.Linear(300, 1, bias=False).double()
        nn.init.zeros_(model.weight)
        optimizer, rows = sgd(model), torch.Generator().manual_seed(rank)
        meet = MEETINGS[size]
        options = {"sync_every": 10**6, "compression": compression}
        middle = None
        with block(model, optimizer, store, rank, size, **options) as lasgd:
            for _ in range(6):
                optimizer.zero_grad()
                model(torch.randn(1, 300, generator=rows).double()).sum().backward()
                optimizer.step()
                meet.wait(30)
                lasgd.synchronize()
                middle = bits(model)["weight"]
                meet.wait(30)
        return middle, bits(model)["weight"]

    plain, coded = in_threads(work, 2, None), in_threads(work, 2, compression)
    (_, expected), (_, again) = plain
    assert torch.equal(coded[0][1], coded[1][1])
    torch.testing.assert_close(coded[0][1], expected, rtol=0, atol=1e-12)
    assert not torch.allclose(coded[0][0], expected, atol=1e-6), "nothing was coded"
    assert torch.equal(expected, again)


@pytest.mark.parametrize("when", ["maxima", "codes", "rest", "after"])
def test_a_round_that_is_redone_is_not_coded_twice(when, monkeypatch):
    undisturbed = in_threads(in_step, 2, "int8")
    original, calls = Plane.all_reduce, []
    place = {"maxima": 0, "codes": 1, "rest": 2, "after": 2}[when]

    def fails(self, given_up, *arguments, **options):
        calls.append(self._rank)
        fatal = self._rank == 1 and calls.count(1) == 1 + 3 * 4 + place + 1
        if fatal and when != "after":
            raise Interrupted("as if the time were over")
        original(self, given_up, *arguments, **options)
        if fatal:
            raise Interrupted("as if another were lost")

    monkeypatch.setattr(Plane, "all_reduce", fails)
    disturbed = in_threads(in_step, 2, "int8")
    assert calls.count(1) > 16
    for (one, unsent, _), (other, again, stats) in zip(undisturbed, disturbed, strict=True):
        assert stats.lost == ()
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=0, atol=1e-14)
        torch.testing.assert_close(again["progress"], unsent["progress"], rtol=0, atol=1e-14)


def test_one_worker_is_as_without_compression():
    def work(rank, store, size, compression):
        model = nn.Linear(3, 1)
        torch.nn.init.ones_(model.weight), torch.nn.init.zeros_(model.bias)
        torch.manual_seed(1)
        optimizer = sgd(model)
        with block(model, optimizer, store, rank, size, compression=compression) as lasgd:
            for _ in range(8):
                steps(model, optimizer, number=1)
                lasgd.synchronize()
        return bits(model), lasgd.stats.payload_bytes

    ((plain, _),), ((coded, payload),) = in_threads(work, 1, None), in_threads(work, 1, "int4")
    for name in plain:
        torch.testing.assert_close(coded[name], plain[name], rtol=0, atol=1e-6)
    assert payload == 0


@pytest.mark.parametrize(("compression", "codes"), [(None, 0), ("int8", 692), ("int4", 346)])
def test_bytes_are_counted_as_they_travel(compression, codes):
    """Of 692 numbers in float64 in three blocks, with a header of 9 lines for each worker.

    The first model is handed out as it is, and the last round is not coded.
    """
    numbers = 20 * 30 + 30 + 30 * 2 + 2
    whole, header, maxima = 8 * (numbers + 2 * 9), 8 * 2 * 9, 8 * (-(-numbers // BLOCK) + 2)
    for _, _, stats in in_threads(in_step, 2, compression):
        first, last = whole, whole + 8 * numbers + maxima
        expected = first + (stats.rounds - 1) * (maxima + codes + header) + last
        if compression is None:
            expected = (1 + stats.rounds) * whole
        assert stats.payload_bytes == expected


@pytest.mark.parametrize(
    "make",
    [
        lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
        lambda model: torch.optim.RMSprop(model.parameters(), lr=0.01, momentum=0.5),
    ],
    ids=["sgd", "adamw", "rmsprop"],
)
def test_momentum_is_coded_and_means_of_squares_are_not(make):
    model = nn.Linear(5, 3)
    optimizer = make(model)
    replica = Replica(model, optimizer, compression="int8")
    per_number = {"SGD": (1, 0), "AdamW": (1, 1), "RMSprop": (1, 1)}[type(optimizer).__name__]
    assert (replica.sizes.signed, replica.sizes.squares) == tuple(18 * n for n in per_number)
    assert replica.coder.coded == 18 + replica.sizes.signed
    results = in_threads(in_step, 2, "int8", 8, make)
    assert_same_bits([state for state, _, _ in results])
    assert all(torch.isfinite(value).all() for value in results[0][0].values())


def test_a_newcomer_and_a_leaver_take_part():
    host, begun = Host(), threading.Event()

    def member(rank):
        model = nn.Linear(3, 1)
        optimizer = sgd(model)
        options = {"compression": "int4", "outer": "nesterov", "outer_momentum": 0.5}
        with block(model, optimizer, client(host.port), rank, 3, **options) as lasgd:
            for turn in range(40):
                steps(model, optimizer, number=4)
                begun.set()
                time.sleep(0.01)
                if rank == 2 and turn == 5:
                    lasgd.leave()
                    return None
        return bits(model), lasgd.stats

    def newcomer():
        begun.wait(30)
        model = nn.Linear(3, 1)
        optimizer = sgd(model)
        options = {"compression": "int4", "outer": "nesterov", "outer_momentum": 0.5}
        options |= {"sync_every": 4, "timeout_s": 20.0}
        with LASGD(model, optimizer, store=client(host.port), join=True, **options) as lasgd:
            steps(model, optimizer)
        return bits(model), lasgd.stats

    one, other, _, fourth = in_threads(
        lambda rank, *_: newcomer() if rank == 3 else member(rank), 4
    )
    assert_same_bits([one[0], other[0], fourth[0]])
    assert one[1].lost == ()


def test_what_is_unsent_is_saved_for_its_worker_alone():
    saved = in_threads(in_step, 2, "int8")
    assert [unsent["worker"] for _, unsent, _ in saved] == [0, 1]
    assert all(unsent["progress"].any() for _, unsent, _ in saved)

    def resumed(rank, store, size):
        model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 2)).double()
        lasgd = block(model, sgd(model), store, rank, size, compression="int8")
        state = lasgd.state_dict()
        lasgd.load_state_dict({**state, "unsent": saved[0][1]})
        with pytest.raises(ValueError, match="unsent of 692 numbers"):
            lasgd.load_state_dict(
                {**state, "unsent": {"worker": rank, "progress": torch.zeros(3).double()}}
            )
        for wrong in (3, {"worker": 0}, {"worker": -1, "progress": torch.zeros(3)}):
            with pytest.raises(ValueError, match="under 'unsent' no worker and its flat progress"):
                lasgd.load_state_dict({**state, "unsent": wrong})
        return lasgd.state_dict()["unsent"]["progress"]

    one, other = in_threads(resumed, 2)
    assert torch.equal(one, saved[0][1]["progress"])
    assert not other.any()


@pytest.mark.parametrize("outer", [Outer(), Outer("nesterov", 0.7, 0.5)])
@pytest.mark.parametrize("compression", KINDS)
def test_virtual_workers_keep_the_same_model_and_account_for_the_bytes(compression, outer):
    link = Link(0.01, 1e6)
    plain, coded = (
        Site(taught(), Plan(4, 16, outer=outer, compression=c), straggler(), link).run(seconds=6.0)
        for c in (None, compression)
    )
    rounds = min(len(plain.landings), len(coded.landings))
    assert rounds > 5
    ratio = coded.payload_bytes / len(coded.landings) * len(plain.landings) / plain.payload_bytes
    assert ratio == pytest.approx({"int8": 0.26, "int4": 0.14}[compression], abs=0.04)
    assert coded.landings[-1].loss == pytest.approx(plain.landings[-1].loss, rel=0.35)


def test_few_bytes_travel_sooner_over_a_slow_link():
    slow = Link(0.0, 1e4)
    plain, coded = (
        Site(taught(), Plan(2, 16, compression=c), equal(0.1), slow).run(seconds=10.0)
        for c in (None, "int8")
    )
    assert len(coded.landings) > 2 * len(plain.landings) > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plan(4, compression="int2"), "compression must be int8, int4 or None, got 'int2'"),
        (lambda: Plan(8, compression="int4"), "compression=int4 must have at most 7 workers"),
        (lambda: LASGD(nn.Linear(2, 1), None, compression=8), "compression must be .*, got 8"),
        (
            lambda: TrainingSettings(trainer="lasgd", compression="int2"),
            "client.compression must be int8, int4 or null, got 'int2'",
        ),
        (lambda: TrainingSettings(compression="int8"), "client.compression must be null where"),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
