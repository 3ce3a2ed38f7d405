"""How much faster runner=batched is than runner=local: 96 clients, all in a round, wall-clock time.

Both sides run in one process, alternating. The local runner trains one client after the other on
one thread, as it must for its bits; the batched runner has every core.
"""

import os
from collections.abc import Iterator

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from fedcurv.clients import LocalTask, TrainingSettings, client_app
from fedcurv.global_state import num_threads
from fedcurv.simulations.parts.models import mlp
from fedcurv.simulations.runners.batched.grid import BatchedGrid
from fedcurv.simulations.runners.local import LocalGrid
from fedcurv.strategies import start
from tests.benchmarks.conftest import Tables
from tests.benchmarks.measure import DEVICES, compare
from tests.federation import served_on

CLIENTS, SAMPLES, CLASSES = 96, 625, 10
# the paper's 50 epochs would take minutes on a CPU, and so would small batches
CASES = [
    *((device, 5, batch) for device in DEVICES for batch in (10, 16, 32, 256)),
    *((device, 50, 256) for device in DEVICES if device.type == "cuda"),
]


@pytest.fixture(autouse=True)
def all_cores() -> Iterator[None]:
    with num_threads(max(2, os.cpu_count() or 1)):
        yield


@pytest.mark.benchmark_suite
@pytest.mark.parametrize("side", [8, 28])
@pytest.mark.parametrize(("device", "epochs", "batch"), CASES, ids=str)
def test_speed_of_the_batched_runner(
    benchmark, tables: Tables, device, epochs, batch, side
) -> None:
    shape = (1, side, side)
    settings = TrainingSettings(epochs=epochs, batch_size=batch, lr=0.1, device=str(device))
    data = []
    for client in range(CLIENTS):
        generator = torch.Generator().manual_seed(client)
        inputs = torch.randn(SAMPLES, *shape, generator=generator)
        data.append((inputs, torch.randint(0, CLASSES, (SAMPLES,), generator=generator)))

    def make_task(message: object, context: Context) -> LocalTask:
        client = int(context.node_config["partition-id"])
        return LocalTask(mlp(shape, CLASSES), data[client], settings=settings)

    app = client_app(make_task)

    def serve(grid: Grid) -> Result:
        arrays = ArrayRecord(mlp(shape, CLASSES).state_dict())
        strategy = FedAvg(fraction_evaluate=0.0)
        return start(strategy, grid, arrays, num_rounds=1, seed=0, train_config=ConfigRecord())

    def local() -> Result:
        return served_on(LocalGrid(app, CLIENTS), serve)

    def together() -> Result:
        return served_on(BatchedGrid(app, make_task, CLIENTS), serve)

    times_as_fast = compare(
        benchmark, local, together, device=device, rounds=3 if epochs == 5 else 1
    )
    tables.add(
        f"runner=batched, times as fast as runner=local: {CLIENTS} clients",
        device=device,
        epochs=epochs,
        model=f"{side * side}-200-200-10",
        batch=batch,
        times=times_as_fast,
        wanted="3 on a CPU, 20 on a GPU",
    )
