"""Closed forms for squared per-sample gradients, one class for each kind of layer.

A rule gets a module, its input x and the gradient g of the summed loss with respect to its output,
both with the samples along the first axis. It holds for a module that treats samples apart.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedcurv.parameters import accumulation_dtype
from fedcurv.per_sample.products import add_squared_products


class LayerRule:
    """How the gradients of single samples follow from x and g.

    Attributes:
        any_axis: whether modules of this kind take samples along any axis.
    """

    any_axis = False

    def fits(self, module: nn.Module, axes: int) -> bool:
        """Return whether an input of so many axes is one of samples; else it is a sample itself."""
        return True

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return ∂ℓ_n/∂p of the module's own parameters, each of shape (N, *p.shape)."""
        raise NotImplementedError

    def add_squares(
        self, module: nn.Module, x: Tensor, g: Tensor, totals: Mapping[str, Tensor]
    ) -> None:
        """Add Σ_n (∂ℓ_n/∂p)² to the totals, for those parameters that have one."""
        for name, gradient in self.gradients(module, x, g).items():
            if name in totals:
                totals[name].add_(gradient.square_().sum(0))

    def summand(self, x: Tensor, g: Tensor) -> Tensor | None:
        """Return what ``add_summed`` takes, which may be summed over several g; None: nothing."""
        return None

    def add_summed(self, x: Tensor, summed: Tensor, totals: Mapping[str, Tensor]) -> None:
        """Add Σ_n Σ_v (∂ℓ_nv/∂p)² to the totals, given Σ_v summand(x, g_v)."""
        raise NotImplementedError

    def new_total(self, parameter: Tensor) -> Tensor:
        """Return zeros in the parameter's shape, laid out in memory as the rule likes it."""
        return torch.zeros_like(
            parameter,
            dtype=accumulation_dtype(parameter),
            memory_format=torch.contiguous_format,
            requires_grad=False,
        )


class Linear(LayerRule):
    """Positions between the samples' axis and the features are summed within a sample."""

    any_axis = True

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return one outer product per sample, or the sum of those of its positions."""
        x, g = _with_one_axis_of_positions(x), _with_one_axis_of_positions(g)
        return {"weight": g.mT @ x, "bias": g.sum(1)}

    def add_squares(
        self, module: nn.Module, x: Tensor, g: Tensor, totals: Mapping[str, Tensor]
    ) -> None:
        """Form the products of the positions, unless there is one alone."""
        if (summand := self.summand(x, g)) is not None:
            self.add_summed(x, summand, totals)
            return
        x, g = _with_one_axis_of_positions(x), _with_one_axis_of_positions(g)
        if "weight" in totals:
            add_squared_products(totals["weight"], g.mT, x)
        if "bias" in totals:
            totals["bias"].add_(g.sum(1).square_().sum(0))

    def summand(self, x: Tensor, g: Tensor) -> Tensor | None:
        """Return g², shape (N, features), if samples have one position."""
        one_position = x.ndim == 2 or x.shape[1:-1].numel() == 1
        return _without_positions(g).square() if one_position else None

    def add_summed(self, x: Tensor, summed: Tensor, totals: Mapping[str, Tensor]) -> None:
        """Add the outer products of squares, which are the squares of the outer products."""
        if "weight" in totals:
            totals["weight"].addmm_(summed.T, _without_positions(x).square())
        if "bias" in totals:
            totals["bias"].add_(summed.sum(0))


class Embedding(LayerRule):
    """What a sample does to a row is summed over the positions that look the row up."""

    any_axis = True

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return tables that are zero but for the rows that a sample uses."""
        rows, dimensions = _table(module)
        table = g.new_zeros(len(x) * rows, dimensions)
        first_row = rows * torch.arange(len(x), device=x.device).view(-1, *[1] * (x.ndim - 1))
        table.index_add_(0, (x + first_row).flatten(), _without_padding(module, x, g))
        return {"weight": table.view(len(x), rows, dimensions)}

    def add_squares(
        self, module: nn.Module, x: Tensor, g: Tensor, totals: Mapping[str, Tensor]
    ) -> None:
        """Number the distinct rows of each sample, in shapes that do not depend on values."""
        _, dimensions = _table(module)
        g = _without_padding(module, x, g)
        tokens, order = x.reshape(len(x), -1).sort(dim=1)  # one index a sample has no further axis
        first = torch.arange(len(x), device=x.device).unsqueeze(1) * tokens.shape[1]
        is_new = tokens[:, 1:] != tokens[:, :-1]
        place = (first + nn.functional.pad(is_new.cumsum(1), (1, 0))).flatten()
        per_sample = g.new_zeros(len(place), dimensions)
        per_sample.index_add_(0, place, g[(first + order).flatten()])
        row_of_place = torch.zeros_like(place).scatter_(0, place, tokens.flatten())
        totals["weight"].index_add_(0, row_of_place, per_sample.square_())


