"""LASGD against DistributedDataParallel and PeriodicModelAverager, with stragglers: real processes.

    make bench-lasgd                   everything: about 25 minutes
    make bench-lasgd ARGS=--quick      one repeat of the fixed straggler

Four workers train a small model on digits with Gloo on loopback. Each step sleeps up to its length,
as if a GPU computed, so that four workers fit on two cores; communication sleeps in the place where
each method communicates. DDP is given what overlaps with its backward pass: only what exceeds two
thirds of the slowest step counts. The share is of the sum of the speeds that the workers would have
alone. Test losses are computed after the run, from copies of the common model.
"""

import argparse
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.utils.data import TensorDataset

from fedcurv.lasgd import LASGD, host_store
from fedcurv.lasgd.plane import Plane

WORKERS, BATCH, STEP_S = 4, 32, 0.1
TARGET_LOSS = 0.5
# torch asks a name server for each connection's peer; where none answers, do not wait for it long
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")
FOLDER = Path("outputs/benchmarks")
PATTERNS = ("fixed", "equal", "rotating", "heavy-tailed")
COSTS_S = (0.0, 0.2, 0.8)
SYNC_EVERY = {0.0: 8, 0.2: 13, 0.8: 52}
METHODS = ("ddp", "averager", "lasgd-blocking", "lasgd")


@dataclass(frozen=True)
class Case:
    """One run."""

    method: str
    pattern: str
    cost_s: float
    steps: int  # of all workers together
    seed: int
    lr: float = 0.05
    momentum: float = 0.9
    options: tuple[tuple[str, Any], ...] = ()  # more of LASGD's settings


@dataclass
class Trace:
    """What one worker saw; times since the run began."""

    steps: int = 0
    computing_s: float = 0.0
    wall_s: float = 0.0
    in_flight: float = 0.0
    spans: Any = None  # (begin, end) of each step's computation
    models: Any = None  # (time, steps of all workers in it, weights)


def length_of_step(pattern: str, rank: int, elapsed: float, random_: random.Random) -> float:
    slow = {
        "fixed": rank == 3,
        "equal": False,
        "rotating": int(elapsed / 2.5) % WORKERS == rank,
        "heavy-tailed": False,
    }[pattern]
    if pattern == "heavy-tailed" and random_.random() < 0.05:
        return 10 * STEP_S
    return 4 * STEP_S if slow else STEP_S


