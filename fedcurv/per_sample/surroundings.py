"""Surroundings of an estimate: what is changed around its passes, and put back."""

import logging
import random
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count

import numpy as np
import torch
from torch import Tensor, nn

from fedcurv.global_state import cudnn, random_states_kept
from fedcurv.parameters import listed

logger = logging.getLogger(__name__)

_NUMBERS = count()


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
def same_buffers(model: nn.Module) -> Iterator[None]:
    """Put back buffers that are replaced, removed or made inside."""
    registries = (m._buffers for m in model.modules() if not isinstance(m, torch.jit.ScriptModule))
    before = [(registry, dict(registry)) for registry in registries]
    try:
        yield
    finally:
        for now, then in before:
            if now.keys() != then.keys() or any(now[name] is not then[name] for name in then):
                now.clear()
                now.update(then)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put back buffers and their values."""
    before = [(buffer, _version(buffer), buffer.clone()) for buffer in model.buffers()]
    try:
        with same_buffers(model):
            yield
    finally:
        for buffer, version, value in before:
            if _version(buffer) != version or buffer.shape != value.shape:
                with torch.no_grad(), torch.inference_mode(buffer.is_inference()):
                    buffer.resize_(value.shape).copy_(value)


def _version(tensor: Tensor) -> int:
    """Return a number that grows with each change; always another if changes are not counted."""
    return next(_NUMBERS) if tensor.is_inference() else tensor._version


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


@contextmanager
def unchecked_distributions() -> Iterator[None]:
    """Keep distributions from reading their arguments, which says nothing but whether to raise."""
    kind = torch.distributions.Distribution
    before = kind._validate_args
    kind.set_default_validate_args(False)
    try:
        yield
    finally:
        kind.set_default_validate_args(before)


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore modes and buffers of the model, and the random states, which data loaders use too.

    What the model's forward does to its own parameters is told.
    """
    modes = {module: module.training for module in model.modules()}
    tables = [(table, table.detach().clone()) for table in _renormalised(model)]
    versions = {n: (p, p._version) for n, p in model.named_parameters() if not p.is_inference()}
    python_state, numpy_state = random.getstate(), np.random.get_state(legacy=False)
    kept = random_states_kept(device)
    try:
        with kept, torch.inference_mode(False), _backward_in_eval(model), buffers_kept(model):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for module, training in modes.items():
            module.training = training
        for table, before in tables:
            with torch.no_grad():
                table.copy_(before)
        own = {id(table) for table, _ in tables}
        changed = [
            name
            for name, (parameter, version) in versions.items()
            if parameter._version != version and id(parameter) not in own
        ]
        if changed:
            logger.warning(
                "Fisher diagonal of %s: the model's forward has changed its own parameters %s, "
                "which stay changed",
                type(model).__name__,
                listed(changed),
            )


def _renormalised(model: nn.Module) -> list[Tensor]:
    """Return the tables whose rows a forward pass scales to a length."""
    kinds = (nn.Embedding, nn.EmbeddingBag)
    modules = (m for m in model.modules() if isinstance(m, kinds) and m.max_norm is not None)
    return [module.weight for module in modules]


def _backward_in_eval(model: nn.Module) -> AbstractContextManager[None]:
    """Leave recurrent layers to torch: cuDNN's can go backward in train mode only."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    return cudnn(enabled=False) if recurrent else nullcontext()