class LayerNorm(LayerRule):
    """The weight multiplies the normalised input; positions of a sample are summed."""

    any_axis = True

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return the sums over positions of g·x̂ and g."""
        assert isinstance(module, nn.LayerNorm)
        axes = len(module.normalized_shape)
        normalised = nn.functional.layer_norm(x, module.normalized_shape, eps=module.eps)
        return {"weight": _summed(g * normalised, axes), "bias": _summed(g, axes)}


class RMSNorm(LayerRule):
    """As layer normalisation, without a shift."""

    any_axis = True

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return the sum over positions of g·x̂."""
        assert isinstance(module, nn.RMSNorm)
        normalised = nn.functional.rms_norm(x, module.normalized_shape, eps=module.eps)
        return {"weight": _summed(g * normalised, len(module.normalized_shape))}


class GroupNorm(LayerRule):
    """One weight a channel, statistics of the sample's groups of channels."""

    def fits(self, module: nn.Module, axes: int) -> bool:
        """Return False for what instance normalisation takes for a sample alone."""
        kinds = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
        return all(axes == n + 3 for n, kind in enumerate(kinds) if isinstance(module, kind))

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return the sums over positions of g·x̂ and g."""
        groups = module.num_groups if isinstance(module, nn.GroupNorm) else x.shape[1]
        assert isinstance(module, nn.GroupNorm | nn.modules.instancenorm._InstanceNorm)
        mean, scale = _group_statistics(x, groups, module.eps)
        return _channel_sums(x, g, mean, scale)


class BatchNorm(LayerRule):
    """In eval mode: the running statistics are constants."""

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return the sums over positions of g·x̂ and g."""
        assert isinstance(module, nn.modules.batchnorm._NormBase)
        assert module.running_mean is not None and module.running_var is not None
        scale = (module.running_var.to(x.dtype) + module.eps).rsqrt()
        mean = module.running_mean.to(x.dtype)
        return _channel_sums(x, g, mean.expand(len(x), -1), scale.expand(len(x), -1))


class PReLU(LayerRule):
    """The slope multiplies negative inputs."""

    def fits(self, module: nn.Module, axes: int) -> bool:
        """Return whether there is an axis of channels beside that of the samples."""
        return axes > 1

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return the sums over positions, and over channels where they share one slope."""
        assert isinstance(module, nn.PReLU)
        by_channel = (g * x.clamp(max=0)).flatten(2) if x.ndim > 2 else (g * x.clamp(max=0))
        by_channel = by_channel.sum(2) if by_channel.ndim > 2 else by_channel
        shared = module.num_parameters == 1
        return {"weight": by_channel.sum(1, keepdim=True) if shared else by_channel}


def _without_positions(t: Tensor) -> Tensor:
    return t if t.ndim == 2 else t.flatten(1)


def _with_one_axis_of_positions(t: Tensor) -> Tensor:
    return t.flatten(1, -2) if t.ndim > 2 else t.unsqueeze(1)


def _summed(t: Tensor, axes: int) -> Tensor:
    """Sum over all axes but the first and the last ``axes``."""
    return t.flatten(1, -axes - 1).sum(1) if t.ndim - axes > 1 else t.clone()


def _table(module: nn.Module) -> tuple[int, int]:
    assert isinstance(module, nn.Embedding)
    return module.num_embeddings, module.embedding_dim


def _without_padding(module: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """Return g by position, zero where the table's row for padding was looked up."""
    assert isinstance(module, nn.Embedding)
    if module.padding_idx is not None:
        g = g.masked_fill((x == module.padding_idx).unsqueeze(-1), 0)
    return g.flatten(0, -2)


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
