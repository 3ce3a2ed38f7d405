"""Feature shift: inputs that are measured worse from client to client."""

import torch
from torch import Tensor

from fedcurv.simulations.rules import is_number


def noisy_inputs(
    inputs: Tensor, deviation: float, *, client: int, num_clients: int, seed: int
) -> Tensor:
    """Return one client's inputs with normal noise on every number, the same in every round.

    The noise's standard deviation grows evenly from 0 at the first client to ``deviation`` at the
    last, so that labels are dealt out as before and what differs is how inputs look.

    Args:
        inputs: shape (N, ...), real numbers; the named data sets' have mean 0 and deviation 1.
        deviation: >= 0.
        client: its number.
        num_clients: how many there are.
        seed: of the noise.

    Raises:
        ValueError: for a deviation that cannot be meant, or inputs that are integers.
    """
    _require_meant(deviation)
    own = deviation * client / max(1, num_clients - 1)
    if own == 0:
        return inputs
    _require_real(inputs, deviation)
    generator = torch.Generator().manual_seed(7_000_003 * seed + client)
    return inputs + own * torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)


def check_feature_noise(deviation: float, inputs: Tensor) -> None:
    """Raise a ValueError if inputs like these cannot have such noise."""
    _require_meant(deviation)
    if deviation > 0:
        _require_real(inputs, deviation)


def _require_meant(deviation: float) -> None:
    if not is_number(deviation) or deviation < 0:
        raise ValueError(f"data.feature_noise must be >= 0 and finite, got {deviation!r}")


def _require_real(inputs: Tensor, deviation: float) -> None:
    if not inputs.is_floating_point():
        raise ValueError(
            f"data.feature_noise={deviation:g}: expected inputs that are real numbers, got "
            f"{str(inputs.dtype).removeprefix('torch.')}; use 0"
        )
