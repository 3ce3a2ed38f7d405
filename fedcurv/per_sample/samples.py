"""Samples of a batch, and how a model is run on them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedcurv.parameters import described, plain

# from a model and tensors, each with the same samples along its first axis, to what it returns
Run = Callable[[nn.Module, Sequence[Tensor]], Any]

# what a run on some of a batch's samples may end in; what is wrong shows in a pass of its own
FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)


@dataclass(frozen=True, slots=True)
class Samples:
    """Inputs of some samples.

    Attributes:
        tensors: at least one, each with the samples along its first axis.
        run: runs a model on them, or on other rows of them.
        form: equal to that of other samples only if these differ from them in their rows alone;
            None for what is like no other.
    """

    tensors: tuple[Tensor, ...]
    run: Run
    form: Hashable = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.tensors[0].shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Samples:
        """Return some of them, in this order."""
        return replace(self, tensors=tuple(tensor[rows] for tensor in self.tensors))

    def chunk(self, number: int) -> Iterator[Samples]:
        """Return at most so many parts, of about equal length."""
        for tensors in zip(*(tensor.chunk(number) for tensor in self.tensors), strict=True):
            yield replace(self, tensors=tensors)

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """Return samples of one form, and with rows of one shape, after one another."""
        columns = zip(*(part.tensors for part in parts), strict=True)
        return cls(tuple(map(torch.cat, columns)), parts[0].run, parts[0].form)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.tensors[0].device

    def numel(self) -> int:
        """Return how many numbers they are in all."""
        return sum(tensor.numel() for tensor in self.tensors)

    def outputs(self, model: nn.Module) -> Tensor:
        """Return the model's outputs, by sample.

        Raises:
            ValueError: if they are not one tensor of real numbers.
        """
        return one_tensor(self.run(model, self.tensors), model)

    def described(self) -> str:
        """Return types and shapes, for an error."""
        return ", ".join(map(described, self.tensors))


class WholeModel(nn.Module):
    """A model as a module that is called with a run and the tensors for it.

    So it can be run with other values in the place of its parameters, however it is called.
    """

    PREFIX = "model."

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, run: Run, *tensors: Tensor) -> Tensor:
        """Return the model's outputs."""
        return one_tensor(run(self.model, tensors), self.model)


def on_one_tensor(model: nn.Module, tensors: Sequence[Tensor]) -> Any:
    """Run a model as most are run."""
    return model(tensors[0])


def one_tensor(outputs: Any, model: nn.Module) -> Tensor:
    """Return what a model returned, if it is one tensor of real numbers or has such logits.

    Raises:
        ValueError: if it is anything else.
    """
    logits = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"expected a model that returns one tensor, or an object with .logits, got "
            f"{type(outputs).__name__} from {type(model).__name__}; say which of it is meant: "
            "forward=lambda model, batch: model(batch[0])[0]"
        )
    if not logits.is_floating_point():
        raise ValueError(
            f"expected a model that returns real numbers, got {logits.dtype} from "
            f"{type(model).__name__}"
        )
    return plain(logits)
