"""Optimizers of clients, by their names in torch.optim."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from fedcurv.clients.torch_classes import Classes, Named
from fedcurv.steps import why_not_at_rate

OPTIMIZERS = Classes(
    torch.optim,
    torch.optim.Optimizer,
    refused={
        "LBFGS": "it evaluates the loss several times in a step, which needs a closure",
        "SparseAdam": "it takes sparse gradients only, and a model's are dense",
    },
    # what else is said elsewhere, trains uphill, or is for graphs of CUDA and of gradients
    withheld=frozenset({"params", "lr", "maximize", "capturable", "differentiable"}),
)


def chosen_optimizer(
    named: Named, shared: Mapping[str, float]
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Return an optimizer's class, and its options beside the learning rate.

    Args:
        named: of torch.optim.
        shared: momentum and weight decay; each is for optimizers that have it, and 0 for others.

    Raises:
        ValueError: if there is no such optimizer or option, or one is given twice.
    """
    choice = OPTIMIZERS.choose(named)
    options = dict(choice.options)
    for key, value in shared.items():
        if key not in choice.known:
            if value:
                raise ValueError(f"{choice.cls.__name__} has no {key}; leave it at 0")
        elif key not in options:
            options[key] = value
        elif value:
            raise ValueError(f"{key} is given twice, as {value!r} and as {options[key]!r}")
    return choice.cls, options


def make_optimizer(
    named: Named, parameters: Iterable[nn.Parameter], lr: float, shared: Mapping[str, float]
) -> torch.optim.Optimizer:
    """Return an optimizer; see :func:`chosen_optimizer`.

    Args:
        named: of torch.optim.
        parameters: to step.
        lr: learning rate > 0.
        shared: momentum and weight decay.

    Raises:
        ValueError: also if it refuses the options or the parameters.
    """
    cls, options = chosen_optimizer(named, shared)
    try:
        return cls(parameters, lr=lr, **options)  # type: ignore[call-arg]  # every one has lr
    except Exception as error:  # of whatever class torch's checks raise
        raise ValueError(f"{cls.__name__} refuses this: {' '.join(str(error).split())}") from error


def check_optimizer(named: Named, shared: Mapping[str, float]) -> None:
    """Raise a ValueError unless there is such an optimizer, and it takes these options."""
    chosen_optimizer(named, shared)
    if not isinstance(named, str):  # only torch knows what options may be
        # a matrix, since some step nothing else
        make_optimizer(named, [nn.Parameter(torch.zeros(1, 1))], 1.0, shared)


def require_proximal(named: Named) -> None:
    """Raise a ValueError for an optimizer that FedCurv's proximal step cannot follow.

    See :func:`fedcurv.steps.why_not_at_rate`.
    """
    choice = OPTIMIZERS.choose(named)
    if why := why_not_at_rate(choice.cls, choice.options):
        raise ValueError(
            f"{why}, so that a proximal step of that rate would be out of proportion; use "
            "client.penalty_mode=gradient, or another client.optimizer"
        )
