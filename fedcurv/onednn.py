"""oneDNN's matrix product.

torch multiplies float32 matrices on a CPU by MKL, which leaves half of the vector units of AMD's
processors idle; oneDNN does not, but torch takes it for convolutions only.
"""

from functools import cache

import torch
from torch import Tensor


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``torch.nn.functional.linear``'s result, by what only torch's compiler calls else.

    Args:
        inputs: shape (R, P), float32, on a CPU.
        weight: shape (C, P).
        bias: shape (C,).
    """
    operator = torch.ops.mkldnn._linear_pointwise.default
    result: Tensor = operator(inputs, weight, bias, "none", [], "")
    return result


@cache
def works() -> bool:
    """Return whether ``linear`` does; its operator is no public one, so it is tried."""
    inputs, weight = torch.arange(12.0).view(3, 4), torch.arange(20.0).view(5, 4)
    try:
        return torch.allclose(linear(inputs, weight), inputs @ weight.T)
    except (AttributeError, RuntimeError):
        return False
