"""Squares of gradients that several uses of a parameter add up to."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fedcurv.per_sample.layers import ClosedFormLayer

# gradients of single samples that are summed over several uses take at most this many numbers
_NUMBERS_AT_ONCE = 2**21


class Use(NamedTuple):
    """One use of a parameter: under its own name in a layer, with input and gradient."""

    layer: ClosedFormLayer
    local: str
    x: Tensor
    g: Tensor


def add_squares_of_sums(uses: Sequence[Use]) -> None:
    """Add Σ_n (Σ_u G_un)², where G_un is what use u gives to the gradient of sample n."""
    first = uses[0]
    total = first.layer.totals[first.local]
    if len(uses) == 1:
        first.layer.rule.add_squares(first.layer.module, first.x, first.g, {first.local: total})
        return
    size = max(1, _NUMBERS_AT_ONCE // total.numel())
    for begin in range(0, len(first.x), size):
        part = slice(begin, begin + size)
        gradients = [
            use.layer.rule.gradients(use.layer.module, use.x[part], use.g[part])[use.local]
            for use in uses
        ]
        total.add_(sum(gradients[1:], gradients[0]).square_().sum(0))
