"""Rule for rectifiers with slopes that are learned."""

from torch import Tensor, nn

from fedcurv.per_sample.rules.registry import LayerRule, register_rule


@register_rule(nn.PReLU)
class PReLU(LayerRule):
    """The slope multiplies negative inputs."""

    def takes_samples(self, module: nn.Module, axes: int) -> bool:
        """Return whether there is an axis of channels beside that of the samples."""
        return axes > 1

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return the sums over positions, and over channels where they share one slope."""
        assert isinstance(module, nn.PReLU)
        by_channel = (g * x.clamp(max=0)).flatten(2) if x.ndim > 2 else (g * x.clamp(max=0))
        by_channel = by_channel.sum(2) if by_channel.ndim > 2 else by_channel
        shared = module.num_parameters == 1
        return {"weight": by_channel.sum(1, keepdim=True) if shared else by_channel}
