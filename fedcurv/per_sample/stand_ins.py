"""Which modules of a model have a stand-in."""

from torch import nn

from fedcurv.per_sample.attention import AttentionByProjections
from fedcurv.per_sample.projections import StandIn
from fedcurv.per_sample.recurrent import RecurrentByProjections


def stand_ins_for(model: nn.Module) -> dict[str, StandIn]:
    """Return stand-ins for those of the model's modules that have one, by the module's name."""
    found: dict[str, StandIn] = {}
    for name, module in model.named_modules():
        if AttentionByProjections.fits(module):
            found[name] = AttentionByProjections(module)
        elif RecurrentByProjections.fits(module):
            found[name] = RecurrentByProjections(module)
    return found
