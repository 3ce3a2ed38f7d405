"""Matrix products of several clients' perceptrons, by the faster of the two libraries torch has.

oneDNN is the faster on some processors (see ``fedcurv.onednn``), but multiplies one matrix at a
time, and with more ado for small ones.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from fedcurv import onednn
from fedcurv.simulations.reports.provenance import processor

# multiplications of one client's product from which on oneDNN is the faster
_LARGE = 3_000_000


def forward(weights: Sequence[Tensor], biases: Sequence[Tensor], inputs: Tensor) -> list[Tensor]:
    """Return what goes into each layer of a perceptron with ReLU, and what comes out of the last.

    Args:
        weights: of every layer, shape (clients, out, in).
        biases: likewise, shape (clients, out).
        inputs: shape (clients, rows, in).
    """
    activations = [inputs]
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        outputs = affine(activations[-1], weight, bias)
        activations.append(outputs.relu_() if index < len(weights) - 1 else outputs)
    return activations


def by_client(numbers: Tensor, like: Tensor) -> Tensor:
    """Return one number for each client, shape (clients), to be broadcast over such a tensor."""
    return numbers.view(-1, *[1] * (like.ndim - 1))


def affine(inputs: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
    """Return every client's ``inputs @ weights.T + biases``, shape (clients, rows, out).

    Args:
        inputs: shape (clients, rows, in).
        weights: shape (clients, out, in).
        biases: shape (clients, out).
    """
    if (linear := _linear_for(inputs, weights)) is None:
        return torch.baddbmm(biases.unsqueeze(1), inputs, weights.transpose(1, 2))
    return torch.stack([linear(*client) for client in zip(inputs, weights, biases, strict=True)])


def back_through(residual: Tensor, weights: Tensor) -> Tensor:
    """Return every client's ``residual @ weights``, shape (clients, rows, in).

    Args:
        residual: shape (clients, rows, out).
        weights: shape (clients, out, in).
    """
    if (linear := _linear_for(residual, weights)) is None:
        return torch.bmm(residual, weights)
    transposed = weights.transpose(1, 2)
    return torch.stack([linear(*client) for client in zip(residual, transposed, strict=True)])


def step_(weights: Tensor, residual: Tensor, inputs: Tensor, lr: float) -> None:
    """Take ``lr * residual.T @ inputs`` off every client's weights, in place.

    Args:
        weights: shape (clients, out, in).
        residual: shape (clients, rows, out).
        inputs: shape (clients, rows, in).
        lr: learning rate.
    """
    if (linear := _linear_for(inputs, weights)) is None:
        weights.baddbmm_(residual.transpose(1, 2), inputs, alpha=-lr)
        return
    for weight, of_client, rows in zip(weights, residual, inputs, strict=True):
        weight.sub_(linear(of_client.t(), rows.t()), alpha=lr)


def _linear_for(rows: Tensor, weights: Tensor) -> Callable[..., Tensor] | None:
    """Return oneDNN's layer if it is the faster one for these shapes."""
    large = rows.shape[1] * weights[0].numel() >= _LARGE
    return _onednn_linear() if large and rows.device.type == "cpu" else None


@cache
def _onednn_linear() -> Callable[..., Tensor] | None:
    """Return ``onednn.linear`` if MKL is slow here."""
    mkl_is_slow = (
        processor().startswith("AMD") and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )
    usable = torch.backends.mkldnn.enabled and onednn.works()
    return onednn.linear if mkl_is_slow and usable else None
