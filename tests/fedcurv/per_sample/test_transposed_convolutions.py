"""The rule for transposed convolutions against one sample at a time."""

import itertools

import pytest
import torch
from torch import nn

from fedcurv import fisher_diagonal
from fedcurv.per_sample.replay import Replay
from fedcurv.per_sample.rules.transposed_convolution import TransposedConvolution
from tests.oracles import fisher as oracle

SETTINGS = [
    (dims, stride, padding, output_padding, dilation, groups)
    for dims, stride, padding, output_padding, dilation, groups in itertools.product(
        (1, 2, 3), (1, 2, 3), (0, 1), (0, 1), (1, 2), (1, 2)
    )
    if output_padding < max(stride, dilation)  # as torch demands
]


def made(dims, **options):
    torch.manual_seed(0)
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    return kind(4, 6, 3, **options).double()


def by_sample(layer, x, g):
    gradients = [
        torch.autograd.grad(layer(x[n : n + 1]), list(layer.parameters()), g[n : n + 1])
        for n in range(len(x))
    ]
    names = [name for name, _ in layer.named_parameters()]
    return dict(zip(names, map(torch.stack, zip(*gradients, strict=True)), strict=True))


@pytest.mark.parametrize(
    ("dims", "stride", "padding", "output_padding", "dilation", "groups"), SETTINGS
)
def test_all_settings(dims, stride, padding, output_padding, dilation, groups):
    layer = made(
        dims,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
        groups=groups,
    )
    x = torch.randn(3, 4, *(3, 4, 2)[:dims], dtype=torch.float64)
    g = torch.randn_like(layer(x))
    rule, expected = TransposedConvolution(), by_sample(layer, x, g)
    totals = {name: torch.ones_like(p) for name, p in layer.named_parameters()}
    rule.add_squares(layer, x, g, totals)
    for name, gradient in rule.gradients(layer, x, g).items():
        torch.testing.assert_close(gradient, expected[name])
        torch.testing.assert_close(totals[name], 1 + expected[name].square().sum(0))


def test_sides_that_differ_and_a_size_that_is_given():
    torch.manual_seed(0)

    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 3, (3, 2), stride=(2, 3), padding=(1, 0))

        def forward(self, x):
            return self.up(x, output_size=(8, 9)).flatten(2).mean(2)

    model, x = Up().double(), torch.randn(4, 2, 4, 3, dtype=torch.float64)
    labels = torch.randint(0, 3, (4,))
    got = fisher_diagonal(model, [(x, labels)])
    for name, one in oracle.empirical(model, x, labels).items():
        torch.testing.assert_close(got[name], one, rtol=1e-5, atol=1e-12)


def test_it_is_used_for_a_model(monkeypatch):
    replayed = []
    monkeypatch.setattr(Replay, "add_squares", lambda self, *_: replayed.append(self._name))
    model = nn.Sequential(nn.ConvTranspose1d(2, 3, 2, stride=2), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(4, 2, 5)
    model(x)
    fisher_diagonal(model, [(x, torch.randint(0, 3, (4,)))])
    assert not replayed
