"""Nests of values, as arguments and outputs of modules are."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Nest = Any  # a value, or a tuple, list or dict of nests


def mapped(function: Callable[..., Any], nest: Nest, *others: Nest) -> Nest:
    """Return a nest with the function applied to each value, and to those at its place in others.

    Args:
        function: takes as many values as there are nests.
        nest: decides what is a value.
        others: built like ``nest``.
    """
    if isinstance(nest, PackedSequence):  # samples are mixed in it
        return function(nest, *others)
    if isinstance(nest, dict):
        return {k: mapped(function, v, *(o[k] for o in others)) for k, v in nest.items()}
    if isinstance(nest, tuple | list):
        items = [mapped(function, *values) for values in zip(nest, *others, strict=True)]
        return type(nest)(*items) if hasattr(nest, "_fields") else type(nest)(items)
    return function(nest, *others)


def tensors_of(nest: Nest) -> list[Tensor]:
    """Return the tensors of real numbers in a nest, in order."""
    found: list[Tensor] = []

    def keep(value: object) -> None:
        if isinstance(value, Tensor) and value.is_floating_point():
            found.append(value)

    mapped(keep, nest)
    return found
