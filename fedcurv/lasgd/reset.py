"""What is left in an optimizer of steps that were left out because they were not finite."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# a maximum beside a mean, and a mean whose square is taken off that of squares: where these are
# finite, as averaged ones are, zero makes no step too large, and they keep their count of steps
_BEGIN_AT_ZERO = {"max_exp_avg_sq", "grad_avg"}


@torch.no_grad()
def clear_what_is_not_finite(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]
) -> None:
    """Let the state of parameters begin anew where it has NaN or infinity, and only there.

    A parameter's whole state is removed, as means that begin at zero need a step count that does so
    too; torch's optimizers make it again in the next step. Where Adagrad and ASGD count steps for
    their schedule, and where the rest of the state is good, the numbers alone are set anew. So they
    are, to zero, in optimizers that are not torch's: these may have made their state when they
    were, and never again.

    Args:
        optimizer: after what is averaged has been set to the common values.
        parameters: that it trains, with the values from which it goes on.
    """
    states: Mapping[Tensor, dict[str, Any]] = getattr(optimizer, "state", {})
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for parameter in parameters:
        state = states.get(parameter, {})
        broken = {name: value for name, value in state.items() if _is_broken(value)}
        if not broken:
            continue
        if isinstance(optimizer, torch.optim.Adagrad):
            first = groups[id(parameter)]["initial_accumulator_value"]
            broken["sum"].masked_fill_(~broken["sum"].isfinite(), first)
        elif isinstance(optimizer, torch.optim.ASGD) and broken.keys() == {"ax"}:
            broken["ax"].copy_(parameter)
        elif broken.keys() <= _BEGIN_AT_ZERO or not _is_torchs(optimizer):
            for value in broken.values():
                value.masked_fill_(~value.isfinite(), 0.0)
        else:
            state.clear()


def _is_broken(value: object) -> bool:
    if not (isinstance(value, Tensor) and value.is_floating_point()):
        return False
    return not bool(value.isfinite().all())


def _is_torchs(optimizer: torch.optim.Optimizer) -> bool:
    kinds = [kind for kind in type(optimizer).__mro__ if kind is not torch.optim.Optimizer]
    return any(f"{kind.__module__}.".startswith("torch.optim.") for kind in kinds)
