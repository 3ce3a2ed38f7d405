"""What few bits cost a client: encoding its own statistics and decoding the sums, in its round."""

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedcurv import Curvature
from fedcurv.clients import LocalTask, TrainingSettings, client_app
from fedcurv.simulations.parts.models import cnn, mlp
from fedcurv.strategies.wire.records import (
    CONFIG,
    Instruction,
    pack_instruction,
    unpack_instruction,
)
from fedcurv.strategies.wire.sums import pack_precision
from tests.benchmarks.conftest import Tables
from tests.benchmarks.measure import compare
from tests.federation import context_of, message_with

CASES = {
    # as in the results: 1437 scans at 20 clients, batches of 16
    "MLP 64-200-200-10, 72 samples, 10 epochs": (mlp, (1, 8, 8), 72, 10, 16),
    "MLP 784-200-200-10, 600 samples, 5 epochs": (mlp, (1, 28, 28), 600, 5, 16),
    "CNN with 582 thousand parameters, 600 samples, 1 epoch": (
        lambda shape, classes: cnn(shape, classes, padding=0),
        (1, 28, 28),
        600,
        1,
        32,
    ),
}


@pytest.mark.benchmark_suite
@pytest.mark.parametrize("name", CASES)
def test_codes(name: str, benchmark, tables: Tables) -> None:
    make, shape, number, epochs, batch = CASES[name]
    model = make(shape, 10)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(number, *shape, generator=generator), torch.arange(number) % 10
    settings = TrainingSettings(
        epochs=epochs, batch_size=batch, lr=0.05, fisher_kind="exact", penalty_mode="proximal"
    )
    fisher = {n: torch.rand(p.shape, generator=generator) for n, p in model.named_parameters()}
    sums = Curvature.at(model, fisher)
    theta = RecordDict({"arrays": ArrayRecord(model.state_dict())})
    instruction = Instruction(0.1, 2, 1, ["a", "b"], federation="f", sums=sums, bits=4)
    sent = RecordDict({**theta, **pack_instruction(instruction, theta)})

    def task(message, context) -> LocalTask:
        return LocalTask(model, data, settings=settings)

    app = client_app(task)

    def a_round() -> None:
        message = message_with(None)
        config = ConfigRecord(dict(sent[CONFIG]))  # in which a client notes that it took the sums
        message.content = RecordDict({**sent, CONFIG: config})
        assert not app(message, context_of(0)).has_error()

    def coding() -> None:
        unpack_instruction(sent)
        pack_precision(fisher, 4, "0", 2)

    ratios = compare(benchmark, coding, a_round, device=torch.device("cpu"), rounds=7)
    shares = ", ".join(f"{100 * share:.2f}" for share in sorted(ratios.all))
    tables.add(
        "Encoding and decoding in 4 bits, in % of a client's round",
        client=name,
        median=f"{100 * ratios.median:.2f}",
        all=shares,
        target=2,
    )
