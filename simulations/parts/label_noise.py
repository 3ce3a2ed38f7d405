"""Label noise at some clients, as a configuration describes it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedcurv.label_noise import (
    NoisyLabels,
    asymmetric_noise,
    instance_dependent_noise,
    symmetric_noise,
)
from fedcurv.simulations.parts.tasks import CLASSIFICATION, Task
from fedcurv.simulations.rules import is_integer, is_list_of, is_number

# from inputs, labels, rate, number of classes and a generator
_KINDS: dict[str, Callable[[Tensor, Tensor, float, int, torch.Generator], NoisyLabels]] = {
    "symmetric": lambda x, y, rate, classes, g: symmetric_noise(y, rate, classes, generator=g),
    "asymmetric_mnist": lambda x, y, rate, classes, g: asymmetric_noise(
        y, rate, "mnist", generator=g
    ),
    "asymmetric_cifar10": lambda x, y, rate, classes, g: asymmetric_noise(
        y, rate, "cifar10", generator=g
    ),
    "instance": lambda x, y, rate, classes, g: instance_dependent_noise(
        x, y, rate, classes, generator=g
    ),
}
KINDS = ("none", *_KINDS)


def noisy_labels(
    inputs: Tensor,
    labels: Tensor,
    num_classes: int,
    noise: Mapping[str, Any],
    *,
    client: int,
    num_clients: int,
    seed: int,
) -> NoisyLabels:
    """Return one client's labels, the same in every round.

    Args:
        inputs: shape (N, ...).
        labels: shape (N,).
        num_classes: of the data set.
        noise: ``kind``, ``rate`` and ``clients``: the share of clients that are noisy, or a list of
            their numbers.
        client: its number.
        num_clients: how many there are.
        seed: decides who is noisy, and which labels are wrong.

    Raises:
        ValueError: for a description that cannot be meant.
    """
    check_noise(noise, num_clients)
    if noise["kind"] == "none" or client not in _noisy_clients(noise["clients"], num_clients, seed):
        return NoisyLabels(labels, 0.0)
    generator = torch.Generator().manual_seed(1_000_003 * seed + client)
    return _KINDS[noise["kind"]](inputs, labels, noise["rate"], num_classes, generator)


def check_noise(noise: Mapping[str, Any], num_clients: int, task: Task = CLASSIFICATION) -> None:
    """Raise a ValueError if a description cannot be meant, or there are no labels to be wrong."""
    if not isinstance(noise["kind"], str) or noise["kind"] not in KINDS:
        raise ValueError(
            f"data.noise.kind must be one of {', '.join(KINDS)}, got {noise['kind']!r}"
        )
    if noise["kind"] != "none" and task is not CLASSIFICATION:
        raise ValueError(
            f"data.noise.kind={noise['kind']}: there are wrong labels for task=classification "
            f"only, got task={task.name}; use none"
        )
    if not is_number(noise["rate"]) or not 0 <= noise["rate"] <= 1:
        raise ValueError(f"data.noise.rate must be in [0, 1], got {noise['rate']!r}")
    clients = noise["clients"]
    is_share = is_number(clients) and 0 <= clients <= 1
    is_list = is_list_of(clients, lambda c: is_integer(c, 0) and c < num_clients)
    if not is_share and not is_list:
        raise ValueError(
            f"data.noise.clients must be a share in [0, 1] or a list of numbers below "
            f"{num_clients}, got {clients!r}"
        )


def _noisy_clients(clients: float | Sequence[int], num_clients: int, seed: int) -> set[int]:
    if isinstance(clients, Sequence):
        return set(clients)
    return drawn(clients, num_clients, seed=seed)


def drawn(share: float, num_clients: int, *, seed: int) -> set[int]:
    """Return the numbers of a share of the clients, chosen at random."""
    order = torch.randperm(num_clients, generator=torch.Generator().manual_seed(seed))
    return set(order[: round(share * num_clients)].tolist())
