"""A picture of what output regularisation does: symmetry, and the price of noise, over λ.

    python -m fedcurv.simulations.reports.symmetry symmetry.png

Linear softmax models on scikit-learn's digits, fitted to their minima on clean labels and on the
exact expectation over labels with 40 % symmetric noise.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fedcurv.losses import CrossEntropy, RegularizedCrossEntropy, RobustLoss, symmetry_gap
from fedcurv.losses.regularizers import REGULARIZERS
from fedcurv.simulations.data.sets import load

_RATE = 0.4
_STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


def fit(loss: RobustLoss, inputs: Tensor, targets: Tensor, *, steps: int = 1000) -> nn.Linear:
    """Return the linear model with the least loss, found by LBFGS from zero.

    Args:
        loss: a mean over samples.
        inputs: shape (N, F), float64.
        targets: probabilities of labels, shape (N, C).
        steps: at most.
    """
    model = nn.Linear(inputs.shape[1], targets.shape[1]).double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=steps,
        tolerance_grad=1e-12,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = loss(model(inputs), targets)
        torch.autograd.backward(value)
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return model


def symmetry_figure(inputs: Tensor, labels: Tensor, num_classes: int) -> Figure:
    """Return the picture: cross-entropy's symmetry gap at the minimum, and lost agreement.

    Args:
        inputs: shape (N, F), float64.
        labels: shape (N,).
        num_classes: C.
    """
    clean = nn.functional.one_hot(labels, num_classes).double()
    noisy = clean * (1 - _RATE) + (1 - clean) * _RATE / (num_classes - 1)
    figure = Figure(figsize=(10, 4), layout="constrained")
    gaps, changes = figure.subplots(1, 2)
    for name in REGULARIZERS:
        gap, changed = [], []
        for strength in _STRENGTHS:
            loss = RegularizedCrossEntropy(name, strength)
            on_clean = fit(loss, inputs, clean)(inputs).detach()
            on_noisy = fit(loss, inputs, noisy)(inputs).detach()
            gap.append(symmetry_gap(CrossEntropy(), on_noisy))
            changed.append(100 * (on_clean.argmax(1) != on_noisy.argmax(1)).double().mean().item())
        gaps.loglog(_STRENGTHS, gap, marker="o", label=name)
        changes.semilogx(_STRENGTHS, changed, marker="o", label=name)
    gaps.set(xlabel="λ", ylabel="symmetry gap of cross-entropy at the minimum")
    changes.set(xlabel="λ", ylabel=f"predictions that {_RATE:.0%} noise changes (%)")
    changes.legend()
    for axes in (gaps, changes):
        axes.grid(alpha=0.3)
    return figure


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("file", type=Path, help="where to write the picture, a PNG")
    file = parser.parse_args().file
    data = load("digits", "", False)
    assert data.mean is not None  # the digits are standardised
    pixels = data.train_inputs.double().flatten(1)
    inputs = (pixels - data.mean) / data.deviation
    symmetry_figure(inputs, data.train_targets, data.num_classes).savefig(file, dpi=150)


if __name__ == "__main__":
    main()
