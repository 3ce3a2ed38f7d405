"""The parameters of a model that take part: the trainable ones, by name."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require gradients, keyed by name; a tied parameter appears once.

    Raises:
        ValueError: if no parameter requires gradients.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError(
            f"expected a model with trainable parameters, got {type(model).__name__} in which none "
            "requires gradients; unfreeze what should be trained"
        )
    return parameters


def gradients_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return every parameter's ``.grad``, set to zeros where there is none yet."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    return gradients
