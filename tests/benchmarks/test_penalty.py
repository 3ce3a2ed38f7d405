"""A training step with the penalty, in steps without it."""

import statistics

import pytest
import torch
from torch import nn

from fedcurv import Curvature, CurvaturePenalty
from tests.benchmarks.cases import CASES
from tests.benchmarks.conftest import Tables
from tests.benchmarks.measure import DEVICES, seconds

STEPS = 150
TARGETS = {32: 1.03, 10: 1.06}


@pytest.mark.benchmark_suite
@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("batch_size", TARGETS)
@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_penalised_step(
    mode: str, batch_size: int, device: torch.device, benchmark, tables: Tables
) -> None:
    name = "CNN, 582 thousand"
    model = CASES[name].make().to(device)
    fisher = {name: torch.rand_like(p) * 1e-3 for name, p in model.named_parameters()}
    penalty = CurvaturePenalty(model, Curvature.at(model, fisher), strength=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    (inputs, targets), *_ = CASES[name].batches(device)
    inputs, targets = inputs[:batch_size], targets[:batch_size]
    taken: dict[bool, list[float]] = {False: [], True: []}

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    def both() -> None:
        taken[False].append(seconds(step, device))
        handle = penalty.attach(optimizer, mode=mode)  # type: ignore[arg-type]
        taken[True].append(seconds(step, device))
        handle.remove()

    benchmark.pedantic(both, rounds=STEPS, warmup_rounds=10)
    plain, penalised = (statistics.median(taken[key][10:]) for key in (False, True))
    benchmark.extra_info["ratio"] = penalised / plain
    tables.add(
        "Penalty, in plain training steps",
        model=name,
        batch=batch_size,
        device=device,
        mode=mode,
        steps=f"{penalised / plain:.3f}",
        target=TARGETS[batch_size],
    )
