"""Several workers, each a thread with a Gloo group of its own."""

import copy
import re
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset

from fedcurv import Curvature, CurvaturePenalty
from fedcurv.lasgd import LASGD, WorkerLost, host_store
from fedcurv.parameters import trainable_parameters
from tests.fedcurv.lasgd.site import Host, client, in_threads

DATA = TensorDataset(
    torch.randn(120, 4, generator=torch.Generator().manual_seed(1)).double(),
    torch.arange(120) % 3,
)


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, **options})


def step(model, optimizer, inputs, labels):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    optimizer.step()


def values(model):
    tensors = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    return torch.cat([t.detach().flatten() for t in tensors])


def train(rank, store, size, epochs=3, pause_s=0.0, make_optimizer=sgd, **options):
    """Return the model's values, the figures and the samples that this worker had."""
    model = make_model(seed=rank)
    optimizer = make_optimizer(model)
    options = {"sync_every": 4, "timeout_s": 20.0, **options}
    seen = []
    with LASGD(model, optimizer, store=store, rank=rank, world_size=size, **options) as lasgd:
        loader = lasgd.loader(DATA, 8, seed=5)
        for _ in range(epochs):
            for inputs, labels in loader:
                step(model, optimizer, inputs, labels)
                seen += [tuple(row) for row in inputs.tolist()]
                time.sleep(pause_s * (rank + 1))
    return values(model), lasgd.stats, seen


class Subclass(torch.optim.SGD):
    """Leaves the step to its parent, whose hooks torch calls once more."""

    def step(self, closure=None):
        return super().step(closure)


def test_an_optimizer_that_steps_by_its_parent_takes_one_step():
    def subclass(model):
        return Subclass(model.parameters(), lr=0.05)

    sgd(make_model())  # from when on the parent's steps call hooks
    results = in_threads(lambda *a: train(*a, epochs=1, make_optimizer=subclass), 2)
    models, stats, _ = zip(*results, strict=True)
    assert torch.equal(*models)
    assert sum(s.steps for s in stats) == 15


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_all_end_with_the_same_bits_and_no_step_is_lost_or_counted_twice(number, overlap):
    results = in_threads(lambda *a: train(*a, pause_s=0.002, overlap=overlap), number)
    models, stats, seen = zip(*results, strict=True)
    assert all(torch.equal(model, models[0]) for model in models)
    assert {s.steps_in_rounds for s in stats} == {sum(s.steps for s in stats)} == {45}
    assert sum(s.samples for s in stats) == 3 * len(DATA)
    assert all(s.lost == () and s.broken_rounds == 0 for s in stats)
    everything = sorted(tuple(row) for row in DATA.tensors[0].tolist())
    assert sorted(row for rows in seen for row in rows) == sorted(3 * everything)


def test_one_worker_is_the_plain_optimizer_bit_for_bit():
    """Also with momentum, and with rounds all the time."""
    model = make_model(seed=0)
    optimizer = sgd(model, momentum=0.9)
    for _ in range(50):
        step(model, optimizer, *DATA[:16])

    def work(rank, store, size):
        mine = make_model(seed=0)
        optimizer = sgd(mine, momentum=0.9)
        with LASGD(mine, optimizer, sync_every=1, store=store, rank=0, world_size=1):
            for _ in range(50):
                step(mine, optimizer, *DATA[:16])
        return mine

    (mine,) = in_threads(work, 1)
    for theirs, ours in zip(model.parameters(), mine.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-15)


