import pytest
import torch

from fedcurv.label_noise import (
    CIFAR10_CONFUSIONS,
    MNIST_CONFUSIONS,
    asymmetric_noise,
    instance_dependent_noise,
    symmetric_noise,
)

CLASSES = 10
LABELS = torch.arange(20_000) % CLASSES
INPUTS = torch.randn(20_000, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


NOISES = {
    "symmetric": lambda labels, rate, generator: symmetric_noise(
        labels, rate, CLASSES, generator=generator
    ),
    "asymmetric": lambda labels, rate, generator: asymmetric_noise(
        labels, rate, "mnist", generator=generator
    ),
    "instance": lambda labels, rate, generator: instance_dependent_noise(
        INPUTS[: len(labels)], labels, rate, CLASSES, generator=generator
    ),
}


@pytest.mark.parametrize("name", NOISES)
def test_the_rate_is_the_one_that_came_out_and_the_seed_decides(name):
    before = LABELS.clone()
    one, same, other = (NOISES[name](LABELS, 0.4, seeded(s)) for s in (0, 0, 1))
    assert torch.equal(LABELS, before)
    assert one.rate == float((one.labels != LABELS).double().mean())
    assert torch.equal(one.labels, same.labels)
    assert not torch.equal(one.labels, other.labels)
    # four standard deviations; half of the classes take no part in the asymmetric noise
    expected = 0.2 if name == "asymmetric" else 0.4
    assert one.rate == pytest.approx(expected, abs=0.014)


@pytest.mark.parametrize("name", ["symmetric", "asymmetric"])
def test_nothing_or_everything_is_wrong_at_the_ends(name):
    assert NOISES[name](LABELS, 0.0, seeded()).rate == 0
    assert NOISES[name](LABELS, 1.0, seeded()).rate == (0.5 if name == "asymmetric" else 1)


def test_symmetric_noise_is_uniform_over_the_other_classes():
    noisy = symmetric_noise(LABELS, 0.5, CLASSES, generator=seeded()).labels
    counts = torch.bincount(CLASSES * LABELS + noisy, minlength=100).view(CLASSES, CLASSES)
    off_diagonal = counts[~torch.eye(CLASSES, dtype=torch.bool)].double()
    assert off_diagonal.mean() == pytest.approx(1000 / 9, rel=0.05)
    assert off_diagonal.min() > 70 and off_diagonal.max() < 160  # four standard deviations


@pytest.mark.parametrize(
    ("name", "confusions"), [("mnist", MNIST_CONFUSIONS), ("cifar10", CIFAR10_CONFUSIONS)]
)
def test_asymmetric_noise_follows_its_map(name, confusions):
    noisy = asymmetric_noise(LABELS, 0.3, name, generator=seeded()).labels
    for label in range(CLASSES):
        got = set(noisy[label == LABELS].tolist())
        assert got == {label, confusions.get(label, label)}
    same = asymmetric_noise(LABELS, 0.3, confusions, generator=seeded()).labels
    assert torch.equal(noisy, same)


def test_the_maps_are_the_customary_ones():
    digits = [(7, 1), (2, 7), (5, 6), (6, 5), (3, 8)]
    assert sorted(MNIST_CONFUSIONS.items()) == sorted(digits)
    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    pairs = [("truck", "automobile"), ("bird", "airplane"), ("deer", "horse"), ("cat", "dog")]
    expected = {names.index(a): names.index(b) for a, b in [*pairs, ("dog", "cat")]}
    assert expected == CIFAR10_CONFUSIONS


def test_instance_dependent_noise_depends_on_the_input():
    """Equal inputs of one class go astray to few classes, others to others."""
    one = INPUTS[:1] * 3
    labels = torch.zeros(4000, dtype=torch.long)
    inputs = torch.cat([one.expand(2000, -1, -1, -1), -one.expand(2000, -1, -1, -1)])
    noisy = instance_dependent_noise(inputs, labels, 0.9, CLASSES, generator=seeded()).labels
    first, second = (
        torch.bincount(part, minlength=CLASSES)[1:].double() for part in noisy.split(2000)
    )
    first, second = first / first.sum(), second / second.sum()
    assert float((first - second).abs().sum()) > 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: symmetric_noise(LABELS, 1.1, 10), r"rate must be in \[0, 1\], got 1.1"),
        (lambda: symmetric_noise(LABELS, float("nan"), 10), r"rate must be in \[0, 1\]"),
        (lambda: symmetric_noise(LABELS, 0.1, 5), "labels from 0 to 4, got 0 to 9"),
        (lambda: symmetric_noise(LABELS, 0.1, 1), "num_classes must be >= 2"),
        (lambda: symmetric_noise(LABELS.float(), 0.1, 10), "int64, got torch.float32"),
        (lambda: asymmetric_noise(LABELS, 0.1, "svhn"), "must be one of mnist, cifar10"),
        (
            lambda: instance_dependent_noise(INPUTS[:3], LABELS, 0.1, 10),
            "a label for each of 3 inputs, got 20000",
        ),
        (
            lambda: instance_dependent_noise(INPUTS, LABELS, 0.1, 10, deviation=-1.0),
            "deviation must be >= 0",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
