"""The models that a configuration can name; a file in this folder registers its own."""

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from fedcurv.discovery import enter

Shape = tuple[int, ...]
Make = Callable[..., nn.Module]
Registered = TypeVar("Registered", bound=Make)

MODELS: dict[str, Make] = {}


def register_model(name: str) -> Callable[[Registered], Registered]:
    """Return a decorator that makes a function the model of that name.

    The function is called with the shape of an input and the number of outputs; its other
    arguments are the model's settings, and those with defaults have them in a configuration.
    Batch statistics, which non-IID clients spoil, are left out of the package's models.
    """

    def register(make: Registered) -> Registered:
        enter(MODELS, "model", name, make)
        return make

    return register
