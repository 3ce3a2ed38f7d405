"""Why the losses tolerate noise: exact expectations over noisy labels, on a linear model."""

import pytest
import torch
from torch import nn

from fedcurv.losses import (
    AsymmetricGeneralizedCrossEntropy,
    AsymmetricSquaredError,
    CrossEntropy,
    GeneralizedCrossEntropy,
    LogitClip,
    MeanAbsoluteError,
    NormalizedCrossEntropy,
    NormalizedNegativeCrossEntropy,
    RegularizedCrossEntropy,
    ReverseCrossEntropy,
    RobustLoss,
    SharpenedCrossEntropy,
    symmetry_gap,
)
from fedcurv.losses.regularizers import REGULARIZERS

CLASSES, RATE = 3, 0.5
# uniform noise leaves the clean risk, times this, and a constant
SHRINKAGE = 1 - RATE * CLASSES / (CLASSES - 1)


def problem():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1200) % CLASSES
    centres = 2 * torch.randn(CLASSES, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(labels), 2, generator=generator, dtype=torch.float64)
    clean = nn.functional.one_hot(labels, CLASSES).double()
    noisy = clean * (1 - RATE) + (1 - clean) * RATE / (CLASSES - 1)
    return centres[labels] + 2.5 * noise, clean, noisy


def fit(loss: RobustLoss, inputs: torch.Tensor, targets: torch.Tensor) -> nn.Linear:
    model = nn.Linear(2, CLASSES).double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=1000,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(model(inputs), targets)
        value.backward()
        return value

    for _ in range(3):
        optimizer.step(closure)
    return model


def compare(regularizer: str, strength: float) -> tuple[float, float, float]:
    """Return |W_noisy| / |W_clean|, how often both agree, and cross-entropy's symmetry gap."""
    inputs, clean, noisy = problem()
    loss = RegularizedCrossEntropy(regularizer, strength)
    on_clean, on_noisy = fit(loss, inputs, clean), fit(loss, inputs, noisy)
    ratio = float(on_noisy.weight.norm() / on_clean.weight.norm())
    agreement = (on_clean(inputs).argmax(1) == on_noisy(inputs).argmax(1)).double().mean()
    return ratio, float(agreement), symmetry_gap(CrossEntropy(), on_noisy(inputs))


@pytest.mark.parametrize("regularizer", ["label_smoothing", "entropy", "squared_output", "logit"])
def test_a_strong_regularizer_makes_noise_a_scaling(regularizer):
    ratio, agreement, gap = compare(regularizer, 0.0)
    assert 0.08 <= ratio <= 0.15
    assert 0.85 <= agreement <= 0.97
    strong_ratio, strong_agreement, strong_gap = compare(regularizer, 100.0)
    assert strong_ratio == pytest.approx(SHRINKAGE, rel=0.02)
    assert strong_agreement >= 0.998
    assert strong_gap <= gap / 1000


@pytest.mark.parametrize(
    ("loss", "is_symmetric"),
    [
        (MeanAbsoluteError(), True),
        (ReverseCrossEntropy(), True),
        (NormalizedCrossEntropy(), True),
        (NormalizedNegativeCrossEntropy(), True),
        (LogitClip(MeanAbsoluteError()), True),
        (AsymmetricSquaredError(), False),
        (SharpenedCrossEntropy(), False),
        (GeneralizedCrossEntropy(q=1.0), True),
        (AsymmetricGeneralizedCrossEntropy(a=1.0, q=1.0), True),
        (CrossEntropy(), False),
        (GeneralizedCrossEntropy(q=0.7), False),
        (RegularizedCrossEntropy("entropy", 1.0), False),
    ],
)
def test_the_gap_is_zero_for_symmetric_losses_alone(loss, is_symmetric):
    logits = 3 * torch.randn(100, 5, dtype=torch.float64)
    assert (symmetry_gap(loss, logits) < 1e-12) == is_symmetric


def test_the_gap_of_torchs_losses():
    logits = torch.randn(20, 5, 2, dtype=torch.float64)
    ours = symmetry_gap(CrossEntropy(), logits)
    theirs = symmetry_gap(nn.CrossEntropyLoss(reduction="none"), logits)
    assert ours == pytest.approx(theirs)
    sums = -logits.log_softmax(1).sum(1)
    assert ours == pytest.approx(float(sums.max() - sums.min()) / 5)


@pytest.mark.parametrize(
    ("loss", "logits", "message"),
    [
        (CrossEntropy(), torch.ones(3), "at least one sample, got shape"),
        (CrossEntropy(), torch.ones(0, 3), "at least one sample"),
        (nn.CrossEntropyLoss(), torch.ones(2, 3), "set reduction='none'"),
    ],
)
def test_bad_input(loss, logits, message):
    with pytest.raises(ValueError, match=message):
        symmetry_gap(loss, logits)


@pytest.mark.parametrize(
    ("name", "curvature"),
    [
        ("label_smoothing", 1 / CLASSES),
        ("entropy", 1 / CLASSES),
        ("squared_output", 1 / CLASSES**2),
        ("logit", 1.0),
    ],
)
def test_curvatures_at_zero_are_those_that_limit_the_learning_rate(name, curvature):
    logits = torch.zeros(CLASSES, dtype=torch.double)
    hessian = torch.autograd.functional.hessian(lambda z: REGULARIZERS[name](z[None])[0], logits)
    centred = torch.eye(CLASSES).double() - 1 / CLASSES
    torch.testing.assert_close(hessian, curvature * centred)
