"""Torch's process-wide settings, changed for a block and put back."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch; the random states of the CPU and of the device are put back.

    Args:
        seed: as for ``torch.manual_seed``.
        device: where random numbers are drawn beside the CPU.
    """
    with random_states_kept(device):
        if device is None or device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would wake the GPUs
        else:
            torch.manual_seed(seed)
        yield


def random_states(device: torch.device) -> tuple[Tensor, ...]:
    """Return the states of the random numbers of the CPU and of the device."""
    of_cpu = torch.get_rng_state()
    return (of_cpu, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (of_cpu,)


def set_random_states(states: Sequence[Tensor], device: torch.device) -> None:
    """Set what ``random_states`` returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def same_states(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Return whether nothing was drawn between these states."""
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def random_states_kept(device: torch.device | None = None) -> AbstractContextManager[None]:
    """Return a context after which the random states of the CPU and of the device are as before."""
    # without a list it would fork the state of every GPU, and warn of several
    return torch.random.fork_rng([device] if device is not None and device.type == "cuda" else [])


def require_generator(name: str, generator: Any, device: torch.device) -> None:
    """Refuse what draws no random numbers on a device; None stands for the global state.

    Raises:
        ValueError: as said, with the argument's name.
    """
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise ValueError(f"{name} must be a torch.Generator, or None, got {generator!r}")
    if generator.device.type != device.type:
        raise ValueError(
            f"expected {name} on the model's device, {device}, got one on {generator.device}; "
            f"give torch.Generator({str(device)!r})"
        )


@contextmanager
def num_threads(number: int) -> Iterator[None]:
    """Let torch's operations use so many threads each."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def cudnn(**settings: bool) -> Iterator[None]:
    """Change these settings of ``torch.backends.cudnn`` and no others.

    Its own ``flags`` sets all: what is not named, ``enabled`` too, to a default.
    """
    before = {name: getattr(torch.backends.cudnn, name) for name in settings}
    try:
        _set_cudnn(settings)
        yield
    finally:
        _set_cudnn(before)


def _set_cudnn(settings: dict[str, bool]) -> None:
    for name, value in settings.items():
        setattr(torch.backends.cudnn, name, value)
