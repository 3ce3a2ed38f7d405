"""Checksum of tensors, which tells other bits apart."""

import torch
from torch import Tensor

# numbers that are summed at once: they fit into a cache
_AT_ONCE = 2**16


def checksum(tensor: Tensor) -> int:
    """Return a sum of a tensor's bits, taken for integers, each times a number of its place's own.

    It is taken modulo 2^64 and so exact on every device.
    """
    flat = tensor.detach().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    # halves of 8 bytes: a change of the highest bit alone would be lost from an even number of them
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int32}
    whole = flat.view(integers[flat.element_size()])
    weights = _scattered(min(len(whole), _AT_ONCE), flat.device)
    total = len(whole)
    for part in torch.split(whole, _AT_ONCE):
        total = (_MULTIPLIER * total + int((part * weights[: len(part)]).sum())) % 2**64
    return total


# those of SplitMix64, as int64 has them
_STEP, _MULTIPLIER, _SECOND = (
    number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def _scattered(number: int, device: torch.device) -> Tensor:
    """Return the first odd numbers of a fixed sequence without a pattern, int64."""
    mixed = torch.arange(1, number + 1, device=device) * _STEP
    for shift, multiplier in ((30, _MULTIPLIER), (27, _SECOND)):
        # without the sign's bits, which a shift drags along
        mixed = (mixed ^ ((mixed >> shift) & (2 ** (64 - shift) - 1))) * multiplier
    return mixed | 1
