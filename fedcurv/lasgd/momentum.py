"""Momentum: what of an optimizer's state is averaged with the model, and how fast it fades."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# by the state's name, the factor by which a step shrinks what was there before
_DECAYS: dict[str, Callable[[dict[str, Any]], float]] = {
    "momentum_buffer": lambda group: group["momentum"],
    "exp_avg": lambda group: group["betas"][0],
    "exp_avg_sq": lambda group: group["betas"][1],
    "square_avg": lambda group: group["alpha"],
}
# means of squares: a correction's rounding must not leave a root of a negative number
_NOT_NEGATIVE = {"exp_avg_sq", "square_avg"}


def _states_of(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> Sequence[str]:
    momentum = ("momentum_buffer",) if group.get("momentum", 0) > 0 else ()
    adams = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam)
    if isinstance(optimizer, adams):
        return ("exp_avg", "exp_avg_sq")
    if isinstance(optimizer, torch.optim.RMSprop):
        return ("square_avg", *momentum)
    if isinstance(optimizer, torch.optim.SGD):
        return momentum
    logger.info("the state of %s stays local: unknown how it fades", type(optimizer).__name__)
    return ()


@dataclass(frozen=True)
class _Slot:
    parameter: Tensor
    state: str
    group: dict[str, Any]


class Momentum:
    """The averaged tensors of an optimizer's state, in a fixed order.

    Torch makes them in a parameter's first step, so each may be missing for a while.

    Args:
        optimizer: SGD, RMSprop, Adam, AdamW, NAdam or RAdam; of others nothing is averaged.
        parameters: that it holds; they decide the order, which its groups may have otherwise.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        self._optimizer = optimizer
        parts = [(group, _states_of(optimizer, group)) for group in optimizer.param_groups]
        part_of = {id(p): part for part in parts for p in part[0]["params"]}
        self._slots = [
            _Slot(parameter, state, part_of[id(parameter)][0])
            for parameter in parameters
            for state in part_of[id(parameter)][1]
        ]
        self._slots.sort(key=lambda slot: slot.state in _NOT_NEGATIVE)

    @property
    def shapes(self) -> list[torch.Size]:
        """The tensors' shapes."""
        return [slot.parameter.shape for slot in self._slots]

    @property
    def signed(self) -> int:
        """How many numbers may have either sign, as means of squares have not: the first ones."""
        return sum(s.parameter.numel() for s in self._slots if s.state not in _NOT_NEGATIVE)

    def tensors(self) -> list[Tensor | None]:
        """Return the live tensors, None for those that are missing."""
        return [self._optimizer.state.get(s.parameter, {}).get(s.state) for s in self._slots]

    def decays(self, steps: int) -> list[float]:
        """Return for each the factor by which this many steps shrink what was there before."""
        # the optimizer's load_state_dict makes its groups anew
        groups = {id(p): g for g in self._optimizer.param_groups for p in g["params"]}
        return [
            _DECAYS[slot.state](groups.get(id(slot.parameter), slot.group)) ** steps
            for slot in self._slots
        ]

    def correct(self, corrections: Sequence[Tensor]) -> None:
        """Add to the tensors that exist."""
        live, added = self._existing(corrections)
        if live:
            torch._foreach_add_(live, added)
        squares = [
            tensor
            for slot, tensor in zip(self._slots, self.tensors(), strict=True)
            if tensor is not None and slot.state in _NOT_NEGATIVE
        ]
        if squares:
            torch._foreach_clamp_min_(squares, 0.0)

    def replace(self, values: Sequence[Tensor]) -> None:
        """Overwrite the tensors that exist."""
        live, new = self._existing(values)
        if live:
            torch._foreach_copy_(live, new)

    def _existing(self, beside: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        pairs = [(t, b) for t, b in zip(self.tensors(), beside, strict=True) if t is not None]
        return [tensor for tensor, _ in pairs], [other for _, other in pairs]
