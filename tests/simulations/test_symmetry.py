import sys

import matplotlib.image
import torch
from torch import nn

from fedcurv.losses import CrossEntropy, RegularizedCrossEntropy
from fedcurv.simulations.reports import symmetry


def test_the_fit_is_a_minimum():
    torch.manual_seed(1)
    inputs = torch.randn(50, 4, dtype=torch.double)
    targets = torch.rand(50, 3, dtype=torch.double).softmax(1)
    loss = RegularizedCrossEntropy("entropy", 10.0)
    model = symmetry.fit(loss, inputs, targets)
    loss(model(inputs), targets).backward()
    assert all(parameter.grad.abs().max() < 1e-6 for parameter in model.parameters())


def test_the_number_of_steps_is_bounded():
    inputs, targets = torch.eye(3).double(), torch.eye(3).double()
    model = symmetry.fit(CrossEntropy(), inputs, targets, steps=1)
    assert CrossEntropy()(model(inputs), targets) > 0.01


def test_the_picture_shows_what_was_measured(monkeypatch):
    monkeypatch.setattr(symmetry, "_STRENGTHS", (0.1, 100.0))
    torch.manual_seed(1)
    labels = torch.arange(60) % 3
    inputs = nn.functional.one_hot(labels, 3).double() + torch.randn(60, 3, dtype=torch.double)
    gaps, changes = symmetry.symmetry_figure(inputs, labels, 3).axes
    assert len(gaps.lines) == len(changes.lines) == 4
    for line in gaps.lines:
        first, last = line.get_ydata()
        assert last < first / 100, line.get_label()


def test_the_command_writes_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(symmetry, "_STRENGTHS", (10.0,))
    monkeypatch.setattr(symmetry, "REGULARIZERS", ("logit",))
    few = symmetry.load("digits", "", False).some(100, seed=1)
    monkeypatch.setattr(symmetry, "load", lambda *_: few)
    monkeypatch.setattr(sys, "argv", ["symmetry", str(tmp_path / "picture.png")])
    symmetry.main()
    assert matplotlib.image.imread(tmp_path / "picture.png").std() > 0.02
