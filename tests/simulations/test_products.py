"""Every client's products, by whichever library, against NumPy's in double precision."""

import numpy as np
import pytest
import torch

from fedcurv import onednn
from fedcurv.simulations.runners.batched import products

SMALL, LARGE = (3, 5, 7, 4), (3, 64, 300, 200)  # clients, rows, in, out


@pytest.fixture(params=["as it comes", "MKL", "oneDNN"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the libraries in turn, whatever the processor."""
    if request.param != "as it comes":
        if request.param == "oneDNN" and not onednn.works():
            pytest.skip("this torch has no oneDNN")
        chosen = onednn.linear if request.param == "oneDNN" else None
        monkeypatch.setattr(products, "_onednn_linear", lambda: chosen)


@pytest.fixture(params=[SMALL, LARGE], ids=["small", "large"])
def layers(request: pytest.FixtureRequest) -> tuple[torch.Tensor, ...]:
    clients, rows, width, out = request.param
    generator = torch.Generator().manual_seed(0)
    shapes = (clients, rows, width), (clients, out, width), (clients, out), (clients, rows, out)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def exactly(equation: str, *tensors: torch.Tensor) -> np.ndarray:
    return np.einsum(equation, *(tensor.numpy().astype(np.float64) for tensor in tensors))


def test_a_layer_of_every_client(layers: tuple[torch.Tensor, ...]) -> None:
    inputs, weights, biases, _ = layers
    wanted = exactly("cri,coi->cro", inputs, weights) + biases.numpy()[:, None, :]
    np.testing.assert_allclose(products.affine(inputs, weights, biases), wanted, atol=1e-3)


def test_back_through_a_layer(layers: tuple[torch.Tensor, ...]) -> None:
    _, weights, _, residual = layers
    wanted = exactly("cro,coi->cri", residual, weights)
    np.testing.assert_allclose(products.back_through(residual, weights), wanted, atol=1e-3)


def test_a_step_of_the_weights(layers: tuple[torch.Tensor, ...]) -> None:
    inputs, weights, _, residual = layers
    wanted = weights.numpy() - 0.1 * exactly("cro,cri->coi", residual, inputs)
    products.step_(weights, residual, inputs, 0.1)
    np.testing.assert_allclose(weights, wanted, atol=1e-3)


def test_oneDNN_is_taken_for_large_products_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_onednn_linear", lambda: torch.nn.functional.linear)
    for (clients, rows, width, out), taken in ((SMALL, False), (LARGE, True)):
        linear = products._linear_for(
            torch.zeros(clients, rows, width), torch.zeros(clients, out, width)
        )
        assert (linear is not None) is taken
