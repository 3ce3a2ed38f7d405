"""What the server's three sums cost beside FedAvg's one, over the same replies."""

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedcurv.strategies import FedCurv
from fedcurv.strategies.flower_private import set_message_id, task_identity
from fedcurv.strategies.replies.check import Sent
from fedcurv.strategies.wire.records import add_report
from fedcurv.strategies.wire.sums import pack_precision
from tests.benchmarks.conftest import Tables
from tests.benchmarks.measure import compare

CLIENTS = 100
DEVICE = torch.device("cpu")


def new_model() -> nn.Module:
    return nn.Sequential(nn.Linear(1000, 1000), nn.Linear(1000, 200))


def replies(bits: int | None = None) -> list[tuple[Message, RecordDict]]:
    """Return what clients answer to messages: with statistics in so many bits, or with none."""
    found = []
    for client in range(CLIENTS):
        arrays = new_model().state_dict()
        metrics = MetricRecord({"num-examples": 10 + client})
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
        question = Message(RecordDict(), dst_node_id=client, message_type="train")
        set_message_id(question, f"message-{client}")
        if bits is not None:
            precision = {name: torch.rand_like(tensor) for name, tensor in arrays.items()}
            record, _ = pack_precision(precision, bits, str(client), server_round=1)
            context = Context(1, client, {"client-id": str(client)}, RecordDict(), {})
            add_report(content, context, record, None, message_id=f"message-{client}")
        found.append((question, content))
    return found


def copies(replies: list[tuple[Message, RecordDict]]) -> list[Message]:
    """Return replies with the same arrays, of their own, since FedCurv takes its records out."""
    return [Message(RecordDict(dict(content)), reply_to=question) for question, content in replies]


@pytest.mark.benchmark_suite
@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("threads", [1, 2])
def test_aggregation(threads: int, bits: int, benchmark, tables: Tables) -> None:
    torch.set_num_threads(threads)
    with task_identity(run_id=1, node_id=1):
        plain, full = replies(), replies(bits)
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
        bits=bits,
        times=ratios,
        target=1.8,
    )