def slowest_step(pattern: str) -> float:
    return STEP_S if pattern in ("equal", "heavy-tailed") else 4 * STEP_S


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Noisy digits: harder than the plain ones, so that some hundred steps are needed."""
    pixels, labels = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(labels), generator=generator)
    inputs = torch.tensor(pixels / 16, dtype=torch.float32)[order]
    inputs += 0.3 * torch.randn(inputs.shape, generator=generator)
    targets = torch.tensor(labels)[order]
    return TensorDataset(inputs[:1400], targets[:1400]), TensorDataset(
        inputs[1400:], targets[1400:]
    )


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


class Worker:
    """A step of a given length, and the trace."""

    def __init__(self, case: Case, rank: int) -> None:
        self.case, self.rank = case, rank
        self.model = make_model(case.seed)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=case.lr, momentum=case.momentum
        )
        self.random = random.Random(100 * case.seed + rank)
        self.trace = Trace(spans=[], models=[])
        self.began = time.monotonic()

    def now(self) -> float:
        return time.monotonic() - self.began

    def compute(self, model: nn.Module, batches: Iterator[Any]) -> None:
        """Forward, lengthened, and backward on the next batch."""
        begin = self.now()
        batch = next(batches)
        length = length_of_step(self.case.pattern, self.rank, begin, self.random)
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        time.sleep(max(0.0, length - (self.now() - begin)))
        self.trace.computing_s += self.now() - begin
        self.trace.spans.append((begin, self.now()))
        loss.backward()
        self.trace.steps += 1

    def keep(self, steps: int, weights: dict[str, Tensor]) -> None:
        if self.rank == 0:
            copy = {name: value.detach().clone() for name, value in weights.items()}
            self.trace.models.append((self.now(), steps, copy))


def own_batches(dataset: TensorDataset, rank: int, seed: int) -> Iterator[Any]:
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        parts = torch.randperm(len(dataset), generator=generator).split(BATCH)
        for part in parts[rank : len(parts) // WORKERS * WORKERS : WORKERS]:
            yield dataset[part]
        epoch += 1


def run_ddp(worker: Worker, store: Any) -> None:
    case, rank = worker.case, worker.rank
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORKERS)
    model = nn.parallel.DistributedDataParallel(worker.model)
    batches = own_batches(digits()[0], rank, case.seed)
    exposed_s = max(0.0, case.cost_s - 2 / 3 * slowest_step(case.pattern))
    worker.began = time.monotonic()
    for step in range(case.steps // WORKERS):
        worker.compute(model, batches)
        time.sleep(exposed_s)
        worker.optimizer.step()
        worker.keep(WORKERS * (step + 1), worker.model.state_dict())
    worker.trace.wall_s = worker.now()
    dist.destroy_process_group()


def run_averager(worker: Worker, store: Any) -> None:
    case, rank, period = worker.case, worker.rank, 8
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORKERS)
    averager = PeriodicModelAverager(period=period, warmup_steps=1)
    batches = own_batches(digits()[0], rank, case.seed)
    worker.began = time.monotonic()
    for step in range(case.steps // WORKERS):
        worker.compute(worker.model, batches)
        worker.optimizer.step()
        averages = step >= 1 and (step - 1) % period == 0
        averager.average_parameters(worker.model.parameters())
        if averages:
            time.sleep(case.cost_s)
            worker.keep(WORKERS * (step + 1), worker.model.state_dict())
    worker.trace.wall_s = worker.now()
    dist.destroy_process_group()


def run_lasgd(worker: Worker, store: Any) -> None:
    case, rank = worker.case, worker.rank
    original = Plane._sum

    def slow(self: Plane, tensor: Tensor, *arguments: Any) -> None:
        # of all in floating point; for fewer bytes less
        share = tensor.numel() * tensor.element_size() / self.flat.nbytes
        time.sleep(case.cost_s * share)
        original(self, tensor, *arguments)

    training, _ = digits()
    lasgd = LASGD(
        worker.model,
        worker.optimizer,
        # overlapped: as often as the network gives for free, a round at most every 2 costs
        sync_every=SYNC_EVERY[case.cost_s] if case.method == "lasgd" else 52,
        overlap=case.method == "lasgd",
        store=store,
        rank=rank,
        world_size=WORKERS,
        **dict(case.options),
    )
    Plane._sum = slow  # type: ignore[method-assign]
    with lasgd:
        loader = lasgd.loader(training, BATCH, seed=case.seed)
        batches = (batch for _ in range(10**6) for batch in loader)
        worker.began = time.monotonic()
        rounds, budget_s = 0, case.steps
        while worker.now() < budget_s:
            worker.compute(worker.model, batches)
            worker.optimizer.step()
            stats = lasgd.stats
            if stats.rounds > rounds:
                rounds = stats.rounds
                worker.keep(stats.steps_in_rounds, lasgd.state_dict()["model"])
        worker.trace.wall_s = worker.now()
    worker.trace.in_flight = lasgd.stats.steps_in_flight


RUNS = {
    "ddp": run_ddp,
    "averager": run_averager,
    "lasgd": run_lasgd,
    "lasgd-blocking": run_lasgd,
}


def work(rank: int, port: int, case: Case, queue: Any) -> None:
    torch.set_num_threads(1)
    store = dist.PrefixStore("run", dist.TCPStore("127.0.0.1", port, is_master=False))
    worker = Worker(case, rank)
    RUNS[case.method](worker, store)
    models = [(t, n, {k: v.numpy() for k, v in m.items()}) for t, n, m in worker.trace.models]
    worker.trace.models = models
    queue.put((rank, worker.trace))


def run(case: Case) -> list[Trace]:
    """Return the workers' traces."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fedcurv.lasgd", "sklearn.datasets", "torch.optim"])
    server = host_store()
    queue = context.Queue()
    processes = [
        context.Process(target=work, args=(rank, server.port, case, queue))
        for rank in range(WORKERS)
    ]
    for process in processes:
        process.start()
    traces = dict(queue.get(timeout=300) for _ in processes)
    for process in processes:
        process.join(60)
    return [traces[rank] for rank in range(WORKERS)]


@dataclass(frozen=True)
class Result:
    """One run's figures: times in seconds, None where the target was not reached."""

    case: Case
    share: float
    seconds_to_target: float | None
    steps_to_target: int | None
    in_flight: float
    curve: list[tuple[float, float]]