@pytest.mark.parametrize("overlap", [True, False])
def test_one_step_each_and_then_a_round_is_synchronous_sgd(overlap):
    """The schedule is forced by barriers; the oracle takes the mean of the workers' gradients."""
    number = 3
    parts = [DATA[rank * 40 : (rank + 1) * 40] for rank in range(number)]
    meet = threading.Barrier(number)

    def work(rank, store, size):
        model = nn.Linear(4, 3).double()
        nn.init.constant_(model.weight, 0.1 * rank)
        nn.init.zeros_(model.bias)
        optimizer = sgd(model, lr=0.5)
        options = {"store": store, "rank": rank, "world_size": size, "overlap": overlap}
        with LASGD(model, optimizer, sync_every=10**6, **options) as lasgd:
            for _ in range(10):
                step(model, optimizer, *parts[rank])
                meet.wait(30)
                lasgd.synchronize()
                meet.wait(30)
        return torch.cat([model.weight.detach().flatten(), model.bias.detach()])

    alone = nn.Linear(4, 3).double()
    nn.init.zeros_(alone.weight)
    nn.init.zeros_(alone.bias)
    optimizer = sgd(alone, lr=0.5)
    for _ in range(10):
        step(alone, optimizer, *DATA[:])
    expected = torch.cat([alone.weight.detach().flatten(), alone.bias.detach()])
    for result in in_threads(work, number):
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("steps", [[0, 7], [1, 40], [0, 0]])
def test_workers_with_unequal_work_all_come_to_the_end(steps, overlap):
    def work(rank, store, size):
        model = make_model()
        optimizer = sgd(model)
        options = {"store": store, "rank": rank, "world_size": size, "overlap": overlap}
        with LASGD(model, optimizer, sync_every=3, **options) as lasgd:
            for _ in range(steps[rank]):
                step(model, optimizer, *DATA[:16])
        return values(model), lasgd.stats

    (one, stats), (other, _) = in_threads(work, 2)
    assert torch.equal(one, other)
    assert stats.steps_in_rounds == sum(steps)


def test_an_exception_in_one_worker_leaves_the_others_to_themselves():
    """Its steps until then count; its error is its own."""

    def work(rank, store, size):
        model = make_model()
        optimizer = sgd(model)
        with LASGD(
            model, optimizer, sync_every=4, store=store, rank=rank, world_size=size
        ) as lasgd:
            for index in range(20):
                if rank == 1 and index == 5:
                    raise ZeroDivisionError("mine")
                step(model, optimizer, *DATA[:16])
                time.sleep(0.002)
        return values(model), lasgd.stats

    one, failed, other = in_threads(work, 3, may_fail=True)
    assert isinstance(failed, ZeroDivisionError)
    assert torch.equal(one[0], other[0])
    assert one[1].steps_in_rounds == 45
    assert one[1].lost == ()


def test_an_optimizer_step_that_raises_does_not_block_the_others():
    class Fails(torch.optim.SGD):
        fails = False

        def step(self, closure=None):
            if self.fails:
                raise ZeroDivisionError("in the step")

    def work(rank, store, size):
        model = make_model()
        optimizer = Fails(model.parameters(), lr=0.1)
        optimizer.fails = rank == 1
        with LASGD(model, optimizer, store=store, rank=rank, world_size=size):
            step(model, optimizer, *DATA[:16])
        return True

    done, failed = in_threads(work, 2, may_fail=True)
    assert done is True
    assert isinstance(failed, ZeroDivisionError)


def test_a_newcomer_gets_the_model_and_shares_the_work():
    host, begun, shared = Host(), threading.Event(), threading.Event()

    def member(rank):
        model = make_model(seed=rank)
        optimizer = sgd(model)
        options = {"store": client(host.port), "rank": rank, "world_size": 2}
        with LASGD(model, optimizer, sync_every=4, **options) as lasgd:
            loader = lasgd.loader(DATA, 8)
            for _ in range(8):
                for batch in loader:
                    step(model, optimizer, *batch)
                    begun.set()
                    shared.wait(0.1)  # a busy machine lets the newcomer in late
                    time.sleep(0.01)
        return values(model), lasgd.stats, lasgd.worker

    def newcomer():
        begun.wait(30)
        model = make_model(seed=9)
        optimizer = sgd(model)
        with LASGD(model, optimizer, sync_every=4, store=client(host.port), join=True) as lasgd:
            for batch in lasgd.loader(DATA, 8):
                step(model, optimizer, *batch)
                shared.set()
                time.sleep(0.01)
        return values(model), lasgd.stats, lasgd.worker

    results = in_threads(lambda rank, *_: newcomer() if rank == 2 else member(rank), 3)
    models, stats, workers = zip(*results, strict=True)
    assert workers == (0, 1, 2)
    assert all(torch.equal(model, models[0]) for model in models)
    assert stats[0].steps_in_rounds == sum(s.steps for s in stats) == 8 * 15
    assert stats[2].steps > 0


