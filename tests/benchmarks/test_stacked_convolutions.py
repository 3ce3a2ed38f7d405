"""Why runner=batched leaves convolutions to the local runner: a step of several CNNs, both ways."""

import copy

import pytest
import torch
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from fedcurv.simulations.parts.models import cnn
from tests.benchmarks.conftest import Tables
from tests.benchmarks.measure import DEVICES, compare

SHAPE, CLASSES, LR = (1, 28, 28), 10, 0.1


@pytest.mark.benchmark_suite
@pytest.mark.parametrize(("clients", "batch"), [(8, 16), (8, 100), (32, 16)])
@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_stacked_convolutions(benchmark, tables: Tables, device, clients, batch) -> None:
    torch.manual_seed(0)
    models = [cnn(SHAPE, CLASSES, padding=0).to(device) for _ in range(clients)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=LR) for model in models]
    inputs = torch.randn(clients, batch, *SHAPE, device=device)
    targets = torch.randint(0, CLASSES, (clients, batch), device=device)

    skeleton = copy.deepcopy(models[0])
    stack = {name: v.detach() for name, v in stack_module_state(models)[0].items()}

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return cross_entropy(functional_call(skeleton, parameters, (x,)), y)

    gradients = vmap(grad(loss))

    def stacked() -> None:
        steps = gradients(stack, inputs, targets)
        for name, values in stack.items():
            values.sub_(steps[name], alpha=LR)

    def one_by_one() -> None:
        for model, optimizer, x, y in zip(models, optimizers, inputs, targets, strict=True):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()

    one_by_one(), stacked()
    for index, model in enumerate(models):  # both are the same step
        for name, values in model.named_parameters():
            torch.testing.assert_close(stack[name][index], values, rtol=1e-3, atol=1e-4)

    tables.add(
        "CNNs stacked by vmap, a step, in steps one by one",
        device=device,
        clients=clients,
        batch=batch,
        cost=compare(benchmark, stacked, one_by_one, device=device, rounds=5),
    )
