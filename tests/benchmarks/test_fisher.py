"""The Fisher diagonal in plain training epochs over the same samples, one thread, CPU time.

Ours against per-sample gradients by vmap, which is exact too, in one process and alternating.
"""

import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedcurv import fisher_diagonal
from fedcurv.simulations.models import cnn, mlp, resnet18
from tests.benchmarks.timing import cpu_seconds

REPEATS = 5
MNIST, CIFAR = (1, 28, 28), (3, 32, 32)

# name: model, shape of a picture, samples, batch size
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], int, int]] = {
    "MLP 784-200-200-10": (lambda: mlp(MNIST, 10), MNIST, 600, 32),
    "CNN, 582 thousand": (lambda: cnn(MNIST, 10, padding=0), MNIST, 600, 32),
    "CNN, 1.66 million": (lambda: cnn(MNIST, 10), MNIST, 600, 32),
    "ResNet-18, GroupNorm": (lambda: resnet18(CIFAR, 10), CIFAR, 200, 50),
}

Batches = list[tuple[Tensor, Tensor]]


def epoch(model: nn.Module, batches: Batches) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train()
    for inputs, targets in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def by_vmap(model: nn.Module, batches: Batches) -> dict[str, Tensor]:
    model.eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, parameters, (x[None],)), y[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for inputs, targets in batches:
        for name, gradient in gradients(parameters, inputs, targets).items():
            total[name] += gradient.square().sum(0)
    return total


@pytest.mark.benchmark_suite
@pytest.mark.parametrize("name", CASES)
def test_fisher_in_training_epochs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    make, shape, number, batch_size = CASES[name]
    model = make()
    inputs, targets = torch.randn(number, *shape), torch.randint(0, 10, (number,))
    batches = list(zip(inputs.split(batch_size), targets.split(batch_size), strict=True))
    fisher_diagonal(model, batches[:1])
    ours, naive = [], []
    for _ in range(REPEATS):
        plain = cpu_seconds(lambda: epoch(model, batches))
        ours.append(cpu_seconds(lambda: fisher_diagonal(model, batches)) / plain)
        naive.append(cpu_seconds(lambda: by_vmap(model, batches)) / plain)
    with capsys.disabled():
        print(
            f"\n{name}, batch {batch_size}: {statistics.median(ours):.2f} epochs "
            f"({min(ours):.2f} to {max(ours):.2f}); by vmap {statistics.median(naive):.2f}"
        )
