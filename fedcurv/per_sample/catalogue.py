"""Which rule a module has."""

from torch import nn

from fedcurv.per_sample.attention import Projection
from fedcurv.per_sample.convolutions import Convolution
from fedcurv.per_sample.rules import (
    BatchNorm,
    Embedding,
    GroupNorm,
    LayerNorm,
    LayerRule,
    Linear,
    PReLU,
    RMSNorm,
)

RULES: dict[type[nn.Module], LayerRule] = {
    nn.Linear: Linear(),
    Projection: Linear(),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), Convolution()),
    nn.Embedding: Embedding(),
    nn.LayerNorm: LayerNorm(),
    nn.RMSNorm: RMSNorm(),
    nn.GroupNorm: GroupNorm(),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), GroupNorm()),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), BatchNorm()),
    nn.PReLU: PReLU(),
}


# what a subclass with its parent's rule must not have of its own
_COMPUTING = ("forward", "_conv_forward", "__call__")


def rule_for(module: nn.Module) -> LayerRule | None:
    """Return the rule for a module, or None if there is none for it as it is configured.

    A subclass has its parent's, unless it computes something of its own.
    """
    kind = next((k for k in type(module).__mro__ if k in RULES), None)
    if kind is None or "forward" in vars(module):
        return None
    if any(getattr(type(module), m, None) is not getattr(kind, m, None) for m in _COMPUTING):
        return None
    rule = RULES[kind]
    if isinstance(module, nn.Embedding):
        plain = module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
        return rule if plain else None
    if isinstance(module, nn.modules.batchnorm._NormBase):
        if module.running_mean is not None:
            return BatchNorm()
        return None if isinstance(rule, BatchNorm) else rule
    return rule
