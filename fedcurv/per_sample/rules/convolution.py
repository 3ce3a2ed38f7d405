"""Closed forms for convolutions: three exact ways, the cheapest chosen by shape and device.

The weight's gradient of one sample is a matrix product over positions, of the output's gradient and
of what each filter saw. It may be formed as such, or by a convolution's own backward pass with the
samples as groups; with one position it needs not be formed at all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from fedcurv.parameters import accumulation_dtype
from fedcurv.per_sample.rules.products import add_squared_products
from fedcurv.per_sample.rules.registry import LayerRule, register_rule

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
# adds the squares of the weight's gradients, from (module, x, g), to a total
_Way = Callable[[_Convolution, Tensor, Tensor, Tensor], None]

# Measured on CPUs of two makers: small weights over many positions are convolution's own domain,
# and fewer channels than these are too few to be copied side by side.
_SMALL_WEIGHT, _MANY_POSITIONS, _FEW_CHANNELS = 2**17, 128, 16
# what a part of the samples may take beside the weights
_NUMBERS_AT_ONCE = 2**19
_NUMBERS_AT_ONCE_ON_ACCELERATORS = 2**26


@register_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
class Convolution(LayerRule):
    """Convolutions of one, two or three dimensions, with every padding, stride and grouping."""

    def takes_samples(self, module: nn.Module, axes: int) -> bool:
        """Return False for an input without an axis of samples."""
        assert isinstance(module, _Convolution)
        return axes == module.weight.ndim

    def new_total(self, parameter: Tensor) -> Tensor:
        """Return zeros; a weight's with its input channels innermost, as the products have them."""
        if parameter.ndim < 3:
            return super().new_total(parameter)
        filters, channels, *kernel = parameter.shape
        shape = (filters, *kernel, channels)
        dtype = accumulation_dtype(parameter)
        return torch.zeros(shape, dtype=dtype, device=parameter.device).movedim(-1, 1)

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return every sample's gradient."""
        assert isinstance(module, _Convolution)
        x, padding = _padded(module, x)
        return {"weight": _by_grouping(module, x, g, padding), "bias": g.flatten(2).sum(2)}

    def add_squares(
        self, module: nn.Module, x: Tensor, g: Tensor, totals: Mapping[str, Tensor]
    ) -> None:
        """Form the gradients of a few samples at a time, by the cheapest way for the shapes."""
        assert isinstance(module, _Convolution)
        if "bias" in totals:
            totals["bias"].add_(g.flatten(2).sum(2).square_().sum(0))
        if "weight" not in totals:
            return
        add_weight_squares = _way(module, x, g)
        add_weight_squares(module, x, g, totals["weight"])


def _way(module: _Convolution, x: Tensor, g: Tensor) -> _Way:
    positions, on_cpu = g[0, 0].numel(), x.device.type == "cpu"
    few_channels = module.in_channels < _FEW_CHANNELS
    small = module.weight.numel() <= _SMALL_WEIGHT and positions >= _MANY_POSITIONS
    if module.groups > 1 or (on_cpu and small and not few_channels):
        return _add_by_grouping
    if on_cpu and few_channels:
        return _add_positions_innermost
    if all(size == 1 for size in module.kernel_size):
        return _add_positions_innermost
    return _add_channels_innermost


def _add_by_grouping(module: _Convolution, x: Tensor, g: Tensor, total: Tensor) -> None:
    """Add the squares by convolutions in which each sample is a group of its own."""
    x, padding = _padded(module, x)
    squares = g.new_zeros(module.weight.shape)
    # each gradient is formed in the convolution's own layout, and then in torch's
    for some_x, some_g in parts(x, g, 2 * module.weight.numel()):
        for gradient in _by_grouping(module, some_x, some_g, padding):
            squares.addcmul_(gradient, gradient)
    total += squares


def _add_positions_innermost(module: _Convolution, x: Tensor, g: Tensor, total: Tensor) -> None:
    """Add squared products with what was seen laid out as (channels, *kernel, *positions)."""
    squares = g.new_zeros(len(module.weight), module.weight[0].numel())
    for some_x, some_g in parts(x, g, squares.shape[1] * g[0, 0].numel()):
        seen_at = windows(module, _fully_padded(module, some_x), some_g)
        dims = len(module.kernel_size)
        order = (0, -1, *range(1 + dims, 1 + 2 * dims), *range(1, 1 + dims))
        seen = seen_at.permute(order).reshape(len(some_x), squares.shape[1], -1)
        add_squared_products(squares, some_g.flatten(2), seen.mT)
    total += squares.view(total.shape)


