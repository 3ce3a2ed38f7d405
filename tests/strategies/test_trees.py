"""One client's trees that cannot be read end no run of boosted trees."""

import json

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedXgbBagging, FedXgbCyclic

from tests.federation import Federation, options


def booster(number: int = 1, **changed) -> dict:
    model = {
        "gbtree_model_param": {"num_trees": str(number), "num_parallel_tree": "1"},
        "trees": [{"id": i, "base_weights": [0.5]} for i in range(number)],
        "tree_info": [0] * number,
        "iteration_indptr": list(range(number + 1)),
        **changed,
    }
    return {"learner": {"gradient_booster": {"model": model}}}


def as_arrays(text: str | bytes) -> ArrayRecord:
    data = text.encode() if isinstance(text, str) else text
    return ArrayRecord([np.frombuffer(data, np.uint8)])


GOOD = json.dumps(booster())
SPOILT = {
    "nothing": as_arrays(b""),
    "no JSON": as_arrays("no trees"),
    "no UTF-8": as_arrays(b"\xff\xfe{"),
    "JSON cut short": as_arrays(GOOD[:-3]),
    "JSON of something else": as_arrays("[1]"),
    "a number": as_arrays("3"),
    "lists in lists": as_arrays("[" * 100_000),
    "fewer trees than it says": as_arrays(json.dumps(booster(trees=[]))),
    "trees that are numbers": as_arrays(json.dumps(booster(trees=[1]))),
    "no sets": as_arrays(json.dumps(booster(iteration_indptr=[]))),
    "sets of texts": as_arrays(json.dumps(booster(iteration_indptr=["0", "1"]))),
    "a negative number": as_arrays(
        json.dumps(booster(gbtree_model_param={"num_trees": "1", "num_parallel_tree": "-1"}))
    ),
    "an endless number": as_arrays(
        json.dumps(booster(gbtree_model_param={"num_trees": "1", "num_parallel_tree": "9" * 5000}))
    ),
    "more sets than trees": as_arrays(
        json.dumps(booster(gbtree_model_param={"num_trees": "1", "num_parallel_tree": "2"}))
    ),
    "NaN in a tree": as_arrays(GOOD.replace("0.5", "NaN")),
    "numbers in the place of bytes": ArrayRecord([np.ones(3)]),
    "two arrays": ArrayRecord([np.zeros(1, np.uint8)] * 2),
    "another name": ArrayRecord({"trees": as_arrays(GOOD)["0"]}),
}


class Trees(Federation):
    """Every client sends one tree."""

    def train(self, message: Message, context) -> Message:
        partition = int(context.node_config["partition-id"])
        server_round = int(message.content["config"]["server-round"])
        metrics = MetricRecord({"num-examples": 3, "auc": 0.5})
        content = RecordDict({"arrays": as_arrays(GOOD), "metrics": metrics})
        self.spoil.get((server_round, partition), lambda content: None)(content)
        return Message(content, reply_to=message)

    def pack(self, model) -> ArrayRecord:
        return as_arrays(b"")


def replaced(arrays: ArrayRecord):
    def spoil(content: RecordDict) -> None:
        content["arrays"] = arrays

    return spoil


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_trees_that_cannot_be_put_beside_others_are_refused_by_name(first):
    number = len(SPOILT)
    bad = range(number) if first else range(number + 1, 2 * number + 1)
    spoil = {(1, client): replaced(a) for client, a in zip(bad, SPOILT.values(), strict=True)}
    federation = Trees(num_nodes=2 * number + 1, spoil=spoil)
    result = federation.run(FedXgbBagging(**options()), num_rounds=2)
    statuses = federation.statuses(1)
    for client, name in zip(bad, SPOILT, strict=True):
        assert statuses[str(client)] == "refused", name
        assert "\n" not in federation.reasons(1)[str(client)]
    assert list(statuses.values()).count("ok") == number + 1
    model = json.loads(result.arrays["0"].numpy().tobytes())["learner"]["gradient_booster"]["model"]
    assert len(model["trees"]) == (number + 1) + (2 * number + 1)
    assert model["gbtree_model_param"]["num_trees"] == str(len(model["trees"]))


def test_trees_in_any_form_go_round_where_the_server_does_not_read_them():
    spoil = {(r, c): replaced(as_arrays(b"binary")) for r in (1, 2) for c in range(3)}
    federation = Trees(num_nodes=3, spoil=spoil)
    strategy = FedXgbCyclic(min_available_nodes=1, fraction_evaluate=0.0)
    result = federation.run(strategy, num_rounds=2)
    assert result.arrays["0"].numpy().tobytes() == b"binary"
