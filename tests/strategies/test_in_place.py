"""Replies that a strategy reads without copies, and those that it gets as they came."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian

from fedcurv.strategies.flower_private import task_identity
from fedcurv.strategies.replies.in_place import read_in_place
from fedcurv.strategies.wire.arrays import ArrayInPlace


class OwnRule(FedAvg):
    def aggregate_train(self, server_round, replies):
        return super().aggregate_train(server_round, replies)


def replies(number: int = 3) -> list[Message]:
    generator = np.random.default_rng(0)
    found = []
    for client in range(number):
        arrays = {
            "w": generator.normal(size=(4, 3)).astype(np.float32),
            "scale": np.array(client + 0.1),
            "counter": np.array(7 * client),
            "columns": np.asfortranarray(generator.normal(size=(2, 5))),
        }
        content = RecordDict(
            {
                "arrays": ArrayRecord({name: Array(value) for name, value in arrays.items()}),
                "metrics": MetricRecord({"num-examples": 3 + client, "loss": 0.5}),
            }
        )
        with task_identity(run_id=1, node_id=1):
            question = Message(RecordDict(), dst_node_id=client, message_type="train")
            found.append(Message(content, reply_to=question))
    return found


def test_a_mean_of_arrays_read_in_place_is_the_same_to_the_bit():
    plain, in_place = replies(), replies()
    read_in_place(FedAvg(), [reply.content for reply in in_place])
    assert isinstance(in_place[0].content["arrays"]["w"], ArrayInPlace)
    expected, metrics = FedAvg().aggregate_train(1, plain)
    got, same_metrics = FedAvg().aggregate_train(1, in_place)
    assert dict(metrics) == dict(same_metrics)
    assert {n: (a.dtype, a.shape, a.data) for n, a in got.items()} == {
        n: (a.dtype, a.shape, a.data) for n, a in expected.items()
    }


def test_what_is_read_in_place_cannot_be_written_to():
    (reply,) = replies(1)
    before = reply.content["arrays"]["w"].numpy()
    read_in_place(FedAdam(), [reply.content])
    numbers = reply.content["arrays"]["w"].numpy()
    assert np.array_equal(numbers, before)
    with pytest.raises(ValueError, match="read-only"):
        numbers += 1


@pytest.mark.parametrize(
    "strategy",
    [OwnRule(), FedMedian(), FedAvg(train_metrics_aggr_fn=lambda contents, key: MetricRecord())],
    ids=["a rule of the user's", "one that selects", "a function of the user's"],
)
def test_who_may_write_to_arrays_gets_them_as_they_came(strategy):
    (reply,) = replies(1)
    read_in_place(strategy, [reply.content])
    numbers = reply.content["arrays"]["w"].numpy()
    numbers += 1  # as q-FedAvg does
    assert type(reply.content["arrays"]["w"]) is Array
