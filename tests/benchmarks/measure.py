"""Ratios in one process: one thing and what it is compared with, alternating."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], object]

DEVICES = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


@dataclass(frozen=True)
class Ratios:
    """How many times as long as the other thing took, round by round."""

    all: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.all)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({min(self.all):.2f} to {max(self.all):.2f})"


def seconds(run: Run, device: torch.device) -> float:
    """Return how long it takes: CPU time, which other processes disturb least, of one thread.

    With several threads, and on a GPU, it is the time that passes until all is done.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    clock = time.perf_counter
    if device.type == "cpu" and torch.get_num_threads() == 1:
        clock = time.process_time
    began = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began


def compare(
    benchmark: BenchmarkFixture, run: Run, other: Run, *, device: torch.device, rounds: int
) -> Ratios:
    """Run the other thing, then the one that is measured, and so on, each once before all."""
    run(), other()
    taken: list[float] = []
    ratios: list[float] = []

    def before() -> None:
        taken.append(seconds(other, device))

    def measured() -> None:
        ratios.append(seconds(run, device) / taken[-1])

    benchmark.pedantic(measured, setup=before, rounds=rounds)
    result = Ratios(ratios)
    benchmark.extra_info["ratio"] = result.median
    return result


def peak_bytes(run: Run, device: torch.device) -> int:
    """Return the most memory that torch held at a time beyond what it held before."""
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    held = peak = 0
    events = recorded.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