def test_a_saved_state_goes_on_in_the_middle_of_an_epoch_with_other_workers():
    """Every sample that is not in the saved model is dealt again, and no other."""
    saved = {}

    def interrupted(rank, store, size):
        model = make_model()
        optimizer = sgd(model)
        done = []
        with LASGD(
            model, optimizer, sync_every=2, store=store, rank=rank, world_size=size
        ) as lasgd:
            for index, (inputs, labels) in enumerate(lasgd.loader(DATA, 8, seed=5)):
                step(model, optimizer, inputs, labels)
                done += inputs[:, 0].tolist()
                if index == 2:
                    break
        saved[rank] = lasgd.state_dict()
        return done, values(model)

    def resumed(rank, store, size):
        model = make_model(seed=7)
        optimizer = sgd(model)
        lasgd = LASGD(model, optimizer, store=store, rank=rank, world_size=size)
        lasgd.load_state_dict(saved[0])
        start, done = values(model), [[], []]
        with lasgd:
            loader = lasgd.loader(DATA, 8, seed=5)
            for epoch in range(2):
                for inputs, labels in loader:
                    step(model, optimizer, inputs, labels)
                    done[epoch] += inputs[:, 0].tolist()
        return done, start

    first = in_threads(interrupted, 2)
    second = in_threads(resumed, 3)
    assert torch.equal(second[0][1], first[0][1])
    before = [x for done, _ in first for x in done]
    assert len(before) == 48
    everything = sorted(DATA.tensors[0][:, 0].tolist())
    assert sorted(before + [x for done, _ in second for x in done[0]]) == everything
    assert sorted(x for done, _ in second for x in done[1]) == everything


def test_gradient_accumulation_a_scheduler_and_a_scaler_that_skips_steps():
    """A step is a call of the optimizer's step; what the scaler skips is none."""

    def work(rank, store, size):
        model = make_model().float()
        optimizer = sgd(model)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        with LASGD(
            model, optimizer, sync_every=3, store=store, rank=rank, world_size=size
        ) as lasgd:
            for index in range(10):
                for _ in range(2):
                    inputs, labels = DATA[:16]
                    loss = nn.functional.cross_entropy(model(inputs.float()), labels)
                    scaler.scale(loss).backward()
                if index % 5 == 4:
                    model[0].weight.grad.fill_(float("inf"))
                scaler.step(optimizer)
                scaler.update()
                scheduler.step()
                optimizer.zero_grad()
        return values(model), lasgd.stats

    (one, stats), (other, _) = in_threads(work, 2)
    assert torch.equal(one, other)
    assert stats.steps == 8
    assert stats.steps_in_rounds == 16


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_a_penalty_attached_within_is_felt_before_the_snapshot(mode):
    """A hook that changes weights after the step must not come after this one's."""

    def work(rank, store, size):
        model = make_model()
        optimizer = sgd(model, lr=0.01)
        optimum = {n: torch.ones_like(p) for n, p in trainable_parameters(model).items()}
        with LASGD(model, optimizer, sync_every=1, store=store, rank=rank, world_size=size):
            curvature = Curvature(
                {n: 100 * p for n, p in optimum.items()}, {n: 100 * p for n, p in optimum.items()}
            )
            CurvaturePenalty(model, curvature, strength=0.2).attach(optimizer, mode=mode)
            for _ in range(100):
                step(model, optimizer, *DATA[:16])
        return values(model), max((p - 1).abs().max().item() for p in model.parameters())

    (one, away), (other, _) = in_threads(work, 2)
    assert torch.equal(one, other)
    assert away < 0.1


