"""A training step with the penalty, in steps without it, one thread, CPU time."""

import statistics
from functools import partial

import pytest
import torch
from torch import nn

from fedcurv import Curvature, CurvaturePenalty
from fedcurv.simulations.models import cnn
from tests.benchmarks.timing import cpu_seconds

REPEATS, STEPS = 7, 20


def some_steps(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple) -> None:
    inputs, targets = batch
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


@pytest.mark.benchmark_suite
@pytest.mark.parametrize("batch_size", [32, 10])
@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_penalised_step(mode: str, batch_size: int, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    model = cnn((1, 28, 28), 10, padding=0)
    statistics_ = {name: torch.rand_like(p) * 1e-3 for name, p in model.named_parameters()}
    penalty = CurvaturePenalty(model, Curvature.at(model, statistics_), strength=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = torch.randn(batch_size, 1, 28, 28), torch.randint(0, 10, (batch_size,))
    steps = partial(some_steps, model, optimizer, batch)
    steps()
    ratios = []
    for _ in range(REPEATS):
        plain = cpu_seconds(steps)
        handle = penalty.attach(optimizer, mode=mode)  # type: ignore[arg-type]
        ratios.append(cpu_seconds(steps) / plain)
        handle.remove()
    with capsys.disabled():
        print(
            f"\n582-thousand-parameter CNN, batch {batch_size}, {mode}: "
            f"{statistics.median(ratios):.3f} plain steps ({min(ratios):.3f} to {max(ratios):.3f})"
        )
