"""Label noise made on purpose: seeded, and with the rate that really came out."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# who is taken for whom, by class: the maps that are customary for these data sets
MNIST_CONFUSIONS = {2: 7, 3: 8, 5: 6, 6: 5, 7: 1}
CIFAR10_CONFUSIONS = {2: 0, 3: 5, 4: 7, 5: 3, 9: 1}

CONFUSIONS: dict[str, Mapping[int, int]] = {
    "mnist": MNIST_CONFUSIONS,
    "cifar10": CIFAR10_CONFUSIONS,
}


@dataclass(frozen=True)
class NoisyLabels:
    """Labels, some of them wrong.

    Attributes:
        labels: shape (N,), int64.
        rate: the share of them that is wrong.
    """

    labels: Tensor
    rate: float


def symmetric_noise(
    labels: Tensor, rate: float, num_classes: int, *, generator: torch.Generator | None = None
) -> NoisyLabels:
    """Return labels of which each is wrong with this probability, and then any other class.

    Args:
        labels: shape (N,), int64, 0..num_classes-1.
        rate: η in [0, 1].
        num_classes: >= 2.
        generator: decides; by default torch's global one.

    Raises:
        ValueError: for a rate or labels out of range.
    """
    _check(labels, rate, num_classes)
    others = torch.randint(1, num_classes, labels.shape, generator=generator)
    flipped = torch.rand(labels.shape, generator=generator) < rate
    return _noisy(labels, torch.where(flipped, (labels + others) % num_classes, labels))


def asymmetric_noise(
    labels: Tensor,
    rate: float,
    confusions: Mapping[int, int] | str,
    *,
    generator: torch.Generator | None = None,
) -> NoisyLabels:
    """Return labels of which those of some classes become a certain other one.

    Args:
        labels: shape (N,), int64.
        rate: with which probability, in [0, 1]; for the other classes 0, so that the rate over all
            is lower.
        confusions: what each of these classes becomes, or ``mnist`` or ``cifar10``.
        generator: decides; by default torch's global one.

    Raises:
        ValueError: for a rate out of range or an unknown name.
    """
    if isinstance(confusions, str):
        if confusions not in CONFUSIONS:
            raise ValueError(
                f"confusions must be one of {', '.join(CONFUSIONS)}, or a mapping, got "
                f"{confusions!r}"
            )
        confusions = CONFUSIONS[confusions]
    _check(labels, rate)
    becomes = labels.clone()
    for one, other in confusions.items():
        becomes[labels == one] = other
    flipped = torch.rand(labels.shape, generator=generator) < rate
    return _noisy(labels, torch.where(flipped, becomes, labels))


def instance_dependent_noise(
    inputs: Tensor,
    labels: Tensor,
    rate: float,
    num_classes: int,
    *,
    deviation: float = 0.1,
    generator: torch.Generator | None = None,
) -> NoisyLabels:
    """Return labels that are wrong the more often, and the more alike, the more alike the inputs.

    Each sample has a rate of its own, from a normal distribution cut off at 0 and 1, and becomes
    class k ≠ y with a probability in proportion to exp(x̃ · w_yk), where x̃ is the standardised
    input and w_y are random projections, of unit variance per input.

    Args:
        inputs: shape (N, ...).
        labels: shape (N,), int64, 0..num_classes-1.
        rate: mean rate, in [0, 1].
        num_classes: >= 2.
        deviation: of the rates, >= 0.
        generator: decides; by default torch's global one.

    Raises:
        ValueError: for values or lengths out of range.
    """
    _check(labels, rate, num_classes)
    if len(inputs) != len(labels):
        raise ValueError(f"expected a label for each of {len(inputs)} inputs, got {len(labels)}")
    if deviation < 0:
        raise ValueError(f"deviation must be >= 0, got {deviation!r}")
    rates = rate + deviation * torch.randn(labels.shape, generator=generator)
    outside = (rates < 0) | (rates > 1)
    while deviation and bool(outside.any()):
        again = rate + deviation * torch.randn(int(outside.sum()), generator=generator)
        rates[outside] = again
        outside = (rates < 0) | (rates > 1)
    flat = inputs.flatten(1).float()
    flat = (flat - flat.mean()) / flat.std().clamp(min=1e-12)
    projections = torch.randn(num_classes, flat.shape[1], num_classes, generator=generator)
    becomes = labels.clone()
    for label in range(num_classes):
        mine = labels == label
        if bool(mine.any()):
            scores = flat[mine] @ projections[label] / flat.shape[1] ** 0.5
            scores[:, label] = -torch.inf
            becomes[mine] = torch.multinomial(scores.softmax(1), 1, generator=generator).squeeze(1)
    flipped = torch.rand(labels.shape, generator=generator) < rates
    return _noisy(labels, torch.where(flipped, becomes, labels))


def _noisy(clean: Tensor, labels: Tensor) -> NoisyLabels:
    wrong = int((labels != clean).sum())
    return NoisyLabels(labels, wrong / max(1, clean.numel()))


def _check(labels: Tensor, rate: float, num_classes: int | None = None) -> None:
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate must be in [0, 1], got {rate!r}")
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(
            f"expected labels of shape (N,) and int64, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    if num_classes is None:
        return
    if num_classes < 2:
        raise ValueError(f"num_classes must be >= 2, got {num_classes}")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"expected labels from 0 to {num_classes - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}"
        )
