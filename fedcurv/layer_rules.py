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
    """Per-sample gradients as matrix products, or as one convolution with the samples as groups."""
    x, padding = _padded(module, x)
    weight = g.new_zeros(module.weight.shape)
    size = max(1, _NUMBERS_AT_ONCE // module.weight.numel())
    gradients = _by_unfolding if x.ndim == 4 and module.groups == 1 else _by_grouping
    for x_part, g_part in zip(torch.split(x, size), torch.split(g, size), strict=True):
        weight += gradients(module, x_part, g_part, padding).square_().sum(0).view_as(weight)
    return {"weight": weight, "bias": g.flatten(2).sum(2).square_().sum(0)}


def _padded(module: nn.Conv2d, x: Tensor) -> tuple[Tensor, Sequence[int]]:
    """Return the input and the zeros that are still to be padded to each side."""
    if isinstance(module.padding, tuple) and module.padding_mode == "zeros":
        return x, module.padding
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    around = module._reversed_padding_repeated_twice  # what the layer itself pads with
    return nn.functional.pad(x, around, mode=mode), (0,) * len(module.stride)


def _by_unfolding(module: nn.Conv2d, x: Tensor, g: Tensor, padding: Sequence[int]) -> Tensor:
    columns = nn.functional.unfold(
        x,
        module.kernel_size,
        dilation=module.dilation,
        padding=padding,  # type: ignore[arg-type]
        stride=module.stride,
    )
    return g.flatten(2) @ columns.mT


def _by_grouping(module: nn.Conv2d, x: Tensor, g: Tensor, padding: Sequence[int]) -> Tensor:
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
    per_sample: Tensor = gradients.view(samples, *module.weight.shape)
    return per_sample


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
