import pytest
import torch
from torch import nn

from fedcurv.per_sample.rules.normalisation import (
    channel_sums_by_definition,
    channel_sums_in_one_pass,
)
from fedcurv.per_sample.rules.registry import rule_for


def batch_norm(make, **options):
    layer = make(4, **options)
    if layer.running_mean is not None:
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer.eval()


FLAT, SEQUENCE, IMAGE, VOLUME = (5, 4), (5, 3, 4), (5, 4, 3, 3), (5, 4, 2, 2, 2)

CASES = {
    "linear": (lambda: nn.Linear(4, 3), FLAT),
    "linear without bias": (lambda: nn.Linear(4, 3, bias=False), FLAT),
    "linear on one position": (lambda: nn.Linear(4, 3), (5, 1, 1, 4)),
    "linear on sequences": (lambda: nn.Linear(4, 3), SEQUENCE),
    "linear on pictures": (lambda: nn.Linear(4, 3), (5, 2, 3, 4)),
    "layer norm": (lambda: nn.LayerNorm(4), FLAT),
    "layer norm on sequences": (lambda: nn.LayerNorm(4), SEQUENCE),
    "layer norm over two axes": (lambda: nn.LayerNorm((3, 4)), SEQUENCE),
    "layer norm over the last of three axes": (lambda: nn.LayerNorm(3), IMAGE),
    "layer norm without bias": (lambda: nn.LayerNorm(4, bias=False), SEQUENCE),
    "rms norm": (lambda: nn.RMSNorm(4), SEQUENCE),
    "group norm": (lambda: nn.GroupNorm(2, 4), IMAGE),
    "group norm, flat": (lambda: nn.GroupNorm(2, 4), FLAT),
    "instance norm 1d": (lambda: nn.InstanceNorm1d(4, affine=True), (5, 4, 6)),
    "instance norm 3d": (lambda: nn.InstanceNorm3d(4, affine=True), VOLUME),
    "instance norm with running statistics": (
        lambda: batch_norm(nn.InstanceNorm2d, affine=True, track_running_stats=True),
        IMAGE,
    ),
    "batch norm, flat": (lambda: batch_norm(nn.BatchNorm1d), FLAT),
    "batch norm 1d": (lambda: batch_norm(nn.BatchNorm1d), (5, 4, 6)),
    "batch norm 2d": (lambda: batch_norm(nn.BatchNorm2d), IMAGE),
    "batch norm 3d": (lambda: batch_norm(nn.BatchNorm3d), VOLUME),
    "prelu with one slope": (lambda: nn.PReLU(), IMAGE),
    "prelu with a slope a channel": (lambda: nn.PReLU(4), IMAGE),
    "prelu, flat": (lambda: nn.PReLU(4), FLAT),
    "prelu, flat, one slope": (lambda: nn.PReLU(), FLAT),
    "embedding": (lambda: nn.Embedding(6, 3), None),
    "embedding with padding": (lambda: nn.Embedding(6, 3, padding_idx=2), None),
}


def case(name: str, dtype=torch.float64):
    torch.manual_seed(0)
    make, shape = CASES[name]
    layer = make().to(dtype)
    for parameter in layer.parameters():
        parameter.data.normal_()
    x = torch.randint(0, 6, (5, 4)) if shape is None else torch.randn(shape, dtype=dtype)
    g = torch.randn_like(layer(x))
    rows = [
        torch.autograd.grad(layer(x[n : n + 1]), list(layer.parameters()), g[n : n + 1])
        for n in range(len(x))
    ]
    names = [name for name, _ in layer.named_parameters()]
    columns = [torch.stack(column) for column in zip(*rows, strict=True)]
    return layer, x, g, dict(zip(names, columns, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_single_samples(name):
    layer, x, g, expected = case(name)
    got = rule_for(layer).gradients(layer, x, g)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(got[parameter], gradient)


@pytest.mark.parametrize("name", CASES)
def test_squares_are_added(name):
    layer, x, g, expected = case(name)
    rule = rule_for(layer)
    totals = {name: rule.new_total(p).add_(1) for name, p in layer.named_parameters()}
    rule.add_squares(layer, x, g, totals)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(totals[parameter], 1 + gradient.square().sum(0))


@pytest.mark.parametrize("name", CASES)
def test_inputs_and_gradients_stay_as_they_are(name):
    layer, x, g, _ = case(name)
    rule, before = rule_for(layer), (x.clone(), g.clone())
    rule.gradients(layer, x, g)
    rule.add_squares(layer, x, g, {n: rule.new_total(p) for n, p in layer.named_parameters()})
    assert torch.equal(x, before[0]) and torch.equal(g, before[1])


@pytest.mark.parametrize("name", ["linear", "linear on sequences", "batch norm 2d", "layer norm"])
def test_frozen_parameters_get_nothing(name):
    layer, x, g, expected = case(name)
    rule = rule_for(layer)
    for parameter, gradient in expected.items():
        totals = {parameter: rule.new_total(getattr(layer, parameter))}
        rule.add_squares(layer, x, g, totals)
        torch.testing.assert_close(totals[parameter], gradient.square().sum(0))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Embedding(3, 2, max_norm=1.0),
        nn.Embedding(3, 2, scale_grad_by_freq=True),
        nn.Embedding(3, 2, sparse=True),
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.LSTM(2, 2),
        type("Transposes", (nn.ConvTranspose2d,), {"forward": lambda self, x: 2 * x})(2, 2, 2),
        type("Computes", (nn.Linear,), {"forward": lambda self, x: 2 * x})(2, 2),
        type("Convolves", (nn.Conv2d,), {"_conv_forward": lambda *_: None})(2, 2, 2),
    ],
)
def test_there_is_no_rule_for_what_would_be_wrong(layer):
    assert rule_for(layer) is None


def test_a_subclass_that_computes_the_same_has_the_same_rule():
    for kind, arguments in ((nn.Linear, (2, 3)), (nn.Conv2d, (2, 3, 2)), (nn.LayerNorm, (2,))):
        subclass = type("Subclass", (kind,), {"extra": 1})
        assert rule_for(subclass(*arguments)) is rule_for(kind(*arguments)) is not None


@pytest.mark.parametrize("shape", [FLAT, IMAGE])
def test_both_ways_to_sum_over_channels_agree(shape):
    """The one is for CPUs, the other for GPUs."""
    x, g = torch.randn(2, *shape, dtype=torch.float64)
    mean, scale = torch.rand(2, *shape[:2], dtype=torch.float64)
    expected = channel_sums_in_one_pass(x, g, mean, scale)
    torch.testing.assert_close(channel_sums_by_definition(x, g, mean, scale), expected)
