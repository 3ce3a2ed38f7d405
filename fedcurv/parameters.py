"""The parameters of a model that take part, the trainable ones, and what goes with them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

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


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Return the type in which to compute beside this tensor: float32 at least."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def listed(names: Sequence[str]) -> str:
    """Return the first names, for an error."""
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")


def gradients_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return every parameter's ``.grad``, set to zeros where there is none yet."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    return gradients


@contextmanager
def fresh_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let these parameters require gradients, with ``.grad`` None at first; restore both after."""
    before = [(p, p.grad, p.requires_grad) for p in parameters]
    for parameter, _, _ in before:
        parameter.grad = None
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, gradient, required in before:
            parameter.grad = gradient
            parameter.requires_grad_(required)
