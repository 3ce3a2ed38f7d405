"""Parameters as an optimizer steps them, for a term that pulls beside its steps."""

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

# of an optimizer, and the arguments of its step
Hook = Callable[[torch.optim.Optimizer, Any, Any], None]

# of what torch puts around every class's ``step``, and that calls the hooks
_STEP = torch.optim.Optimizer.profile_hook_step(lambda _: None).__code__


# of torch.optim, whose steps are not of the size that the learning rate says
_OWN_RATES = {
    "Adadelta": "finds the size of its steps by itself",
    "Adafactor": "scales its learning rate by step and by weights",
    "ASGD": "lowers its learning rate from step to step",
    "Muon": "scales its learning rate by a matrix's shape",
    "Rprop": "finds the size of its steps by itself",
}


def why_not_at_rate(kind: type[torch.optim.Optimizer], options: Mapping[str, Any]) -> str:
    """Return why an optimizer's steps are not of the size that its learning rate says; or nothing.

    A proximal step goes as far as the learning rate says, and would be out of proportion.

    Args:
        kind: of optimizer, or derived from it.
        options: of its parameters.
    """
    if options.get("lr_decay"):
        return f"{kind.__name__} lowers its learning rate from step to step with lr_decay"
    own = [base.__name__ for base in kind.__mro__ if base.__module__.startswith("torch.optim")]
    return next((f"{kind.__name__} {_OWN_RATES[name]}" for name in own if name in _OWN_RATES), "")


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


def require_hooks(optimizer: object) -> None:
    """Refuse what calls no hooks at its steps.

    Raises:
        TypeError: for anything but an optimizer of torch's that was made in torch's way.
    """
    # which torch's own constructor makes
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise TypeError(
            "expected a torch.optim.Optimizer, whose steps call hooks, got "
            f"{type(optimizer).__name__}; give the optimizer that it wraps, or let it call "
            "super().__init__"
        )


def once_a_step(hook: Hook) -> Hook:
    """Return a hook that is called once in a step that is made of steps of the same optimizer.

    torch calls hooks for the ``step`` of a class and once more for that of its parent, where the
    one calls the other.
    """

    def outermost(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        # a compiled step has no frames of its own to be read
        if torch.compiler.is_compiling() or all(one is not optimizer for one in _steps_around()):
            hook(optimizer, args, kwargs)

    return outermost


def _steps_around() -> Iterator[torch.optim.Optimizer]:
    """Yield the optimizers whose steps are under way around the one that calls a hook.

    They are read off the stack: what is noted at one hook would stay if the step raised.
    """
    frame, is_present = sys._getframe(), True
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        if frame.f_code is _STEP:
            if not is_present:
                yield frame.f_locals["self"]
            is_present = False


class Attachments:
    """What a term is attached to, so that no step feels it twice."""

    def __init__(self) -> None:
        self._live: list[tuple[RemovableHandle, weakref.ref[torch.optim.Optimizer] | None]] = []

    def require_new(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Refuse to attach the term once more.

        Args:
            optimizer: None for all.

        Raises:
            ValueError: if this optimizer, or all, feel it already.
        """
        self._live = [one for one in self._live if _is_live(one[0])]
        if any(other is None or optimizer in (None, other()) for _, other in self._live):
            raise ValueError(
                "expected a term that no step feels yet, got one that is attached already, of "
                "which each step would feel twice as much; remove() its handle first, or leave "
                "out mode= or attach()"
            )

    def note(
        self, handle: RemovableHandle, optimizer: torch.optim.Optimizer | None
    ) -> RemovableHandle:
        """Remember a handle, and return it."""
        self._live.append((handle, None if optimizer is None else weakref.ref(optimizer)))
        return handle


def _is_live(handle: RemovableHandle) -> bool:
    hooks = handle.hooks_dict_ref()
    return hooks is not None and handle.id in hooks


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

    It ends with the owner, which hooks of all optimizers would outlive and must not keep alive. A
    step within that of another optimizer of the same parameters, which wraps it, is no step.
    """
    this = weakref.ref(owner)

    def hook(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if (alive := this()) is not None and not _is_wrapped(optimizer):
            felt(alive, optimizer, args, kwargs)

    if before:
        handle = register_optimizer_step_pre_hook(hook)
    else:
        handle = register_optimizer_step_post_hook(hook)
    weakref.finalize(owner, handle.remove)
    return handle


def _is_wrapped(optimizer: torch.optim.Optimizer) -> bool:
    def held(one: torch.optim.Optimizer) -> set[int]:
        return {id(p) for group in one.param_groups for p in group["params"]}

    if torch.compiler.is_compiling():
        return False
    return any(not held(optimizer).isdisjoint(held(around)) for around in _steps_around())