def test_a_worker_whose_progress_is_not_finite_is_reported_and_goes_on_from_the_common_model():
    """What it was trained on in vain is not taken for trained."""

    def work(rank, store, size):
        model = make_model()
        optimizer = sgd(model, momentum=0.9)
        options = {"store": store, "rank": rank, "world_size": size}
        with LASGD(model, optimizer, sync_every=10**6, **options) as lasgd:
            for index, batch in enumerate(lasgd.loader(DATA, 8)):
                step(model, optimizer, *batch)
                if rank == 1 and index == 1:
                    with torch.no_grad():
                        model[0].weight.fill_(float("nan"))
                    break
                time.sleep(0.02)
            lasgd.synchronize()
            step(model, optimizer, *DATA[:16])
        return values(model), lasgd.stats, lasgd.state_dict()["data"]

    (one, stats, data), (other, broken, _) = in_threads(work, 2)
    assert torch.equal(one, other) and torch.isfinite(one).all()
    assert (stats.broken_rounds, broken.broken_rounds) == (0, 1)
    assert stats.steps_in_rounds == stats.steps + 1
    # two batches in vain, and one that was claimed ahead and never used
    assert len(data["rests"][0]) == 3 * 8


def test_steps_in_flight_are_bounded():
    results = in_threads(lambda *a: train(*a, pause_s=0.002, max_in_flight=1, sync_every=2), 2)
    assert all(stats.most_steps_in_flight <= 1 for _, stats, _ in results)


def test_synchronize_gives_the_common_model_in_the_middle():
    """Up to the rounding of rounds without a step: not both need have asked for the same one."""
    meet = threading.Barrier(2)

    def work(rank, store, size):
        model = nn.Linear(4, 3).double()
        nn.init.ones_(model.weight)
        optimizer = sgd(model)
        options = {"store": store, "rank": rank, "world_size": size}
        with LASGD(model, optimizer, sync_every=10**6, **options) as lasgd:
            for _ in range(3 + 4 * rank):
                step(model, optimizer, *DATA[rank * 8 : 16])
            meet.wait(30)
            lasgd.synchronize()
            meet.wait(30)
            lasgd.synchronize()
            middle = values(model)
            meet.wait(30)
        return middle, values(model)

    one, other = in_threads(work, 2)
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(one[1], one[0], rtol=0, atol=1e-14)
    assert torch.equal(one[1], other[1])


