"""One parameter's share of the penalty, θᵀPθ − 2θᵀQ, held in either of two forms."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from fedcurv.parameters import accumulation_dtype


class Quadratic:
    """Two tensors: P and Q, or the weight and the optimum of a proximal step, W and θ*.

    With c = 2·lr·λ they are W = cP/(1 + cP) and θ* = Q/P (0 where P is 0). Either form follows from
    the other in place, so that no more than the two are ever held. W is as exact as P where cP is
    small; where it is large, what rounding takes off 1 − W does not show in a step.

    Args:
        precision: P >= 0; becomes this object's own.
        weighted: Q, likewise; set to 0 where P is, as a slope without curvature has no optimum.

    Attributes:
        first: P or W.
        second: Q or θ*.
    """

    def __init__(self, precision: Tensor, weighted: Tensor) -> None:
        self.first = precision
        self.second = weighted.masked_fill_(precision == 0, 0)
        self._factor = 0.0  # c > 0 of the proximal form, 0 in the other

    def precision(self) -> Tensor:
        """Return P."""
        if self._factor == 0.0:
            return self.first
        smallest = torch.finfo(self.first.dtype).eps / 2
        return self.first / (1 - self.first).clamp_(min=smallest).mul_(self._factor)

    def weighted(self) -> Tensor:
        """Return Q."""
        return self.second if self._factor == 0.0 else self.second * self.precision()

    def optimum(self, elsewhere: Tensor) -> Tensor:
        """Return θ* where P > 0, and what is given elsewhere."""
        optimum = self.second / self.first if self._factor == 0.0 else self.second
        return torch.where(self.first > 0, optimum, elsewhere)

    def become_proximal(self, factor: float) -> None:
        """Hold W and θ* for this c > 0."""
        if self._factor == factor:
            return
        if self._factor == 0.0:
            self.second.div_(self.first).masked_fill_(self.first == 0, 0)
            self.first.mul_(factor).reciprocal_().add_(1).reciprocal_()
        else:  # W' = c'W / (c + (c' − c)W)
            divisor = (self.first * (factor - self._factor)).add_(self._factor)
            self.first.mul_(factor).div_(divisor)
        self._factor = factor

    def become_sums(self) -> None:
        """Hold P and Q."""
        if self._factor != 0.0:
            self.first, self.second = self.precision(), self.weighted()
            self._factor = 0.0


def plain_tensors() -> AbstractContextManager[None]:
    """Take tensors of subclasses as the plain ones that they are, until the end of the block."""
    plain: AbstractContextManager[None] = torch._C.DisableTorchFunctionSubclass()
    return plain


def beside(parameter: Tensor, statistic: Tensor, *, copy: bool) -> Tensor:
    """Return a statistic laid out as its parameter is, in float32 at least: Pθ − Q cancels."""
    dtype = accumulation_dtype(parameter)
    fits = (statistic.device, statistic.dtype, statistic.stride()) == (
        parameter.device,
        dtype,
        parameter.stride(),
    )
    if fits and not copy:
        return statistic
    return torch.empty_like(parameter, dtype=dtype).copy_(statistic)


def mix_types(parameters: Sequence[Tensor], statistics: Sequence[Tensor]) -> bool:
    """Return whether some are of unlike types, as after ``model.bfloat16()`` too."""
    return any(p.dtype != s.dtype for p, s in zip(parameters, statistics, strict=True))
