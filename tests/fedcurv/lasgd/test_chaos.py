"""Workers, each a process, that are killed, stopped and continued at moments drawn at random.

Whatever happens to the others, who is left ends with the same bits, and no step of theirs is lost
or counted twice. The seed decides who is hit, how and when.
"""

import random
import signal
import time

import pytest
import torch
from torch import nn

from fedcurv.lasgd import LASGD, WorkerLost
from tests.fedcurv.lasgd.site import Processes, client, say

pytestmark = pytest.mark.slow

WORKERS, STEPS, TIMEOUT_S = 4, 150, 4.0
SETTINGS = {
    "plain": {},
    "outer": {"outer": "nesterov", "outer_lr": 0.7, "outer_momentum": 0.6},
    "few bits": {"compression": "int8"},
    "both": {"outer": "momentum", "outer_momentum": 0.5, "compression": "int8"},
}


def train(rank, port, folder, options):
    """Return the weights, the state's other parts and the figures."""
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    inputs, labels = torch.randn(16, 4), torch.arange(16) % 3
    options = {"sync_every": 2 * WORKERS, "timeout_s": TIMEOUT_S, **options}
    with LASGD(
        model, optimizer, store=client(port), rank=rank, world_size=WORKERS, **options
    ) as lasgd:
        say(folder, f"begun-{rank}")
        for _ in range(STEPS):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            time.sleep(0.01)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    velocity = {n: v.numpy() for n, v in lasgd.state_dict().get("outer", {}).items()}
    return weights, velocity, lasgd.stats


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("settings", SETTINGS)
def test_who_is_left_ends_with_the_same_bits(settings, seed, tmp_path):
    draws, processes = random.Random(seed), Processes(tmp_path)
    try:
        for _ in range(WORKERS):
            processes.start(train, SETTINGS[settings])
        for rank in range(WORKERS):
            processes.wait_for(f"begun-{rank}")
        # worker 0 is spared, so that somebody is left; short stops wake up in time
        killed, stopped, paused = draws.sample(range(1, WORKERS), 3)
        blows = [
            (draws.uniform(0.0, 1.5), killed, signal.SIGKILL),
            (draws.uniform(0.0, 1.5), stopped, signal.SIGSTOP),
            *_pauses(draws, paused),
        ]
        began = time.monotonic()
        for moment, rank, number in sorted(blows):
            time.sleep(max(0.0, began + moment - time.monotonic()))
            if processes.workers[rank].is_alive():
                processes.signal(rank, number)
        first = processes.result(0)
        if processes.workers[stopped].is_alive():
            processes.signal(stopped, signal.SIGCONT)
        results = {rank: processes.result(rank) for rank in range(WORKERS)}
    finally:
        processes.close()
    check(first, results, killed)


def _pauses(draws, rank):
    moment, blows = 0.0, []
    for _ in range(3):
        moment += draws.uniform(0.05, 0.5)
        blows.append((moment, rank, signal.SIGSTOP))
        moment += draws.uniform(0.01, 0.4)
        blows.append((moment, rank, signal.SIGCONT))
    return blows


def check(first, results, killed):
    """Who came to the end has the first's bits; who was taken for lost says so."""
    weights, velocity, stats = first
    left = {rank: r for rank, r in results.items() if isinstance(r, tuple)}
    for rank, result in results.items():
        assert rank in left or result is None or isinstance(result, WorkerLost), (rank, result)
    for others, theirs, seen in left.values():
        assert all((others[name] == weights[name]).all() for name in weights)
        assert all((theirs[name] == velocity[name]).all() for name in velocity)
        assert seen.steps == STEPS
        assert seen.steps_in_rounds == stats.steps_in_rounds
    lost = {one.worker for one in stats.lost}
    assert not lost & set(left)
    # one that is killed as it ends has had its say
    assert results[killed] is not None or killed in lost
    assert len(left) * STEPS <= stats.steps_in_rounds <= WORKERS * STEPS
