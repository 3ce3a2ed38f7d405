"""The losses that a configuration can name."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from fedcurv.clients.scores import known_positions
from fedcurv.losses import LOSSES
from fedcurv.simulations.own_calls import SAME, call_own
from fedcurv.simulations.parts.tasks import AUTO, CLASSIFICATION, Task
from fedcurv.simulations.rules import is_number


def _huber(delta: float = 1.0) -> nn.Module:
    if not is_number(delta) or not delta > 0:
        raise ValueError(f"client.loss: delta must be > 0 and finite, got {delta!r}")
    return nn.HuberLoss(delta=delta)


# of numbers in the outputs' shape, by task
_LIKE_OUTPUTS: dict[str, dict[str, Callable[..., nn.Module]]] = {
    "regression": {
        "squared_error": lambda: nn.MSELoss(),
        "absolute_error": lambda: nn.L1Loss(),
        "huber": _huber,
    },
    "binary": {"binary_cross_entropy": lambda: nn.BCEWithLogitsLoss()},
    "multilabel": {"binary_cross_entropy": lambda: nn.BCEWithLogitsLoss()},
}


class PerPosition(nn.Module):
    """A loss of classes, as the mean over all positions that count; 0 where none does.

    Args:
        loss: of logits (K, C) and classes (K,).
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of outputs and targets; see ``known_positions``."""
        logits, classes = known_positions(outputs, targets)
        loss: Tensor = self.loss(logits, classes) if len(classes) else 0.0 * outputs.sum()
        return loss


def losses_of(task: Task) -> Mapping[str, Callable[..., nn.Module]]:
    """Return the losses that a task can be trained with, by name."""
    return _LIKE_OUTPUTS[task.name] if task.like_outputs else LOSSES


def make_loss(description: str | Mapping[str, Any], task: Task = CLASSIFICATION) -> nn.Module:
    """Return a loss by name, or by a table with its name and settings.

    ``{name: function, function: module:function}`` calls that function with the other settings; it
    returns a module that is called with a batch's outputs and targets. ``auto`` is the task's own.

    Raises:
        ValueError: for an unknown name, an unknown setting or one out of range.
    """
    options = dict(description) if isinstance(description, Mapping) else {"name": description}
    name = options.pop("name", None)
    known = losses_of(task)
    if name == AUTO:
        name = task.loss
    if name == "function":
        place = options.pop("function", None)
        own = call_own("client.loss.function", str(place), SAME, **options)
        if not isinstance(own, nn.Module):
            raise ValueError(
                f"client.loss.function={place}: expected a torch.nn.Module that takes logits and "
                f"targets, got {type(own).__name__}"
            )
        return own
    if not isinstance(name, str) or name not in known:
        names = ", ".join((*known, "function"))
        for_task = "" if task is CLASSIFICATION else f" for task={task.name}"
        raise ValueError(f"client.loss must be one of {names}{for_task}, got {name!r}")
    try:
        loss = known[name](**options)
    except TypeError as error:
        raise ValueError(f"client.loss: {name!r} has no such setting: {error}") from error
    return loss if task.like_outputs or task is CLASSIFICATION else PerPosition(loss)
