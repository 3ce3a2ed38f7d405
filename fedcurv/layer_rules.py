"""Sums over samples of squared per-sample gradients, layer by layer, in closed form.

A rule gets a module, its input x and the gradient g of the summed loss with respect to its output,
both with the samples along the first axis, and returns Σ_n (∂ℓ_n/∂p)² for each of the module's own
parameters. It holds for a module that is called once per forward pass and treats samples apart.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

# (module, x, g); each rule takes modules of its own type
Rule = Callable[..., dict[str, Tensor]]

# per-sample gradients of convolutions and sequences are formed for so many numbers at a time
_NUMBERS_AT_ONCE = 2**21

# found by timing the convolutions of CNNs and ResNet-18 on a CPU: where one convolution with the
# samples as groups is faster than a matrix product for each sample
_MANY_POSITIONS, _SMALL_WEIGHT, _TINY_WEIGHT = 128, 2**16, 2**12
_NUMBERS_IN_CACHE = 2**18


def rule_for(module: nn.Module) -> Rule | None:
    """Return the rule for a module, or None if there is none for it as it is configured."""
    rule = _RULES.get(type(module))  # a subclass may compute something else
    if isinstance(module, nn.Embedding):
        plain = module.padding_idx is None and module.max_norm is None
        return rule if plain and not module.scale_grad_by_freq and not module.sparse else None
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        return rule if module.track_running_stats else None
    return rule


def linear(module: nn.Linear, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """On (N, F) the square of an outer product is the outer product of squares."""
    if x.ndim == 2:
        squared = g.square()
        return {"weight": squared.T @ x.square(), "bias": squared.sum(0)}
    x, g = x.flatten(1, -2), g.flatten(1, -2)
    weight = g.new_zeros(module.weight.shape)
    size = max(1, _NUMBERS_AT_ONCE // module.weight.numel())
    for x_part, g_part in zip(torch.split(x, size), torch.split(g, size), strict=True):
        weight += (g_part.mT @ x_part).square_().sum(0)
    return {"weight": weight, "bias": g.sum(1).square_().sum(0)}


def convolution(module: nn.Conv2d, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Form the gradients of a few samples at a time, by the cheapest way for the shapes."""
    positions, numbers = g[0, 0].numel(), module.weight.numel()
    is_small = (
        numbers <= _SMALL_WEIGHT and positions >= _MANY_POSITIONS
    ) or numbers <= _TINY_WEIGHT
    if x.ndim != 4 or module.groups > 1 or (x.device.type == "cpu" and is_small):
        squares = _by_grouping
    else:
        squares = _one_by_one if x.device.type == "cpu" else _all_at_once
    x, padding = _padded(module, x)
    weight = g.new_zeros(module.weight.shape)
    size = max(1, _NUMBERS_AT_ONCE // numbers)
    for x_part, g_part in zip(torch.split(x, size), torch.split(g, size), strict=True):
        squares(module, x_part, g_part, padding, weight)
    return {"weight": weight, "bias": g.flatten(2).sum(2).square_().sum(0)}


def _padded(module: nn.Conv2d, x: Tensor) -> tuple[Tensor, Sequence[int]]:
    """Return the input and the zeros that are still to be padded to each side."""
    if isinstance(module.padding, tuple) and module.padding_mode == "zeros":
        return x, module.padding
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    around = module._reversed_padding_repeated_twice  # what the layer itself pads with
    return nn.functional.pad(x, around, mode=mode), (0,) * len(module.stride)


def _windows(module: nn.Conv2d, x: Tensor, g: Tensor, padding: Sequence[int]) -> Tensor:
    """Return a view (N, channels, *kernel, *positions): what each filter saw at each position."""
    height, width = padding
    x = nn.functional.pad(x, (width, width, height, height)) if height or width else x.contiguous()
    sample, channel, row, column = x.stride()
    dilation, stride = module.dilation, module.stride
    return x.as_strided(
        (*x.shape[:2], *module.kernel_size, *g.shape[2:]),
        (
            *(sample, channel, row * dilation[0], column * dilation[1]),
            *(row * stride[0], column * stride[1]),
        ),
    )


def _all_at_once(
    module: nn.Conv2d, x: Tensor, g: Tensor, padding: Sequence[int], total: Tensor
) -> None:
    """Add the squares of all samples in few large operations, as accelerators like them."""
    seen = _windows(module, x, g, padding).flatten(4).flatten(1, 3)
    total += (g.flatten(2) @ seen.mT).square_().sum(0).view_as(total)


def _one_by_one(
    module: nn.Conv2d, x: Tensor, g: Tensor, padding: Sequence[int], total: Tensor
) -> None:
    """Add the squares sample by sample, some filters at a time: they stay in a cache."""
    windows = _windows(module, x, g, padding)
    flat = total.view(len(total), -1)
    rows = max(1, min(len(flat), _NUMBERS_IN_CACHE // flat.shape[1]))
    products = flat.new_empty(rows, flat.shape[1])
    seen = x.new_empty(windows.shape[1:])
    for window, gradient in zip(windows, g.flatten(2), strict=True):
        seen.copy_(window)
        by_position = seen.view(flat.shape[1], -1).T
        for first in range(0, len(flat), rows):
            part = flat[first : first + rows]
            product = products[: len(part)]
            torch.mm(gradient[first : first + rows], by_position, out=product)
            part.addcmul_(product, product)


def _by_grouping(
    module: nn.Conv2d, x: Tensor, g: Tensor, padding: Sequence[int], total: Tensor
) -> None:
    """Add the squares by one convolution in which each sample is a group of its own."""
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
    for gradient in gradients.view(samples, *total.shape):
        total.addcmul_(gradient, gradient)


def layer_norm(module: nn.LayerNorm, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """The weight multiplies the normalised input; positions of a sample are summed first."""
    normalised = nn.functional.layer_norm(x, module.normalized_shape, eps=module.eps)
    return _scale_and_shift(g * normalised, g, len(module.normalized_shape))


def rms_norm(module: nn.RMSNorm, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """As layer normalisation, without a shift."""
    normalised = nn.functional.rms_norm(x, module.normalized_shape, eps=module.eps)
    return _scale_and_shift(g * normalised, g, len(module.normalized_shape))


def group_norm(module: nn.GroupNorm, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """One weight a channel."""
    normalised = nn.functional.group_norm(x, module.num_groups, eps=module.eps)
    return _per_channel(g * normalised, g)


def instance_norm(module: nn.InstanceNorm2d, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """One weight a channel; statistics of the sample unless the module keeps running ones."""
    if module.track_running_stats:
        return batch_norm(module, x, g)
    return _per_channel(g * nn.functional.instance_norm(x, eps=module.eps), g)


def batch_norm(
    module: nn.BatchNorm2d | nn.InstanceNorm2d, x: Tensor, g: Tensor
) -> dict[str, Tensor]:
    """In eval mode: normalised by the running statistics, which are constants."""
    normalised = nn.functional.batch_norm(
        x, module.running_mean, module.running_var, eps=module.eps
    )
    return _per_channel(g * normalised, g)


def embedding(module: nn.Embedding, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Sum what a sample does to a row over its positions, square, and add up by row."""
    sample = torch.arange(len(x), device=x.device).view(-1, *[1] * (x.ndim - 1)).expand_as(x)
    keys, place = torch.unique(sample * module.num_embeddings + x, return_inverse=True)
    per_sample = g.new_zeros(len(keys), module.embedding_dim)
    per_sample.index_add_(0, place.flatten(), g.flatten(0, -2))
    weight = g.new_zeros(module.weight.shape)
    weight.index_add_(0, keys % module.num_embeddings, per_sample.square_().to(weight))
    return {"weight": weight}


def _scale_and_shift(scaled: Tensor, g: Tensor, axes: int) -> dict[str, Tensor]:
    def squares(t: Tensor) -> Tensor:
        return (t.flatten(1, -axes - 1).sum(1) if t.ndim - axes > 1 else t).square().sum(0)

    return {"weight": squares(scaled), "bias": squares(g)}


def _per_channel(scaled: Tensor, g: Tensor) -> dict[str, Tensor]:
    def squares(t: Tensor) -> Tensor:
        return (t.flatten(2).sum(2) if t.ndim > 2 else t).square().sum(0)

    return {"weight": squares(scaled), "bias": squares(g)}


_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: rms_norm,
    nn.GroupNorm: group_norm,
    nn.InstanceNorm1d: instance_norm,
    nn.InstanceNorm2d: instance_norm,
    nn.InstanceNorm3d: instance_norm,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.BatchNorm3d: batch_norm,
    nn.Embedding: embedding,
}