def _add_channels_innermost(module: _Convolution, x: Tensor, g: Tensor, total: Tensor) -> None:
    """Add squared products with what was seen laid out as (*positions, *kernel, channels)."""
    squares = total.movedim(1, -1).view(len(total), -1)
    positions = g[0, 0].numel()
    memory = x.new_empty(0)
    for some_x, some_g in parts(x, g, squares.shape[1] * positions):
        seen_at = windows(module, _fully_padded(module, some_x, channels_innermost=True), some_g)
        numbers = seen_at.numel()
        memory = memory if memory.numel() >= numbers else memory.new_empty(numbers)
        seen = memory[:numbers].view(seen_at.shape).copy_(seen_at)
        seen = seen.view(len(some_x), positions, -1)
        if positions == 1:  # the square of an outer product is the outer product of squares
            squares.addmm_(some_g.flatten(1).square().T, seen.flatten(1).square_())
        else:
            add_squared_products(squares, some_g.flatten(2), seen)


def parts(x: Tensor, g: Tensor, numbers_per_sample: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield parts of the samples that are as many at once as are fast."""
    on_cpu = x.device.type == "cpu"
    at_once = _NUMBERS_AT_ONCE if on_cpu else _NUMBERS_AT_ONCE_ON_ACCELERATORS
    size = max(1, at_once // numbers_per_sample)
    return zip(torch.split(x, size), torch.split(g, size), strict=True)


def _padded(module: _Convolution, x: Tensor) -> tuple[Tensor, Sequence[int]]:
    """Return the input and the zeros that are still to be padded to each side."""
    if isinstance(module.padding, tuple) and module.padding_mode == "zeros":
        return x, module.padding
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    around = module._reversed_padding_repeated_twice  # what the layer itself pads with
    return nn.functional.pad(x, around, mode=mode), (0,) * len(module.stride)


def _fully_padded(module: _Convolution, x: Tensor, *, channels_innermost: bool = False) -> Tensor:
    """Return the padded input (N, channels, *sides), in memory as named or with channels last."""
    x, zeros = _padded(module, x)
    if channels_innermost:
        return framed(x.movedim(1, -1), (0, *zeros, 0)).movedim(-1, 1)
    return framed(x, (0, 0, *zeros))


def framed(x: Tensor, zeros: Sequence[int]) -> Tensor:
    """Return a contiguous copy with so many zeros at both ends of each axis; x itself if it is."""
    if not any(zeros):
        return x.contiguous()
    framed = x.new_zeros([side + 2 * zero for side, zero in zip(x.shape, zeros, strict=True)])
    inside = tuple(slice(n, n + side) for side, n in zip(x.shape, zeros, strict=True))
    framed[inside] = x
    return framed


def windows(module: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """Return a view (N, *positions, *kernel, channels): what each filter saw at each position.

    Args:
        module: whose kernel, stride and dilation are meant.
        x: padded input, shape (N, channels, *sides).
        g: with the positions along its last axes.
    """
    assert isinstance(module, nn.modules.conv._ConvNd)
    sample, channel, *sides = x.stride()
    between_positions = [side * stride for side, stride in zip(sides, module.stride, strict=True)]
    within_kernel = [side * step for side, step in zip(sides, module.dilation, strict=True)]
    return x.as_strided(
        (len(x), *g.shape[2:], *module.kernel_size, x.shape[1]),
        (sample, *between_positions, *within_kernel, channel),
    )


def _by_grouping(module: _Convolution, x: Tensor, g: Tensor, padding: Sequence[int]) -> Tensor:
    """Return the weight's gradient of every sample, shape (N, *weight.shape)."""
    samples = len(x)
    _, gradients, _ = torch.ops.aten.convolution_backward(
        g.flatten(0, 1).unsqueeze(0),
        x.flatten(0, 1).unsqueeze(0),
        g.new_empty(1).expand(samples * module.out_channels, *module.weight.shape[1:]),
        None,
        module.stride,
        padding,
        module.dilation,
        False,
        [0] * len(module.stride),
        samples * module.groups,
        [False, True, False],
    )
    result: Tensor = gradients.view(samples, *module.weight.shape)
    return result
