"""Parameters as an optimizer steps them, for a term that pulls beside its steps."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from fedcurv.parameters import listed

# a parameter group of an optimizer: its options, and which of the parameters are in it
Part = tuple[dict[str, Any], list[int]]

Owner = TypeVar("Owner")


class Steppable:
    """Some parameters, as optimizers step them.

    What an optimizer holds is looked up at each step: groups are added, parameters frozen and
    unfrozen while a term is attached.

    Args:
        named: the parameters, by name; further ones are given by their place in this order.
    """

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self.names = list(named)
        self.parameters = list(named.values())
        self._index_of = {id(p): index for index, p in enumerate(self.parameters)}

    def held_by(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Return the names of the parameters that the optimizer holds, frozen ones too."""
        found = (self._index_of.get(id(p)) for g in optimizer.param_groups for p in g["params"])
        return [self.names[index] for index in found if index is not None]

    def stepped_by(self, optimizer: torch.optim.Optimizer) -> Iterable[Part]:
        """Yield each group with those of its parameters that require gradients now."""
        index_of = self._index_of
        for group in optimizer.param_groups:
            indices = [
                index_of[id(p)] for p in group["params"] if id(p) in index_of and p.requires_grad
            ]
            if indices:
                yield group, indices

    def require_dense_steps(self, optimizer: torch.optim.Optimizer, remedy: str) -> None:
        """Refuse an optimizer that takes sparse gradients only: a term's gradient is dense.

        Raises:
            TypeError: naming a parameter.
        """
        if isinstance(optimizer, torch.optim.SparseAdam):
            raise TypeError(
                f"expected an optimizer that takes dense gradients, got SparseAdam for "
                f"{listed(self.held_by(optimizer))}, where the term's gradient is not sparse; "
                f"{remedy}"
            )


def require_single_gradient(optimizer: torch.optim.Optimizer, remedy: str) -> None:
    """Refuse an optimizer that evaluates the loss several times within a step.

    Raises:
        TypeError: for LBFGS.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(
            f"expected an optimizer that takes one gradient per step, got LBFGS; {remedy}"
        )


def require_no_closure(
    args: Sequence[Any], kwargs: Mapping[str, Any], term: str, remedy: str
) -> None:
    """Refuse a step that is given a closure, whose backward pass would erase a gradient.

    Raises:
        RuntimeError: naming the term.
    """
    if any(argument is not None for argument in (*args[1:], kwargs.get("closure"))):
        raise RuntimeError(
            f"expected optimizer.step() without a closure while {term}, got one; {remedy}"
        )


def scale_of(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> float | Tensor:
    """Return by what a term's gradient must be multiplied so that the step follows it downhill."""
    sign = -1.0 if group.get("maximize") else 1.0
    # set while torch.amp.GradScaler runs a fused optimizer, whose gradients are still scaled
    scale = getattr(optimizer, "grad_scale", None)
    return sign if scale is None else sign * scale


def register_for_all(
    owner: Owner, felt: Callable[[Owner, torch.optim.Optimizer, Any, Any], None], *, before: bool
) -> RemovableHandle:
    """Call ``felt(owner, optimizer, args, kwargs)`` before or after every optimizer's steps.

    It ends with the owner, which hooks of all optimizers would outlive and must not keep alive.
    """
    this = weakref.ref(owner)

    def hook(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if (alive := this()) is not None:
            felt(alive, optimizer, args, kwargs)

    if before:
        handle = register_optimizer_step_pre_hook(hook)
    else:
        handle = register_optimizer_step_post_hook(hook)
    weakref.finalize(owner, handle.remove)
    return handle
