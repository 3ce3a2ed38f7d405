"""Σ_n (A_n B_n)², elementwise, over pairs of matrices, without keeping the products."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedcurv import onednn

# from inputs (R, P) and a weight (C, P) to their product (R, C)
Linear = Callable[[Tensor, Tensor], Tensor]

# products that are kept at once hold at most this many numbers
_NUMBERS_AT_ONCE = 2**21
_NUMBERS_AT_ONCE_ON_ACCELERATORS = 2**25
# on a CPU a product of more multiplications is worth a call of its own
_LARGE_PRODUCT = 2**20
# and is formed in parts of this many numbers, which stay in caches until they are squared
_NUMBERS_IN_CACHE = 3 * 2**18


def add_squared_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add Σ_n (left_n @ right_n)² to ``total``.

    Args:
        total: shape (R, C); a view is fine.
        left: shape (N, R, P).
        right: shape (N, P, C).
    """
    rows, columns = total.shape
    multiplications = left[0].numel() * columns
    if left.device.type == "cpu" and multiplications > _LARGE_PRODUCT:
        _add_one_by_one(total, left, right)
    elif columns < rows:  # batched products are faster with the long side first
        _add_batched(total.T, right.mT, left.mT)
    else:
        _add_batched(total, left, right)


def _add_batched(total: Tensor, left: Tensor, right: Tensor) -> None:
    on_cpu = total.device.type == "cpu"
    at_once = _NUMBERS_AT_ONCE if on_cpu else _NUMBERS_AT_ONCE_ON_ACCELERATORS
    size = max(1, at_once // total.numel())
    for some_left, some_right in zip(
        torch.split(left, size), torch.split(right, size), strict=True
    ):
        total += torch.bmm(some_left, some_right).square_().sum(0)


def _add_one_by_one(total: Tensor, left: Tensor, right: Tensor) -> None:
    multiply = _linear_for(total.dtype)
    weights = _dense(right).mT.unbind()
    num_parts = -(-total.numel() // _NUMBERS_IN_CACHE)
    for part, rows in zip(total.chunk(num_parts), left.chunk(num_parts, dim=1), strict=True):
        for inputs, weight in zip(_dense(rows).unbind(), weights, strict=True):
            product = multiply(inputs, weight)
            part.addcmul_(product, product)


def _dense(matrices: Tensor) -> Tensor:
    """Return matrices without gaps: oneDNN is a thousand times slower on others."""
    for order in (matrices, matrices.mT):
        if order.stride(-1) == 1 and order.stride(-2) == order.shape[-1]:
            return matrices
    return matrices.contiguous()


def _linear_for(dtype: torch.dtype) -> Linear:
    """Return the faster x·Wᵀ: measured against training, whose convolutions oneDNN computes."""
    return onednn.linear if dtype == torch.float32 and onednn.works() else nn.functional.linear
