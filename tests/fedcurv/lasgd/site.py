"""Workers for tests: threads of this process with a Gloo group of their own each, or processes."""

import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fedcurv.lasgd import LASGD, host_store
from tests.forks import forks

LIMIT_S = 90


class Host:
    """Holds the store, as a launcher does: outside of every worker."""

    def __init__(self) -> None:
        self.server = host_store()

    @property
    def port(self) -> int:
        return self.server.port


def client(port: int) -> dist.Store:
    server = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=20))
    return dist.PrefixStore("training", server)


def in_threads(
    work: Callable[..., Any], number: int, *arguments: Any, may_fail: bool = False
) -> list[Any]:
    """Run work(rank, store, world_size, *arguments) in threads; return results or exceptions."""
    host, results = Host(), [None] * number
    torch.set_num_threads(1)

    def run(rank: int) -> None:
        try:
            results[rank] = work(rank, client(host.port), number, *arguments)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(number)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LIMIT_S
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "a worker hangs"
    for result in results:
        if isinstance(result, Exception) and not may_fail:
            raise result
    return results


def steps_in_rounds(
    lasgd: LASGD,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: torch.Tensor,
    rounds: int,
    meet: threading.Barrier,
) -> None:
    """Take a step in each round, which all workers of the barrier begin and end together."""
    for _ in range(rounds):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
        meet.wait(30)
        lasgd.synchronize()
        meet.wait(30)


class Processes:
    """Workers that can be killed and frozen; results and errors come by file."""

    def __init__(self, folder: Path) -> None:
        self.host, self.folder = Host(), folder
        self._context = forks()
        self.workers: list[Any] = []

    def start(self, work: Callable[..., Any], *arguments: Any) -> int:
        """Run work(rank, port, folder, *arguments) in a process; return its rank."""
        rank = len(self.workers)
        process = self._context.Process(
            target=_in_process, args=(work, rank, self.host.port, self.folder, arguments)
        )
        process.start()
        self.workers.append(process)
        return rank

    def wait_for(self, name: str) -> None:
        """Wait until a worker has said something."""
        deadline = time.monotonic() + LIMIT_S
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline, f"no {name}"
            time.sleep(0.01)

    def signal(self, rank: int, number: int) -> None:
        os.kill(self.workers[rank].pid, number)

    def result(self, rank: int) -> Any:
        """Return what the worker returned or raised; None if it was killed."""
        self.workers[rank].join(LIMIT_S)
        assert self.workers[rank].exitcode is not None, f"worker {rank} hangs"
        path = self.folder / f"result-{rank}"
        return pickle.loads(path.read_bytes()) if path.exists() else None

    def close(self) -> None:
        for process in self.workers:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join()


def say(folder: Path, name: str) -> None:
    (folder / name).touch()


def _in_process(work, rank, port, folder, arguments) -> None:
    torch.set_num_threads(1)
    try:
        result = work(rank, port, folder, *arguments)
    except Exception as error:
        (folder / f"trace-{rank}").write_text(traceback.format_exc())
        result = error
    temporary = folder / f"part-{rank}"
    temporary.write_bytes(pickle.dumps(result))
    temporary.rename(folder / f"result-{rank}")


def block(model, optimizer, store, rank, size, **options):
    options = {"sync_every": 4, "timeout_s": 20.0, **options}
    return LASGD(model, optimizer, store=store, rank=rank, world_size=size, **options)


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), lr=0.05, **options)


def steps(model, optimizer, number=12, width=3):
    for _ in range(number):
        optimizer.zero_grad()
        model(torch.randn(8, width)).square().mean().backward()
        optimizer.step()


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_bits(states):
    one, *others = states
    for other in others:
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), (one, other)