def test_a_hosted_store_listens_on_its_own_address_only():
    store = host_store()
    listening = [
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    ]
    mine = [address for address in listening if int(address.rpartition(":")[2], 16) == store.port]
    assert [address.partition(":")[0] for address in mine] == ["0100007F"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("more", [{}, {"outer": "nesterov", "compression": "int8"}])
@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_on_a_gpu(backend, more):
    """NCCL wants a GPU for each worker."""
    number = 2 if backend == "gloo" else 1

    def work(rank, store, size):
        model = make_model(seed=rank).to("cuda")
        optimizer = sgd(model, momentum=0.9)
        options = {"store": store, "rank": rank, "world_size": size, "backend": backend, **more}
        with LASGD(model, optimizer, sync_every=4, **options) as lasgd:
            for inputs, labels in lasgd.loader(DATA, 8):
                step(model, optimizer, inputs.cuda(), labels.cuda())
        return values(model).cpu(), lasgd.stats

    results = in_threads(work, number)
    assert all(torch.equal(model, results[0][0]) for model, _ in results)
    assert results[0][1].steps_in_rounds == 15


def error_of(result):
    assert isinstance(result, Exception), result
    return f"{type(result).__name__}: {result}"


def test_other_models_are_named_at_every_worker():
    def work(rank, store, size):
        model = nn.Linear(4, 3 + (rank == 2))
        LASGD(model, sgd(model), store=store, rank=rank, world_size=size, timeout_s=20)

    for rank, result in enumerate(in_threads(work, 3, may_fail=True)):
        # each compares itself with the others as they come
        one = 1 if rank == 1 else r"[01]"
        assert re.fullmatch(
            r"ValueError: expected the same models at all workers, but 'weight' is "
            rf"float32 \[3, 4\] at worker {one} and float32 \[4, 4\] at worker 2",
            error_of(result),
        )


def test_other_settings_are_named_at_every_worker():
    def work(rank, store, size):
        model = make_model()
        LASGD(model, sgd(model), sync_every=1 + rank, store=store, rank=rank, world_size=size)

    for result in in_threads(work, 2, may_fail=True):
        assert "'sync_every' is 1 at worker 0 and 2 at worker 1" in error_of(result)


def test_workers_that_do_not_come_are_named():
    def work(rank, store, size):
        model = make_model()
        LASGD(model, sgd(model), store=store, rank=rank, world_size=4, timeout_s=0.5)

    for result in in_threads(work, 2, may_fail=True):
        assert "TimeoutError: waited 0.5 s for worker 2, 3, in vain" in error_of(result)


def test_a_newcomer_with_another_model_is_refused():
    def work(rank, store, size):
        model = nn.Linear(4, 3 + rank)
        with LASGD(model, sgd(model), store=store, rank=0, world_size=1):
            newcomer = nn.Linear(4, 4)
            with pytest.raises(ValueError, match=r"worker 0 and float32 \[4, 4\] at the newcomer"):
                LASGD(newcomer, sgd(newcomer), store=store.clone(), join=True)
        return True

    assert in_threads(work, 1) == [True]


def test_nobody_to_join():
    model, host = make_model(), Host()
    with pytest.raises(TimeoutError, match=r"waited 0\.2 s for worker 0"):
        LASGD(model, sgd(model), store=client(host.port), join=True, timeout_s=0.2)


def store_of_one():
    return {"store": dist.HashStore(), "rank": 0, "world_size": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "mlp"}, "model must be a torch.nn.Module, got 'mlp'"),
        ({"model": None}, "model must be a torch.nn.Module, got None"),
        ({"optimizer": "sgd"}, "optimizer must be a torch.optim.Optimizer, whose steps call hooks"),
        ({"sync_every": 0}, "sync_every must be an integer >= 1, got 0"),
        ({"sync_every": 2.5}, r"sync_every must be an integer >= 1, got 2\.5"),
        ({"sync_every": True}, "sync_every must be an integer >= 1, got True"),
        ({"sync_every": "8"}, "sync_every must be an integer >= 1, got '8'"),
        ({"overlap": "no"}, "overlap must be True or False, got 'no'"),
        ({"overlap": 1}, "overlap must be True or False, got 1"),
        ({"max_in_flight": 0}, "max_in_flight must be an integer >= 1, got 0"),
        ({"max_in_flight": True}, "max_in_flight must be an integer >= 1, got True"),
        ({"max_in_flight": None}, "max_in_flight must be an integer >= 1, got None"),
        ({"weights": "mine"}, "weights must be gradient, steps or worker, got 'mine'"),
        (
            {"weights": ["steps"]},
            "weights must be gradient, steps or worker, got one of class list",
        ),
        ({"momentum": True}, "momentum must be average or local, got True"),
        ({"momentum": 0.9}, r"momentum must be average or local, got 0\.9"),
        ({"buffers": "no"}, "buffers must be average or local, got 'no'"),
        ({"buffers": torch.zeros(2)}, "buffers must be average or local, got one of class Tensor"),
        ({"backend": "mpi"}, "backend must be gloo or nccl, got 'mpi'"),
        ({"backend": None}, "backend must be gloo or nccl, got None"),
        ({"timeout_s": float("nan")}, r"timeout_s must be a number > 0 and <= 1e\+09, got nan"),
        ({"timeout_s": float("inf")}, r"timeout_s must be a number > 0 and <= 1e\+09, got inf"),
        ({"timeout_s": 1e300}, r"timeout_s must be a number > 0 and <= 1e\+09, got 1e\+300"),
        ({"timeout_s": 0}, "timeout_s must be a number > 0"),
        ({"timeout_s": "60"}, "timeout_s must be a number > 0 .*, got '60'"),
        ({"timeout_s": True}, "timeout_s must be a number > 0 .*, got True"),
        ({"timeout_s": None}, "timeout_s must be a number > 0 .*, got None"),
        ({}, "expected the environment that torchrun sets, got none of RANK, WORLD_SIZE"),
        ({"join": True}, "expected the store of the training to join, got none"),
        ({"join": "yes"}, "join must be True or False, got 'yes'"),
        ({"store": "s"}, "store must be a torch.distributed.Store, got 's'"),
        ({**store_of_one(), "rank": None}, "expected rank and world_size, 0 <= rank < world_size"),
        ({**store_of_one(), "rank": 2, "world_size": 2}, "with the store, got 2 and 2"),
        ({**store_of_one(), "rank": "0"}, "rank must be an integer >= 0, got '0'"),
        ({**store_of_one(), "rank": False}, "rank must be an integer >= 0, got False"),
        ({**store_of_one(), "rank": -1}, "rank must be an integer >= 0, got -1"),
        ({**store_of_one(), "world_size": "1"}, "world_size must be an integer >= 1, got '1'"),
        ({**store_of_one(), "world_size": 0}, "world_size must be an integer >= 1, got 0"),
        ({**store_of_one(), "world_size": 1.0}, r"world_size must be an integer >= 1, got 1\.0"),
        ({"rank": 0}, "rank must be left out without a store, as torchrun's environment"),
        ({"world_size": 1}, "world_size must be left out without a store"),
        ({**store_of_one(), "join": True}, "rank must be left out with join=True, which .* got 0"),
        ({"process_group": -100}, "process_group must be a .*ProcessGroup that this process is in"),
        (
            {**store_of_one(), "process_group": dist.ProcessGroup(0, 1)},
            "process_group must be left out where a store is given",
        ),
        (
            {**store_of_one(), "backend": "nccl"},
            "backend nccl must have a model on a GPU, got one on cpu",
        ),
    ],
)
def test_bad_arguments(options, message, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    model = make_model()
    with pytest.raises(ValueError, match=message) as raised:
        LASGD(**{"model": model, "optimizer": sgd(model), **options})
    assert "\n" not in str(raised.value)


def test_all_bad_arguments_are_named_at_once():
    model = make_model()
    with pytest.raises(
        ValueError, match=r"sync_every must be .*; timeout_s must be .*; rank must "
    ):
        LASGD(model, sgd(model), sync_every=True, timeout_s="1", rank="1")


def test_complex_parameters_are_refused_by_name():
    model = nn.Linear(4, 3, dtype=torch.complex64)
    with pytest.raises(ValueError, match="expected real parameters, got complex weight, bias"):
        LASGD(model, sgd(model), **store_of_one())


def test_no_store_at_the_address(monkeypatch):
    host = Host()
    port = host.port
    del host
    environment = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**environment, "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    model = make_model()
    with pytest.raises(TimeoutError, match=f"no store at 127.0.0.1:{port} within 0.5 s"):
        LASGD(model, sgd(model), timeout_s=0.5)


def test_a_second_loader_and_a_late_state_are_refused():
    def work(rank, store, size):
        model = make_model()
        lasgd = LASGD(model, sgd(model), store=store, rank=rank, world_size=size)
        state = copy.deepcopy(lasgd.state_dict())
        lasgd.loader(DATA, 8)
        with pytest.raises(RuntimeError, match="expected one loader"):
            lasgd.loader(DATA, 8)
        with pytest.raises(RuntimeError, match="expected a state before loader"):
            lasgd.load_state_dict(state)

    in_threads(work, 1)


def test_an_empty_data_set_is_refused():
    def work(rank, store, size):
        model = make_model()
        lasgd = LASGD(model, sgd(model), store=store, rank=rank, world_size=size)
        with pytest.raises(ValueError, match="expected a data set with samples, got 0"):
            lasgd.loader(TensorDataset(torch.zeros(0)), 8)

    in_threads(work, 1)


def test_a_state_of_another_data_set_is_refused():
    def work(rank, store, size):
        model = make_model()
        lasgd = LASGD(model, sgd(model), store=store, rank=rank, world_size=size)
        lasgd.loader(DATA, 8)
        state = lasgd.state_dict()
        other = LASGD(
            model, sgd(model), store=dist.PrefixStore("b", store), rank=rank, world_size=size
        )
        other.load_state_dict(state)
        with pytest.raises(ValueError, match="data set of the saved state, with 120 samples"):
            other.loader(TensorDataset(torch.zeros(3)), 8)

    in_threads(work, 1)


def test_the_end_of_the_store_is_an_error_in_the_training_thread():
    def work(rank, store, size):
        host = Host()
        model = make_model()
        optimizer = sgd(model)
        with LASGD(model, optimizer, store=client(host.port), rank=0, world_size=1, timeout_s=3):
            del host
            for _ in range(2000):
                step(model, optimizer, *DATA[:16])
                time.sleep(0.005)

    (result,) = in_threads(work, 1, may_fail=True)
    assert isinstance(result, WorkerLost)
