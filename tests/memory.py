"""How much memory tensors take that Python can see."""

import contextlib
import gc
import warnings

import torch
from torch import nn


def living_bytes() -> int:
    """Return the bytes of all of them, each piece of memory counted once."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch looks at deprecated names when it is looked at
        tensors = [t for t in gc.get_objects() if type(t) in (torch.Tensor, nn.Parameter)]
    sizes = {}
    for tensor in tensors:
        with contextlib.suppress(NotImplementedError):  # torch keeps some that are undefined
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())
