"""A Fisher diagonal under differential privacy: what one sample can change, and the noise."""

import math

import pytest
import torch
from torch import nn

from fedcurv.private_fisher import private_fisher_diagonal
from tests.oracles.fisher import squared_gradient

CLASSES, SAMPLES = 3, 12
LITTLE = 1e-12  # as good as no noise


def problem(seed=0, samples=SAMPLES):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double()
    inputs = 3 * torch.randn(samples, 5).double()
    return model, inputs, torch.randint(0, CLASSES, (samples,))


def flat(tensors):
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def clipped_sums(model, inputs, labels, clip):
    """Return Σ_n s_n · min(1, clip / ‖s_n‖), and how many of the samples were clipped."""
    total, clipped = 0.0, 0
    for x, y in zip(inputs, labels, strict=True):
        squares = flat(squared_gradient(model, x, int(y)))
        clipped += bool(squares.norm() > clip)
        total = total + squares * min(1.0, clip / float(squares.norm()))
    return total, clipped


def estimate(model, inputs, labels, *, clip, noise_multiplier=LITTLE, size=5, **more):
    batches = list(zip(inputs.split(size), labels.split(size), strict=True))
    got = private_fisher_diagonal(
        model, batches, clip=clip, noise_multiplier=noise_multiplier, **more
    )
    return flat(got) * len(inputs)


@pytest.mark.parametrize("clip", [1e-3, 0.5, 1e3])
def test_every_sample_is_clipped_by_its_norm_over_all_parameters(clip):
    model, inputs, labels = problem()
    expected, clipped = clipped_sums(model, inputs, labels, clip)
    assert (clip > 0.01 or clipped > 6) and (clip < 100 or not clipped)
    got = estimate(model, inputs, labels, clip=clip)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=10 * LITTLE * clip)


@pytest.mark.parametrize("kind", ["empirical", "exact", "sampled"])
def test_one_sample_more_or_less_moves_the_sums_by_at_most_the_clip(kind):
    clip = 0.2
    model, inputs, labels = problem()

    def sums(keep):
        draws = torch.Generator().manual_seed(1)
        return estimate(model, inputs[keep], labels[keep], clip=clip, kind=kind, generator=draws)

    everyone = torch.arange(SAMPLES)
    for left_out in (0, 5, SAMPLES - 1) if kind != "sampled" else (SAMPLES - 1,):
        moved = float((sums(everyone) - sums(everyone[everyone != left_out])).norm())
        assert 0 < moved <= clip * (1 + 1e-9)


def test_the_noise_has_the_deviation_that_was_asked_for_and_cannot_be_foretold():
    model, inputs, labels = problem()
    clip, noise_multiplier = 1e6, 2e-10  # far below the sums that are not nearly 0
    expected, _ = clipped_sums(model, inputs, labels, clip)
    away = expected > 10 * clip * noise_multiplier
    deviations = []
    for _ in range(60):
        torch.manual_seed(0)
        got = estimate(model, inputs, labels, clip=clip, noise_multiplier=noise_multiplier)
        deviations.append((got - expected)[away])
    drawn = torch.stack(deviations) / (clip * noise_multiplier)
    assert drawn.numel() > 1500
    assert abs(float(drawn.std()) - 1) < 5 / math.sqrt(2 * drawn.numel())
    assert abs(float(drawn.mean())) < 5 / math.sqrt(drawn.numel())
    assert float((drawn[0] - drawn[1]).abs().min()) > 0


def test_no_entry_is_negative_under_much_noise():
    model, inputs, labels = problem()
    got = estimate(model, inputs, labels, clip=1.0, noise_multiplier=100.0)
    assert float(got.min()) == 0 and float(got.max()) > 10


def test_known_noise_repeats():
    model, inputs, labels = problem()
    one, other = (
        estimate(
            model,
            inputs,
            labels,
            clip=1.0,
            noise_multiplier=1.0,
            noise=torch.Generator().manual_seed(3),
        )
        for _ in range(2)
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"clip": 0.0}, "clip must be a finite number > 0, got 0.0"),
        ({"clip": float("nan")}, "clip must be"),
        ({"clip": 1.0, "noise_multiplier": 0}, "noise_multiplier must be a finite number > 0"),
        ({"clip": "1"}, "clip must be"),
        ({"clip": 1.0, "kind": "all"}, "kind must be one of"),
    ],
)
def test_what_is_no_privacy_is_refused(settings, told):
    model, inputs, labels = problem()
    with pytest.raises(ValueError, match=told):
        estimate(model, inputs, labels, **settings)


def test_numbers_that_are_not_finite_and_no_samples_are_refused():
    model, inputs, labels = problem()
    with pytest.raises(ValueError, match="expected at least one sample"):
        private_fisher_diagonal(model, [], clip=1.0, noise_multiplier=1.0)
    inputs[7, 0] = float("nan")
    with pytest.raises(ValueError, match=r"batch 1: expected finite"):
        estimate(model, inputs, labels, clip=1.0)
