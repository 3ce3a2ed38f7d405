"""Watch over what must not change while workers train one model."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fedcurv.lasgd.checksum import checksum
from fedcurv.lasgd.constants import Constants
from fedcurv.parameters import trainable_parameters

_REMEDY = (
    "leave the with block before such a change and begin another LASGD after it, at all workers"
)

_Look = tuple[torch.dtype, torch.Size, torch.device]


class WorkersDiffer(RuntimeError):
    """A worker's model, optimizer or data is no longer what the others have; raised at each."""


class Watch:
    """The parameters and buffers of a model as they were, and which of them the optimizer holds.

    Freezing what trained is no change: it is averaged as before.

    Args:
        model: in which the parameters that train are the optimizer's.
        optimizer: of that model.
        with_buffers: watch the buffers too, as they are averaged.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, with_buffers: bool
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._trained = trainable_parameters(model)
        self._frozen = [p for p in model.parameters() if not p.requires_grad]
        # kept, so that no other parameter gets the id of one of them
        self._held = list(_held_by(optimizer))
        self._ids = {id(p) for p in [*self._held, *self._trained.values()]}
        self._with_buffers = with_buffers
        self._forms = [(p.shape, p.dtype) for p in self._trained.values()]
        self._looks = {n: _look(t) for n, t in {**self._trained, **self._buffers()}.items()}
        self._constants = Constants(
            dict(model.named_parameters()), self._buffers(), self._trained.values()
        )

    def checksums(self) -> dict[str, int]:
        """Return a number for the bits of each parameter that trains."""
        return {name: checksum(p) for name, p in self._trained.items()}

    def _buffers(self) -> dict[str, Tensor]:
        return dict(self._model.named_buffers()) if self._with_buffers else {}

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

    def of_tensors(self, *, to_the_last_bit: bool = False) -> str | None:
        """Return what has changed of the model; None if nothing has.

        Args:
            to_the_last_bit: read all that no round sums; see ``Constants.change``.
        """
        parameters, buffers = dict(self._model.named_parameters()), self._buffers()
        present = {id(p) for p in parameters.values()}
        for name, parameter in self._trained.items():
            if id(parameter) not in present:
                how = "replaced" if name in parameters else "removed"
                return f"{name!r} was {how} in the model; {_REMEDY}"
        now = {n: _look(t) for n, t in {**self._trained, **buffers}.items()}
        if now != self._looks:
            name = next(n for n in [*self._looks, *now] if self._looks.get(n) != now.get(n))
            one, other = (_told(looks.get(name)) for looks in (self._looks, now))
            return f"{name!r} was {one} as LASGD began and is {other} now; {_REMEDY}"
        return self._constants.change(parameters, buffers, to_the_last_bit=to_the_last_bit)


def _held_by(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"])


def _look(tensor: Tensor) -> _Look:
    return tensor.dtype, tensor.shape, tensor.device


def _told(look: _Look | None) -> str:
    if look is None:
        return "missing"
    dtype, shape, device = look
    return f"{str(dtype).removeprefix('torch.')} {list(shape)} on {device}"
