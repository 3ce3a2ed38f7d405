"""What is changed around the passes of an estimate, and put back."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def requiring_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Put back which parameters require gradients, should a forward pass change that."""
    parameters = list(parameters)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put back the values of buffers that are changed inside."""
    before = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, version, value in before:
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(value)


@contextmanager
def no_memory_of_casts() -> Iterator[None]:
    """Let autocast convert each time: what it kept from a pass without gradients has no graph."""
    before = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keep transformers from fused kernels that skip their modules where nothing is trained."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
