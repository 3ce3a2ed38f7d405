"""What the server's three sums cost beside FedAvg's one, over the same replies."""

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedcurv.strategies import FedCurv
from fedcurv.strategies.flower_private import set_message_id, task_identity
from fedcurv.strategies.replies.check import Sent
from fedcurv.strategies.wire import records
from tests.benchmarks.conftest import Tables
from tests.benchmarks.measure import compare

CLIENTS = 100
DEVICE = torch.device("cpu")


def new_model() -> nn.Module:
    return nn.Sequential(nn.Linear(1000, 1000), nn.Linear(1000, 200))


def replies(*, with_statistics: bool) -> list[Message]:
    found = []
    for client in range(CLIENTS):
        arrays = new_model().state_dict()
        metrics = MetricRecord({"num-examples": 10 + client})
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
        if with_statistics:
            precision = {name: torch.rand_like(tensor) for name, tensor in arrays.items()}
            content[records.CONFIG] = ConfigRecord({"client-id": str(client)})
            content[records.PRECISION] = records.pack_tensors(precision)
        question = Message(RecordDict(), dst_node_id=client, message_type="train")
        set_message_id(question, f"message-{client}")
        found.append(Message(content, reply_to=question))
    return found


def copies(messages: list[Message]) -> list[Message]:
    """Return messages of their own with the same arrays, since FedCurv takes its records out."""
    return [Message(RecordDict(dict(m.content)), reply_to=m) for m in messages]


@pytest.mark.benchmark_suite
@pytest.mark.parametrize("threads", [1, 2])
def test_aggregation(threads: int, benchmark, tables: Tables) -> None:
    torch.set_num_threads(threads)
    with task_identity(run_id=1, node_id=1):
        plain, full = replies(with_statistics=False), replies(with_statistics=True)
        strategy = FedCurv(strength=1.0)
        strategy._sent = Sent.of(ArrayRecord(new_model().state_dict()))
        ratios = compare(
            benchmark,
            lambda: strategy.aggregate_train(1, copies(full)),
            lambda: FedAvg().aggregate_train(1, copies(plain)),
            device=DEVICE,
            rounds=5,
        )
    tables.add(
        f"Aggregation of {CLIENTS} replies of 1.2 million parameters, in FedAvg's",
        threads=threads,
        times=ratios,
        target=1.5,
    )
