"""Feature shift: inputs that get noisier from client to client."""

import pytest
import torch

from fedcurv.simulations.configuration import resolve
from fedcurv.simulations.parts.feature_noise import noisy_inputs
from tests.simulations.test_run import configuration

INPUTS = torch.zeros(400, 50)


def noise(client: int, *, seed: int = 1, deviation: float = 0.6, inputs: torch.Tensor = INPUTS):
    return noisy_inputs(inputs, deviation, client=client, num_clients=4, seed=seed)


def test_noise_grows_evenly_from_none_at_the_first_client():
    deviations = [float(noise(client).std()) for client in range(4)]
    # of 20,000 numbers; the deviation of their deviation is 0.6 / sqrt(40,000) = 0.003
    assert deviations == pytest.approx([0, 0.2, 0.4, 0.6], abs=0.015)
    assert noise(0) is INPUTS


def test_noise_is_the_same_in_each_round_and_another_at_each_client_and_seed():
    assert torch.equal(noise(2), noise(2))
    assert not torch.equal(noise(3) / 3, noise(2) / 2)
    assert not torch.equal(noise(2), noise(2, seed=2))


def test_inputs_are_moved_and_not_replaced():
    inputs = torch.full((400, 50), 5.0)
    assert torch.allclose(noise(3, inputs=inputs) - 5, noise(3), atol=1e-5)
    assert torch.equal(inputs, torch.full((400, 50), 5.0))


def test_integers_are_refused_by_name():
    with pytest.raises(ValueError, match=r"data.feature_noise=0.6: expected inputs .* got int64"):
        noise(3, inputs=torch.zeros(3, 2, dtype=torch.long))
    assert noise(3, deviation=0, inputs=torch.zeros(3, 2, dtype=torch.long)).sum() == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.feature_noise=-1", "data.feature_noise must be >= 0 and finite, got -1"),
        ("data.feature_noise=much", "data.feature_noise must be"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_trains(override, message):
    with pytest.raises(ValueError, match=message):
        resolve(configuration(override))


def test_devices_keep_their_own_inputs():
    own = ["data=device", "data.shape=[1,8,8]", "data.classes=[0,1]", "fraction_evaluate=1"]
    with pytest.raises(ValueError, match="devices' own inputs are left as they are; use 0"):
        resolve(configuration(*own, "data.feature_noise=0.5"))
