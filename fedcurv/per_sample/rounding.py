"""Rounding, by which equal computations may differ."""

import math

import torch
from torch import Tensor

from fedcurv.parameters import accumulation_dtype


def close(got: Tensor, expected: Tensor) -> bool:
    """Return whether outputs are the same but for rounding, which differs with a batch's size."""
    if got.shape != expected.shape:
        return False
    dtypes = [got.dtype, expected.dtype]
    if torch.is_autocast_enabled(got.device.type):
        dtypes.append(torch.get_autocast_dtype(got.device.type))
    tolerance = max(1e-3, *(16 * torch.finfo(dtype).eps for dtype in dtypes))
    got, expected = got.to(accumulation_dtype(expected)), expected.to(accumulation_dtype(expected))
    sizes = expected.abs()
    scale = float(sizes.max()) if expected.numel() else 0.0
    # numbers that are not finite are for the whole estimate to refuse
    return not math.isfinite(scale) or bool(
        ((got - expected).abs() <= tolerance * (sizes + scale)).all()
    )
