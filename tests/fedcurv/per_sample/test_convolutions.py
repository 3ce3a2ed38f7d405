import itertools

import pytest
import torch
from torch import nn

from fedcurv.per_sample.rules import convolution as convolutions
from fedcurv.per_sample.rules.convolution import Convolution

SETTINGS = [
    (dims, mode, padding, dilation, stride, groups)
    for dims, mode, padding, dilation, stride, groups in itertools.product(
        (1, 2, 3), ("zeros", "reflect", "circular"), (0, 1, "valid", "same"), (1, 2), (1, 2), (1, 2)
    )
    if not (padding == "same" and stride == 2)  # torch has no such convolution
]


def layer_of(dims: int, channels: int, filters: int, kernel, **options) -> nn.Module:
    torch.manual_seed(0)
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](
        channels, filters, kernel, **options
    ).double()


def case(layer: nn.Module, sides: tuple[int, ...], samples: int = 4):
    x = torch.randn(samples, layer.in_channels, *sides, dtype=torch.float64)
    g = torch.randn_like(layer(x))
    squares = {name: torch.ones_like(p) for name, p in layer.named_parameters()}
    for n in range(samples):
        gradients = torch.autograd.grad(layer(x[n : n + 1]), list(layer.parameters()), g[n : n + 1])
        for total, gradient in zip(squares.values(), gradients, strict=True):
            total += gradient**2
    return x, g, squares


def totals_of(layer: nn.Module) -> dict[str, torch.Tensor]:
    rule = Convolution()
    return {name: rule.new_total(p).add_(1) for name, p in layer.named_parameters()}


@pytest.mark.parametrize(("dims", "mode", "padding", "dilation", "stride", "groups"), SETTINGS)
def test_convolutions_of_all_settings(dims, mode, padding, dilation, stride, groups):
    options = {"padding": padding, "padding_mode": mode, "dilation": dilation}
    layer = layer_of(dims, 2, 4, 2, stride=stride, groups=groups, **options)
    x, g, expected = case(layer, (5,) * dims)
    got = totals_of(layer)
    Convolution().add_squares(layer, x, g, got)
    for name, gradient in Convolution().gradients(layer, x, g).items():
        torch.testing.assert_close(gradient.square().sum(0) + 1, expected[name])
        torch.testing.assert_close(got[name], expected[name])


@pytest.mark.parametrize("at_once", [1, 200, 2**18])
@pytest.mark.parametrize("options", [{}, {"padding": (2, 1)}, {"stride": (2, 3)}, {"dilation": 2}])
@pytest.mark.parametrize("way", ["positions_innermost", "channels_innermost", "by_grouping"])
def test_all_ways_agree(way, options, at_once, monkeypatch):
    """Which of them is taken depends on shapes and device."""
    monkeypatch.setattr(convolutions, "_NUMBERS_AT_ONCE", at_once)
    layer = layer_of(2, 3, 5, (3, 2), **options)
    x, g, expected = case(layer, (7, 8))
    total = totals_of(layer)["weight"]
    getattr(convolutions, f"_add_{way}")(layer, x, g, total)
    torch.testing.assert_close(total, expected["weight"])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_single_position(dims):
    layer = layer_of(dims, 20, 5, 3, padding=1)
    x, g, expected = case(layer, (1,) * dims)
    got = totals_of(layer)
    Convolution().add_squares(layer, x, g, got)
    torch.testing.assert_close(got, expected)


def way(layer: nn.Module, sides: tuple[int, ...]) -> str:
    x = torch.empty(1, layer.in_channels, *sides)
    return convolutions._way(layer.float(), x, layer(x).detach()).__name__


def test_the_way_is_chosen_by_shape():
    assert way(layer_of(2, 64, 64, 3, padding=1), (32, 32)) == "_add_by_grouping"
    assert way(layer_of(2, 64, 64, 3, padding=1, groups=64), (8, 8)) == "_add_by_grouping"
    assert way(layer_of(2, 1, 32, 5), (28, 28)) == "_add_positions_innermost"
    assert way(layer_of(2, 64, 128, 1), (8, 8)) == "_add_positions_innermost"
    assert way(layer_of(2, 256, 256, 3, padding=1), (8, 8)) == "_add_channels_innermost"


def test_frozen_parameters_cost_nothing():
    layer = layer_of(2, 2, 4, 3)
    x, g, expected = case(layer, (5, 5))
    bias = {"bias": totals_of(layer)["bias"]}
    Convolution().add_squares(layer, x, g, bias)
    torch.testing.assert_close(bias, {"bias": expected["bias"]})
