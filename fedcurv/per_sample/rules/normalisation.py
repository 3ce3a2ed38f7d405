"""Rules for normalisation layers with weights."""

import torch
from torch import Tensor, nn

from fedcurv.per_sample.rules.registry import LayerRule, register_rule


@register_rule(nn.LayerNorm)
class LayerNorm(LayerRule):
    """The weight multiplies the normalised input; positions of a sample are summed."""

    any_axis = True

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return the sums over positions of g·x̂ and g."""
        assert isinstance(module, nn.LayerNorm)
        axes = len(module.normalized_shape)
        normalised = nn.functional.layer_norm(x, module.normalized_shape, eps=module.eps)
        return {"weight": _summed(g * normalised, axes), "bias": _summed(g, axes)}


@register_rule(nn.RMSNorm)
class RMSNorm(LayerRule):
    """As layer normalisation, without a shift."""

    any_axis = True

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return the sum over positions of g·x̂."""
        assert isinstance(module, nn.RMSNorm)
        normalised = nn.functional.rms_norm(x, module.normalized_shape, eps=module.eps)
        return {"weight": _summed(g * normalised, len(module.normalized_shape))}


@register_rule(nn.GroupNorm)
class GroupNorm(LayerRule):
    """One weight a channel, statistics of the sample's groups of channels."""

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return the sums over positions of g·x̂ and g."""
        assert isinstance(module, nn.GroupNorm)
        mean, scale = _group_statistics(x, module.num_groups, module.eps)
        return _channel_sums(x, g, mean, scale)


@register_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
class BatchNorm(LayerRule):
    """In eval mode: the running statistics are constants."""

    def fits(self, module: nn.Module) -> bool:
        """Return whether there are running statistics."""
        assert isinstance(module, nn.modules.batchnorm._NormBase)
        return module.running_mean is not None

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return the sums over positions of g·x̂ and g."""
        assert isinstance(module, nn.modules.batchnorm._NormBase)
        assert module.running_mean is not None and module.running_var is not None
        scale = (module.running_var.to(x.dtype) + module.eps).rsqrt()
        mean = module.running_mean.to(x.dtype)
        return _channel_sums(x, g, mean.expand(len(x), -1), scale.expand(len(x), -1))


@register_rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
class InstanceNorm(LayerRule):
    """Statistics of each of the sample's channels, or running ones, which are constants."""

    def takes_samples(self, module: nn.Module, axes: int) -> bool:
        """Return False for what instance normalisation takes for a sample alone."""
        kinds = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
        return all(axes == n + 3 for n, kind in enumerate(kinds) if isinstance(module, kind))

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return the sums over positions of g·x̂ and g."""
        assert isinstance(module, nn.modules.instancenorm._InstanceNorm)
        if module.running_mean is not None:
            return BatchNorm().gradients(module, x, g)
        mean, scale = _group_statistics(x, x.shape[1], module.eps)
        return _channel_sums(x, g, mean, scale)


def _summed(t: Tensor, axes: int) -> Tensor:
    """Sum over all axes but the first and the last ``axes``."""
    return t.flatten(1, -axes - 1).sum(1) if t.ndim - axes > 1 else t.clone()


def _group_statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return each channel's mean and 1/deviation, of its group, shapes (N, channels)."""
    samples, channels, positions = len(x), x.shape[1], x[0, 0].numel()
    _, mean, scale = torch.native_group_norm(
        x.contiguous(), None, None, samples, channels, positions, groups, eps
    )
    size = channels // groups
    return mean.repeat_interleave(size, 1), scale.repeat_interleave(size, 1)


def _channel_sums(x: Tensor, g: Tensor, mean: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Return Σ g·(x − mean)·scale and Σ g over positions, shapes (N, channels)."""
    sums = channel_sums_in_one_pass if x.device.type == "cpu" else channel_sums_by_definition
    weight, bias = sums(x, g, mean, scale)
    return {"weight": weight, "bias": bias}


def channel_sums_by_definition(
    x: Tensor, g: Tensor, mean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Return both sums, on any device."""
    x, g = x.reshape(*mean.shape, -1), g.reshape(*mean.shape, -1)
    normalised = (x - mean.unsqueeze(2)).mul_(scale.unsqueeze(2))
    return normalised.mul_(g).sum(2), g.sum(2)


def channel_sums_in_one_pass(
    x: Tensor, g: Tensor, mean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the same on a CPU by the backward pass of batch normalisation.

    To it each sample's channel is a channel of its own. On CUDA it does not give these sums.
    """
    _, weight, bias = torch.ops.aten.native_batch_norm_backward(
        g.contiguous().view(1, mean.numel(), -1),
        x.contiguous().view(1, mean.numel(), -1),
        None,
        None,
        None,
        mean.reshape(-1),
        scale.reshape(-1),
        True,
        0.0,
        [False, True, True],
    )
    return weight.view(mean.shape), bias.view(mean.shape)
