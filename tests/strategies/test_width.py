"""What a strategy makes of float32 travels in float32."""

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedYogi

from fedcurv.strategies import FedCurv
from fedcurv.strategies.replies.check import Sent
from fedcurv.strategies.replies.settling import Settling
from tests.federation import Federation, options

ADAPTIVE = [FedAdagrad, FedAdam, FedYogi]


@pytest.mark.parametrize("adaptive", ADAPTIVE)
@pytest.mark.parametrize("around", [False, True])
def test_an_adaptive_strategys_model_is_as_wide_as_it_was_sent(adaptive, around):
    strategy = adaptive(**options())
    federation = Federation()
    result = federation.run(FedCurv(strategy, strength=0.0) if around else strategy, num_rounds=3)
    assert {array.dtype for array in result.arrays.values()} == {"float32"}
    sizes = [[c.down["arrays"] for c in r.clients] for r in federation.rounds[1:]]
    assert sizes[0] == sizes[1] == sizes[2]


def test_a_round_gives_what_flowers_own_loop_gives_a_float32_model():
    one_node = Federation(num_nodes=1)  # of several, Flower's loop sums as they come
    ours = one_node.run(FedAdam(**options()), num_rounds=1)
    flowers = one_node.run(FedAdam(**options()), num_rounds=1, own_loop=True)
    assert {array.dtype for array in flowers.arrays.values()} == {"float64"}
    for name, tensor in flowers.arrays.to_torch_state_dict().items():
        assert torch.equal(ours.arrays.to_torch_state_dict()[name], tensor.float())


def test_a_float64_model_stays_one():
    sent = Sent.of(ArrayRecord({"w": torch.zeros(2, dtype=torch.float64)}))
    finish = Settling().prepare(FedAdam(), sent, (), [])
    made = ArrayRecord({"w": torch.tensor([1.0, 2.0], dtype=torch.float32)})
    assert finish(1, made)["w"].dtype == "float64"


def test_whole_numbers_stay_whole_numbers():
    model = {"w": torch.zeros(2), "n": torch.tensor(3)}
    sent = Sent.of(ArrayRecord(model))
    made = ArrayRecord({"w": torch.ones(2, dtype=torch.float64), "n": torch.tensor(4)})
    finished = Settling().prepare(FedAdam(), sent, (), [])(1, made)
    assert {name: array.dtype for name, array in finished.items()} == {"w": "float32", "n": "int64"}
