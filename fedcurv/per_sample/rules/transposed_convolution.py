"""Rule for transposed convolutions, in which input and gradient change places."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedcurv.per_sample.rules.convolution import framed, parts, windows
from fedcurv.per_sample.rules.products import add_squared_products
from fedcurv.per_sample.rules.registry import LayerRule, register_rule

_Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


@register_rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
class TransposedConvolution(LayerRule):
    """Transposed convolutions of one, two or three dimensions.

    The weight's gradient of a sample is the product, over the input's positions, of the input and
    of what the output's gradient is where the kernel lay.
    """

    def takes_samples(self, module: nn.Module, axes: int) -> bool:
        """Return False for an input without an axis of samples."""
        assert isinstance(module, _Transposed)
        return axes == module.weight.ndim

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return every sample's gradient."""
        assert isinstance(module, _Transposed)
        seen = _seen(module, x, g)
        weight = torch.stack(
            [
                some_x.flatten(2) @ some
                for some_x, some in zip(_groups(module, x), seen, strict=True)
            ],
            1,
        )
        return {"weight": _as_weights(module, weight), "bias": g.flatten(2).sum(2)}

    def add_squares(
        self, module: nn.Module, x: Tensor, g: Tensor, totals: Mapping[str, Tensor]
    ) -> None:
        """Form the products of a few samples at a time."""
        assert isinstance(module, _Transposed)
        if "bias" in totals:
            totals["bias"].add_(g.flatten(2).sum(2).square_().sum(0))
        if "weight" not in totals:
            return
        channels = module.in_channels // module.groups
        squares = g.new_zeros(module.groups, channels, module.weight[0].numel())
        for some_x, some_g in parts(x, g, module.weight[0].numel() * x[0, 0].numel()):
            by_group = zip(
                squares, _groups(module, some_x), _seen(module, some_x, some_g), strict=True
            )
            for total, of_group, seen in by_group:
                add_squared_products(total, of_group.flatten(2), seen)
        totals["weight"].add_(_as_weights(module, squares.unsqueeze(0))[0])


def _groups(module: _Transposed, x: Tensor) -> tuple[Tensor, ...]:
    return x.chunk(module.groups, 1)


def _seen(module: _Transposed, x: Tensor, g: Tensor) -> list[Tensor]:
    """Return for each group (N, positions of the input, kernel and channels of the output)."""
    assert isinstance(module.padding, tuple)
    padded = framed(g, (0, 0, *module.padding))
    return [
        windows(module, some, x).reshape(len(x), x[0, 0].numel(), -1)
        for some in padded.chunk(module.groups, 1)
    ]


def _as_weights(module: _Transposed, products: Tensor) -> Tensor:
    """Return (N, groups, channels, kernel and channels) in the weight's own order."""
    inner = (*module.kernel_size, module.out_channels // module.groups)
    return products.view(len(products), module.in_channels, *inner).movedim(-1, 2)
