"""Losses by the names that configurations use; a file in this folder registers its own."""

from collections.abc import Callable
from typing import TypeVar

from fedcurv.discovery import enter
from fedcurv.losses.base import RobustLoss

Make = Callable[..., RobustLoss]
Registered = TypeVar("Registered", bound=Make)

# with what may be set beside the name
LOSSES: dict[str, Make] = {}


def register_loss(name: str) -> Callable[[Registered], Registered]:
    """Return a decorator that makes a class, or what makes an object of it, the loss of a name."""

    def register(make: Registered) -> Registered:
        enter(LOSSES, "loss", name, make)
        return make

    return register
