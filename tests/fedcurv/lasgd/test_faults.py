"""Workers, each a process, that are killed or frozen at each phase of a round."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fedcurv.lasgd import LASGD, WorkerLost
from fedcurv.lasgd.control import Control
from fedcurv.lasgd.plane import Plane
from fedcurv.lasgd.replica import Replica
from tests.fedcurv.lasgd.site import Processes, client, say

TIMEOUT_S = 8.0
STEPS = 60
FATAL_ROUND = 3


def stop_me(how):
    os.kill(os.getpid(), {"killed": signal.SIGKILL, "frozen": signal.SIGSTOP}[how])


def fail_in(phase, how, folder, rank):
    """Let this process fail in a phase of the fatal round."""
    calls = {"count": 0}

    def before(owner, name, after=False, only=lambda *a: True):
        original = getattr(owner, name)

        def patched(self, *arguments, **options):
            if only(*arguments):
                calls["count"] += 1
            fatal = calls["count"] == FATAL_ROUND and only(*arguments)
            if fatal and not after:
                say(folder, f"failed-{rank}")
                stop_me(how)
            result = original(self, *arguments, **options)
            if fatal and after:
                say(folder, f"failed-{rank}")
                stop_me(how)
            return result

        setattr(owner, name, patched)

    if phase == "before the snapshot":
        before(Replica, "snapshot")
    elif phase == "before the sum":
        before(Plane, "all_reduce")
    elif phase == "in the sum":
        slow_down(Plane, "_sum", 0.3)
        before(Plane, "_sum")
    elif phase == "after the sum":
        before(Plane, "all_reduce", after=True)
    elif phase == "after its acknowledgement":
        before(Control, "commit", after=True, only=lambda *a: a[1].startswith("round"))
    elif phase == "before it lands":
        before(Replica, "land")
    elif phase == "after it has landed":
        before(Replica, "land", after=True)
    else:
        raise AssertionError(phase)


PHASES = [
    "before the snapshot",
    "before the sum",
    "in the sum",
    "after the sum",
    "after its acknowledgement",
    "before it lands",
    "after it has landed",
]


def slow_down(owner, name, seconds):
    original = getattr(owner, name)

    def patched(self, *arguments):
        time.sleep(seconds)
        return original(self, *arguments)

    setattr(owner, name, patched)


def train(rank, port, folder, size, overlap, faults=None, steps=STEPS):
    """Return the weights, the figures, and how many local steps there were."""
    if faults and rank in faults:
        fail_in(*faults[rank], folder, rank)
    torch.manual_seed(rank)
    model = nn.Linear(4, 3).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs, labels = torch.randn(16, 4).double(), torch.arange(16) % 3
    options = {"overlap": overlap, "timeout_s": TIMEOUT_S, "sync_every": 2 * size}
    with LASGD(
        model, optimizer, store=client(port), rank=rank, world_size=size, **options
    ) as lasgd:
        say(folder, f"begun-{rank}")
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            time.sleep(0.01)
    return model.weight.detach().numpy(), lasgd.stats


@pytest.fixture
def processes(tmp_path):
    workers = Processes(tmp_path)
    yield workers
    workers.close()


def check_survivors(results, lost):
    """All have the same bits, know who was lost, and no step of theirs is missing or doubled."""
    weights, stats = zip(*results, strict=True)
    assert all((w == weights[0]).all() for w in weights)
    for s in stats:
        assert sorted(loss.worker for loss in s.lost) == lost
        assert all(loss.seconds > 0 for loss in s.lost)
    assert stats[0].steps_in_rounds >= sum(s.steps for s in stats)
    return stats


# every pair of a phase, a failure and a way to train is there
CASES = [
    (phase, how, (index % 2 == 0) == (how == "killed"))
    for index, phase in enumerate(PHASES)
    for how in ("killed", "frozen")
]


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "how", "overlap"), CASES)
def test_survivors_go_on(phase, how, overlap, processes):
    number, victim = 3, 1
    for _ in range(number):
        processes.start(train, number, overlap, {victim: (phase, how)})
    processes.wait_for(f"failed-{victim}")
    results = [processes.result(rank) for rank in (0, 2)]
    stats = check_survivors(results, [victim])
    assert all(s.steps == STEPS for s in stats)
    # of the lost worker what had landed counts, and nothing else
    assert 2 * STEPS <= stats[0].steps_in_rounds <= 3 * STEPS
    assert stats[0].steps_in_rounds == stats[1].steps_in_rounds
    if how == "frozen":
        processes.signal(victim, signal.SIGCONT)
        error = processes.result(victim)
        assert isinstance(error, WorkerLost)
        assert "worker 1 was silent for so long" in str(error)


@pytest.mark.slow
def test_a_process_group_is_met_in_and_left_alone(processes):
    """Only two of its three members take part; it works afterwards."""
    for _ in range(3):
        processes.start(train_in_a_group)
    one, third, other = (processes.result(rank) for rank in range(3))
    assert one[0] == other[0] == 2 * 20
    assert (one[1] == other[1]).all()
    assert one[2] == other[2] == third == 3


def train_in_a_group(rank, port, folder):
    dist.init_process_group("gloo", store=client(port), rank=rank, world_size=3)
    group = dist.new_group([0, 2])
    total = torch.ones(1)
    if rank != 1:
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with LASGD(model, optimizer, sync_every=4, process_group=group, timeout_s=30) as lasgd:
            for _ in range(20):
                model(torch.randn(8, 4)).square().mean().backward()
                optimizer.step()
        result = lasgd.stats.steps_in_rounds, model.weight.detach().numpy()
    dist.all_reduce(total)
    dist.destroy_process_group()
    return int(total) if rank == 1 else (*result, int(total))


@pytest.mark.slow
def test_two_lost_at_once_and_the_last_goes_on_alone(processes):
    for _ in range(3):
        processes.start(
            train, 3, True, {0: ("in the sum", "killed"), 2: ("before the sum", "killed")}
        )
    weights, stats = processes.result(1)
    check_survivors([(weights, stats)], [0, 2])
    assert stats.steps == STEPS


@pytest.mark.slow
def test_a_second_is_lost_while_the_survivors_meet(processes):
    for _ in range(4):
        processes.start(train_and_fail_in_meeting, 4)
    results = [processes.result(rank) for rank in (0, 3)]
    check_survivors(results, [1, 2])


def train_and_fail_in_meeting(rank, port, folder, size):
    if rank == 2:
        original = Control.survivors

        def patched(self, generation):
            stop_me("killed")
            return original(self, generation)

        Control.survivors = patched
    return train(rank, port, folder, size, True, {1: ("before the sum", "killed")})


@pytest.mark.slow
def test_a_worker_that_is_killed_as_it_waits_for_the_others_to_finish(processes):
    for _ in range(3):
        processes.start(train_unequally, 3)
    processes.wait_for("begun-0")
    time.sleep(1.0)
    processes.signal(0, signal.SIGKILL)
    results = [processes.result(rank) for rank in (1, 2)]
    stats = check_survivors(results, [0])
    # it had nothing left to give
    assert stats[0].steps_in_rounds == 3 + 2 * 3 * STEPS


def train_unequally(rank, port, folder, size):
    return train(rank, port, folder, size, True, steps=3 if rank == 0 else 3 * STEPS)


@pytest.mark.slow
def test_a_new_process_takes_the_place_of_a_killed_one(processes):
    for _ in range(2):
        processes.start(train, 2, True, {1: ("in the sum", "killed")}, 6 * STEPS)
    processes.wait_for("failed-1")
    processes.start(join)
    (weights, stats), (others, new) = processes.result(0), processes.result(2)
    assert (weights == others).all()
    assert [loss.worker for loss in stats.lost] == [1]
    assert new.steps > 0
    assert stats.steps_in_rounds >= stats.steps + new.steps


def join(rank, port, folder):
    model = nn.Linear(4, 3).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs, labels = torch.randn(16, 4).double(), torch.arange(16) % 3
    with LASGD(
        model, optimizer, store=client(port), join=True, timeout_s=TIMEOUT_S, sync_every=4
    ) as lasgd:
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            time.sleep(0.01)
    return model.weight.detach().numpy(), lasgd.stats
