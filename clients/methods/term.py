"""What the terms of methods with two sides share: which parameters, which steps, which reply."""

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedcurv.clients.settings import TrainingSettings
from fedcurv.clients.terms import AffineGradient, LocalTerm
from fedcurv.curvature import require_same_shapes, shapes_of
from fedcurv.parameters import listed, named_like, trainable_parameters
from fedcurv.steps import (
    Attachments,
    Steppable,
    once_a_step,
    register_for_all,
    require_hooks,
    require_no_closure,
)
from fedcurv.strategies.wire.arrays import unpack_tensors
from fedcurv.strategies.wire.methods import METHOD, Answer, pack_answer, unpack_told
from fedcurv.strategies.wire.records import CONFIG, client_id_of, pack_client_id


class MethodTerm(LocalTerm):
    """A method's term in one round of one client.

    It is about the trainable parameters whose names are among the message's arrays.

    Args:
        message: a training message of the method's strategy.
        context: of the client.
        model: with the weights that the round begins with, on the device where it is trained.
        state_dir: remember below this folder what must be remembered; see
            ``fedcurv.clients.state``.

    Raises:
        ValueError: if the message is not the method's, or its arrays are not named like the model's
            parameters.
    """

    method: ClassVar[str]

    def __init__(
        self,
        message: Message,
        context: Context,
        model: nn.Module,
        *,
        state_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self._told = unpack_told(message.content, self.method)
        self._message_id = message.metadata.message_id
        self._context = context
        self._handles: list[RemovableHandle] = []
        self._attachments = Attachments()
        arrays = _arrays_in(message.content)
        model = named_like(model, arrays)
        trainable = trainable_parameters(model)
        self._steppable = Steppable({n: p for n, p in trainable.items() if n in arrays})
        if not self._steppable.names:
            raise ValueError(
                f"{self.method}: expected arrays named like the model's parameters "
                f"({listed(list(trainable))}), got {listed(sorted(arrays))}; send "
                "ArrayRecord(model.state_dict())"
            )
        travel = {id(p) for p in self._steppable.parameters}
        # of tied parameters all names, under which their array comes several times
        self._names = frozenset(
            name
            for name, p in model.named_parameters(remove_duplicate=False)
            if id(p) in travel and name in arrays
        )

    def require_weights_of(self, message: Message) -> None:
        """Raise a ValueError unless the parameters are the message's arrays, in their own type."""
        arrays = _arrays_in(message.content)
        for name, own in zip(self.names, self._steppable.parameters, strict=True):
            sent = unpack_tensors(ArrayRecord({name: arrays[name]}))[name]
            if not _are_same(own.detach(), sent.to(own.dtype).to(own.device)):
                raise ValueError(
                    f"{self.method}: expected a model with the message's weights, got another "
                    f"{name!r}; make the ClientTerm after model.load_state_dict(...), and before "
                    "the first step"
                )

    @property
    def names(self) -> Sequence[str]:
        """Names of the parameters that the term is about, each once."""
        return self._steppable.names

    @classmethod
    def require_settings(cls, settings: TrainingSettings) -> None:
        """Raise a ValueError unless the method holds for such training."""

    def require_alone(self, others: Sequence[LocalTerm]) -> None:
        """Raise a ValueError for terms of the objective that the method does not allow."""
        if others:
            raise ValueError(
                f"{self.method} does not hold beside {type(others[0]).__name__}; take a strategy "
                "without that term"
            )

    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, settings: TrainingSettings
    ) -> object:
        """Make every step of the optimizer feel the term."""
        self.require_settings(settings)
        return self.attach_to(optimizer)

    def attach_to(self, optimizer: torch.optim.Optimizer | None = None) -> RemovableHandle:
        """Make every step feel the term.

        Args:
            optimizer: of the model's parameters; None for whichever steps them.

        Returns:
            the handle that ends it, as ``report`` does.

        Raises:
            ValueError: if the method does not hold for this optimizer, or it feels the term
                already.
            TypeError: for what calls no hooks.
        """
        self._attachments.require_new(optimizer)
        if optimizer is None:
            handle = register_for_all(self, MethodTerm._felt, before=True)
        else:
            require_hooks(optimizer)
            self._require_optimizer(optimizer)
            handle = optimizer.register_step_pre_hook(once_a_step(self._felt))
        self._handles.append(handle)
        return self._attachments.note(handle, optimizer)

    def affine(self, model: nn.Module, settings: TrainingSettings) -> AffineGradient | None:
        """Return the gradient, where the term is about all of the model's parameters."""
        self.require_settings(settings)
        if set(self.names) != {name for name, _ in model.named_parameters()}:
            return None
        return self._affine(settings.lr)

    def _affine(self, lr: float) -> AffineGradient | None:
        """Return the term's gradient for steps of plain SGD with this learning rate."""
        return None

    def _felt(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._steppable.held_by(optimizer):
            require_no_closure(args, kwargs, f"{self.method} is attached", "call it without")
            self._require_optimizer(optimizer)
            with torch.no_grad():
                self._before_step(optimizer)

    def _require_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise a ValueError if the method does not hold for this optimizer."""

    @abstractmethod
    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Do what belongs before a step, in which gradients are at hand."""

    def report(self, content: RecordDict, model: nn.Module) -> None:
        """Add to the reply what the strategy must know, and remember what must be remembered.

        Raises:
            ValueError: if nothing was trained, or another model than the one that was given first.
        """
        while self._handles:
            self._handles.pop().remove()
        shapes = shapes_of(dict(zip(self.names, self._steppable.parameters, strict=True)))
        parameters = named_like(model, shapes).named_parameters()
        there = {n: p for n, p in parameters if n in shapes}
        require_same_shapes(shapes, shapes_of(there), "the model at first", "the report's model")
        progress, began_from = self._finish(there)
        answer = Answer(self._message_id, self._names, progress, began_from)
        content[METHOD] = pack_answer(self.method, answer)
        content[CONFIG] = pack_client_id(self._context)

    @abstractmethod
    def _finish(self, trained: Mapping[str, Tensor]) -> tuple[float, str]:
        """Return how far the steps went, and the message id of the state that they began from.

        Args:
            trained: the parameters as they are now, by name.
        """

    @property
    def _client(self) -> str:
        return f"client {client_id_of(self._context)}"


def _arrays_in(content: RecordDict) -> dict[str, Array]:
    """Return the arrays in a message by name, less those of this project."""
    records = (r for key, r in content.array_records.items() if not key.startswith("fedcurv."))
    return {name: array for record in records for name, array in record.items()}


def _are_same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors hold the same numbers, or NaN in the same places."""
    return torch.equal(one, other) or (
        one.shape == other.shape and torch.allclose(one, other, 0.0, 0.0, equal_nan=True)
    )


def require_sgd(method: str, optimizer: torch.optim.Optimizer, held: Sequence[str]) -> float:
    """Return the learning rate of an optimizer whose steps are SGD's, downhill.

    Args:
        method: for the error.
        optimizer: to look at.
        held: names of the parameters that it must hold; see ``Steppable.held_by``.

    Raises:
        ValueError: if it is another, or has several learning rates.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        raise ValueError(
            f"{method} holds for SGD, got {type(optimizer).__name__}; use torch.optim.SGD"
        )
    if not held:
        raise ValueError(f"{method}: expected the optimizer of the model, got another's")
    rates = {float(group["lr"]) for group in optimizer.param_groups}
    if len(rates) > 1:
        raise ValueError(
            f"{method} holds for one learning rate, got {sorted(rates)} in the parameter groups; "
            "give all the same"
        )
    if any(group["maximize"] for group in optimizer.param_groups):
        raise ValueError(f"{method}: expected steps downhill, got maximize=True; negate the loss")
    return rates.pop()
