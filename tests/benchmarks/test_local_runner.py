"""What runner=local adds to a plain PyTorch loop over the same client work.

Both sides run in one process, alternating, and CPU time is compared: 100 clients, 10 a round, the
582-thousand-parameter CNN on 28x28 pictures, 600 samples a client, batch size 32, one epoch.
"""

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result
from torch import nn

from fedcurv.clients import LocalTask, TrainingSettings, client_app
from fedcurv.simulations.parts.models import cnn
from fedcurv.simulations.runners.local import LocalGrid
from fedcurv.strategies import start
from tests.benchmarks.conftest import Tables
from tests.benchmarks.measure import compare
from tests.federation import served_on

CLIENTS, SELECTED, ROUNDS, SAMPLES, BATCH = 100, 10, 1, 600, 32
SHAPE, CLASSES, LR = (1, 28, 28), 10, 0.1


def samples(client: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(client)
    inputs = torch.randn(SAMPLES, *SHAPE, generator=generator)
    return inputs, torch.randint(0, CLASSES, (SAMPLES,), generator=generator)


DATA = [samples(client) for client in range(SELECTED)]


def plain_loop() -> None:
    """Average by hand what the same clients train by hand."""
    model = cnn(SHAPE, CLASSES, padding=0)
    theta = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(ROUNDS):
        total = {name: torch.zeros_like(tensor) for name, tensor in theta.items()}
        for inputs, targets in DATA:
            model.load_state_dict(theta)
            optimizer = torch.optim.SGD(model.parameters(), lr=LR)
            model.train()
            for indices in torch.randperm(SAMPLES).split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs[indices]), targets[indices]).backward()
                optimizer.step()
            for name, tensor in model.state_dict().items():
                total[name] += tensor / SELECTED
        theta = total


def make_task(message: object, context: Context) -> LocalTask:
    client = int(context.node_config["partition-id"]) % SELECTED
    settings = TrainingSettings(batch_size=BATCH, lr=LR)
    return LocalTask(cnn(SHAPE, CLASSES, padding=0), DATA[client], settings=settings)


def serve(grid: Grid) -> Result:
    arrays = ArrayRecord(cnn(SHAPE, CLASSES, padding=0).state_dict())
    strategy = FedAvg(fraction_train=SELECTED / CLIENTS, fraction_evaluate=0.0)
    return start(strategy, grid, arrays, num_rounds=ROUNDS, seed=0, train_config=ConfigRecord())


def local_runner() -> Result:
    return served_on(LocalGrid(client_app(make_task), CLIENTS), serve)


@pytest.mark.benchmark_suite
def test_overhead_of_the_local_runner(benchmark, tables: Tables) -> None:
    ratios = compare(benchmark, local_runner, plain_loop, device=torch.device("cpu"), rounds=5)
    tables.add(
        "runner=local, in plain loops over the same clients",
        clients=CLIENTS,
        a_round=SELECTED,
        times=ratios,
        target=1.05,
    )
