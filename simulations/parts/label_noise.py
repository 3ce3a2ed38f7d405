"""Label noise at some clients, as a configuration describes it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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

_USUAL_RATE = 0.4

# no client has it: seeds of experiments are small
_SEED_OF_VALIDATION = 20_240_301_000_003


@dataclass(frozen=True)
class Labelled:
    """Samples with their labels, and what people took them for.

    Attributes:
        inputs: shape (N, ...).
        labels: shape (N,).
        num_classes: of the data set.
        human: other labels of the same samples by name, each of shape (N,).
        task: that the labels are of.
    """

    inputs: Tensor
    labels: Tensor
    num_classes: int
    human: Mapping[str, Tensor] = field(default_factory=dict)
    task: Task = CLASSIFICATION


def _symmetric(samples: Labelled, noise: Mapping[str, Any], g: torch.Generator) -> NoisyLabels:
    return symmetric_noise(samples.labels, _rate(noise), samples.num_classes, generator=g)


def _asymmetric(
    confusions: str, samples: Labelled, noise: Mapping[str, Any], g: torch.Generator
) -> NoisyLabels:
    return asymmetric_noise(samples.labels, _rate(noise), confusions, generator=g)


def _instance(samples: Labelled, noise: Mapping[str, Any], g: torch.Generator) -> NoisyLabels:
    return instance_dependent_noise(
        samples.inputs, samples.labels, _rate(noise), samples.num_classes, generator=g
    )


def _rate(noise: Mapping[str, Any]) -> float:
    return _USUAL_RATE if noise["rate"] is None else noise["rate"]


def _human(samples: Labelled, noise: Mapping[str, Any], g: torch.Generator) -> NoisyLabels:
    labels = samples.human[noise["labels"]]
    return NoisyLabels(labels, float((labels != samples.labels).double().mean()))


_KINDS: dict[str, Callable[[Labelled, Mapping[str, Any], torch.Generator], NoisyLabels]] = {
    "symmetric": _symmetric,
    "asymmetric_mnist": partial(_asymmetric, "mnist"),
    "asymmetric_cifar10": partial(_asymmetric, "cifar10"),
    "instance": _instance,
    "human": _human,
}
KINDS = ("none", *_KINDS)


def noisy_labels(
    samples: Labelled, noise: Mapping[str, Any], *, client: int, num_clients: int, seed: int
) -> NoisyLabels:
    """Return one client's labels, the same in every round.

    Args:
        samples: the client's.
        noise: ``kind``, ``rate`` (None for 0.4) and ``clients``: the share of clients that are
            noisy, or a list of their numbers; for human labels their name, ``labels``, in the place
            of ``rate``.
        client: its number.
        num_clients: how many there are.
        seed: decides who is noisy, and which labels are wrong.

    Raises:
        ValueError: for a description that cannot be meant.
    """
    check_noise(noise, num_clients, samples.task, samples.human)
    if noise["kind"] == "none" or client not in _noisy_clients(noise["clients"], num_clients, seed):
        return NoisyLabels(samples.labels, 0.0)
    return _made_wrong(samples, noise, 1_000_003 * seed + client)


def noisy_validation(samples: Labelled, noise: Mapping[str, Any], num_clients: int) -> NoisyLabels:
    """Return the labels of held-out samples, the same for every seed: as wrong as noisy clients'.

    Args:
        samples: that are held out.
        noise: see :func:`noisy_labels`.
        num_clients: how many there are.

    Raises:
        ValueError: for a description that cannot be meant.
    """
    check_noise(noise, num_clients, samples.task, samples.human)
    if noise["kind"] == "none":
        return NoisyLabels(samples.labels, 0.0)
    return _made_wrong(samples, noise, _SEED_OF_VALIDATION)


def _made_wrong(samples: Labelled, noise: Mapping[str, Any], seed: int) -> NoisyLabels:
    if not len(samples.labels):
        return NoisyLabels(samples.labels, 0.0)
    return _KINDS[noise["kind"]](samples, noise, torch.Generator().manual_seed(seed))


def check_noise(
    noise: Mapping[str, Any],
    num_clients: int,
    task: Task = CLASSIFICATION,
    human: Collection[str] = (),
) -> None:
    """Raise a ValueError if a description cannot be meant, or there are no labels to be wrong.

    Args:
        noise: see :func:`noisy_labels`.
        num_clients: how many there are.
        task: of the data.
        human: the names of the labels that people gave them.
    """
    if not isinstance(noise["kind"], str) or noise["kind"] not in KINDS:
        raise ValueError(
            f"data.noise.kind must be one of {', '.join(KINDS)}, got {noise['kind']!r}"
        )
    if noise["kind"] != "none" and task is not CLASSIFICATION:
        raise ValueError(
            f"data.noise.kind={noise['kind']}: there are wrong labels for task=classification "
            f"only, got task={task.name}; use none"
        )
    rate = noise["rate"]
    if rate is not None and (not is_number(rate) or not 0 <= rate <= 1):
        raise ValueError(
            f"data.noise.rate must be in [0, 1], or null for {_USUAL_RATE}, got {rate!r}"
        )
    if rate and noise["kind"] in ("none", "human"):
        raise ValueError(
            f"data.noise.rate={rate} has no meaning for data.noise.kind={noise['kind']}; use null"
        )
    if noise["kind"] == "none" and noise.get("validation"):
        raise ValueError("data.noise.validation=true needs a data.noise.kind other than none")
    if noise["kind"] != "human" and noise.get("labels") is not None:
        raise ValueError(
            f"data.noise.labels={noise['labels']} is for data.noise.kind=human, got "
            f"{noise['kind']}; use null"
        )
    if noise["kind"] == "human" and noise.get("labels") not in human:
        raise ValueError(
            f"data.noise.labels must name labels that people gave the training samples, "
            f"{', '.join(human) or 'of which these data have none (arrays human_NAME)'}, got "
            f"{noise.get('labels')!r}"
        )
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
