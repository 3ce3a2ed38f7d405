"""A number that tells tensors of other bits apart."""

import torch
from torch import Tensor

# numbers that are summed at once
_AT_ONCE = 2**20


def checksum(tensor: Tensor) -> int:
    """Return a sum of a tensor's bits, taken for integers, that depends on their order.

    It is taken modulo 2^64 and so exact on every device.
    """
    flat = tensor.detach().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    weights = torch.arange(1, 2 * min(len(flat), _AT_ONCE) + 1, 2, device=flat.device)
    total = 0
    for part in torch.split(flat.view(integers[flat.element_size()]), _AT_ONCE):
        total = 31 * total + int((part * weights[: len(part)]).sum())
    return total % 2**64