def judge(case: Case, traces: list[Trace]) -> Result:
    """Compute what the run was worth."""
    pace = sum(t.steps / t.wall_s for t in traces)
    limit = sum(t.steps / t.computing_s for t in traces)
    model, (inputs, labels) = make_model(0), digits()[1].tensors
    curve, reached = [], None
    for when, steps, weights in traces[0].models:
        model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
        with torch.no_grad():
            loss = nn.functional.cross_entropy(model(inputs), labels).item()
        curve.append((when, loss))
        if reached is None and loss <= TARGET_LOSS:
            reached = (when, steps)
    in_flight = max(t.in_flight for t in traces)
    return Result(case, pace / limit, *(reached or (None, None)), in_flight, curve)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="LASGD with stragglers")
    parser.add_argument("--quick", action="store_true", help="one repeat, fixed straggler only")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--patterns", nargs="+", default=PATTERNS, choices=PATTERNS)
    options = parser.parse_args()
    results, timelines = [], {}
    for pattern in PATTERNS[:1] if options.quick else options.patterns:
        for cost_s in COSTS_S:
            # only the fixed straggler is trained to the target, three times
            repeats = 3 if pattern == "fixed" and not options.quick else 1
            for seed in range(repeats):
                for method in options.methods:
                    case = Case(method, pattern, cost_s, amount(method, pattern), seed)
                    traces = run(case)
                    result = judge(case, traces)
                    print(
                        f"{method:15} {pattern:13} {cost_s:.1f} s  share {result.share:.3f}  "
                        f"to target: {result.seconds_to_target} s, {result.steps_to_target} steps",
                        flush=True,
                    )
                    results.append(result)
                    if cost_s == 0.2 and pattern == "fixed":
                        timelines[method] = traces
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "lasgd.md").write_text(table(results))
    figure(results, timelines).savefig(FOLDER / "lasgd.png", dpi=150)
    print(table(results))


def amount(method: str, pattern: str) -> int:
    """Steps of all workers for what waits, seconds for what does not."""
    if method.startswith("lasgd"):
        return 15 if pattern == "fixed" else 10
    return 320 if pattern == "fixed" else 100


def median(values: list[Any]) -> str:
    values = [v for v in values if v is not None]
    return f"{statistics.median(values):.3g}" if values else "not reached"


def table(results: list[Result]) -> str:
    """Return the figures as Markdown: medians."""
    lines = [
        f"| steps | communication | method | share of the sum of speeds | seconds to loss "
        f"{TARGET_LOSS} | samples to it | steps in flight |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for pattern in PATTERNS:
        for cost_s in COSTS_S:
            for method in METHODS:
                cell = [
                    r
                    for r in results
                    if (r.case.pattern, r.case.cost_s, r.case.method) == (pattern, cost_s, method)
                ]
                if cell:
                    samples = [r.steps_to_target and BATCH * r.steps_to_target for r in cell]
                    lines.append(
                        f"| {pattern} | {cost_s} s | {method} | "
                        f"{median([r.share for r in cell])} | "
                        f"{median([r.seconds_to_target for r in cell])} | {median(samples)} | "
                        f"{median([r.in_flight for r in cell])} |"
                    )
    return "\n".join(lines) + "\n"


def figure(results: list[Result], timelines: dict[str, list[Trace]]) -> Figure:
    """Return losses over time, and who computed when."""
    picture = Figure(figsize=(11, 8), layout="constrained")
    losses, *lines = picture.subplots(1 + len(timelines), 1)
    for result in results:
        if result.case.pattern == "fixed" and result.case.seed == 0 and result.case.cost_s == 0.2:
            losses.plot(*zip(*result.curve, strict=True), label=result.case.method)
    losses.axhline(TARGET_LOSS, color="grey", linewidth=0.5)
    losses.set(xlabel="seconds", ylabel="test loss", yscale="log")
    losses.legend()
    for axes, (method, traces) in zip(lines, timelines.items(), strict=True):
        for rank, trace in enumerate(traces):
            spans = [(begin, end - begin) for begin, end in trace.spans]
            axes.broken_barh(spans, (rank - 0.4, 0.8), edgecolor="white", linewidth=0.5)
        for when, *_ in traces[0].models:
            axes.axvline(when, color="black", linewidth=0.6)
        axes.set(ylabel=method, xlim=(0, 5), yticks=range(WORKERS))
    if lines:
        lines[-1].set(xlabel="seconds: bars are steps of a worker, lines are landed rounds")
    return picture


if __name__ == "__main__":
    main()
