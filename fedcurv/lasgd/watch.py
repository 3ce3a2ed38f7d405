"""What must not change while workers train one model, and how a change is noticed."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fedcurv.parameters import trainable_parameters

_REMEDY = (
    "leave the with block before such a change and begin another LASGD after it, at all workers"
)


class WorkersDiffer(RuntimeError):
    """A worker's model, optimizer or data is no longer what the others have; raised at each."""


class Watch:
    """The parameters and buffers of a model as they were, and which of them the optimizer holds.

    Freezing what trained is no change: it is averaged as before.

    Args:
        model: in which the parameters that train are the optimizer's.
        optimizer: of that model.
        buffers: names of those that are averaged; None if none is, and none is watched.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, buffers: Sequence[str] | None
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._trained = trainable_parameters(model)
        self._frozen = [p for p in model.parameters() if not p.requires_grad]
        # kept, so that no other parameter gets the id of one of them
        self._held = list(_held_by(optimizer))
        self._ids = {id(p) for p in [*self._held, *self._trained.values()]}
        self._watches_buffers = buffers is not None
        self._forms = [(p.shape, p.dtype) for p in self._trained.values()]
        self._looks = {name: _look(p) for name, p in self._trained.items()}
        self._looks |= {name: _look(model.get_buffer(name)) for name in buffers or ()}

    def before_a_step(self) -> str | None:
        """Return what has changed of what this optimizer trains; None if nothing has.

        It takes microseconds: it looks into the optimizer's groups and at flags alone.
        """
        if self._forms != [(p.shape, p.dtype) for p in self._trained.values()]:
            return self.of_tensors()
        thawed = any(p.requires_grad for p in self._frozen)
        if not thawed and self._ids.issuperset(map(id, _held_by(self._optimizer))):
            return None
        names = {id(p): name for name, p in self._model.named_parameters()}
        for parameter in _held_by(self._optimizer):
            if id(parameter) not in self._ids:
                name = names.get(id(parameter))
                shape = list(parameter.shape)
                what = "a parameter that is not the model's" if name is None else repr(name)
                return f"{what}, of shape {shape}, was given to the optimizer; {_REMEDY}"
        name = next(names.get(id(p), "a parameter") for p in self._frozen if p.requires_grad)
        return f"{name!r} was frozen as LASGD began and requires gradients now; {_REMEDY}"

    def of_tensors(self) -> str | None:
        """Return what has changed of the tensors that are averaged; None if nothing has."""
        parameters = dict(self._model.named_parameters())
        present = {id(p) for p in parameters.values()}
        for name, parameter in self._trained.items():
            if id(parameter) not in present:
                how = "replaced" if name in parameters else "removed"
                return f"{name!r} was {how} in the model; {_REMEDY}"
        now: dict[str, Tensor] = dict(self._trained)
        if self._watches_buffers:
            now |= {n: b for n, b in self._model.named_buffers() if b.is_floating_point()}
        for name in dict.fromkeys([*self._looks, *now]):
            before = self._looks.get(name, "missing")
            after = _look(now[name]) if name in now else "missing"
            if before != after:
                return f"{name!r} was {before} as LASGD began and is {after} now; {_REMEDY}"
        return None


def _held_by(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"])


def _look(tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype} {list(tensor.shape)} on {tensor.device}"
