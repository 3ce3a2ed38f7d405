"""Batches of any form: which of their tensors hold samples, and how a model is run on them."""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fedcurv.errors import first_line
from fedcurv.gathering import Batch
from fedcurv.own_loss import CheckLabels
from fedcurv.parameters import described, listed, plain
from fedcurv.per_sample.samples import Run, Samples, on_one_tensor

# from the model and a batch to the outputs, with the samples along the first axis
Forward = Callable[[nn.Module, Any], Any]
# from a batch to the targets; or their name in a batch that is a mapping
Targets = Callable[[Any], Tensor] | str

_LABELS = "labels"


class Batches:
    """Reads batches, which may be of any form, one by one.

    Args:
        forward: see ``fedcurv.fisher_diagonal``.
        targets: likewise.
        device: where the tensors are put.
        check_labels: called with the first batch whose targets are its labels since nothing says
            otherwise; raises a ValueError.
    """

    def __init__(
        self,
        forward: Forward | None,
        targets: Targets | None,
        device: torch.device,
        check_labels: CheckLabels | None = None,
    ) -> None:
        self._forward = forward
        self._targets = targets
        self._device = device
        said = forward is not None or targets is not None
        self._check_labels = None if said else check_labels
        self._by_sample: dict[str, bool] = {}
        self._changes_inputs: bool | None = None  # whether a run does; None before the first

    def read_all(self, batches: Iterable[Any]) -> Iterator[Batch]:
        """Yield the batches that hold samples."""
        for index, batch in enumerate(batches):
            inputs, targets = self.read(batch, index)
            if len(inputs):
                if isinstance(batch, Mapping):
                    self._have_labels_checked(batch, inputs, targets, index)
                yield Batch(inputs, targets, [(index, len(inputs))])

    def _have_labels_checked(
        self, batch: Mapping[str, Any], inputs: Samples, targets: Tensor, index: int
    ) -> None:
        check, self._check_labels = self._check_labels, None
        if check is None:
            return
        values = (v for _, v in _leaves(batch))
        moved = (self._moved(v) if isinstance(v, Tensor) else v for v in values)
        try:
            check(_filled(batch, moved), inputs, targets)
        except ValueError as error:
            raise ValueError(f"batch {index}: {error}") from error

    def read(self, batch: Any, index: int) -> tuple[Samples, Tensor]:
        """Return a batch's samples and targets, as plain tensors on the device.

        Raises:
            ValueError: if there are no targets, or no tensor has as many samples as they have.
        """
        inputs, targets = self._inputs_and_targets(batch, index)
        if not isinstance(targets, Tensor) or not targets.ndim:
            raise ValueError(
                f"batch {index}: expected targets as a tensor with the samples along its first "
                f"axis, got {_kind_of(targets)}"
            )
        targets = self._moved(targets)
        if self._forward is None and isinstance(inputs, Tensor):
            if not inputs.ndim or len(inputs) != len(targets):
                number = len(inputs) if inputs.ndim else "no"
                raise ValueError(
                    f"batch {index}: expected as many targets as inputs, got {len(targets)} "
                    f"targets for {number} inputs"
                )
            return Samples((self._moved(inputs),), self._guarded(on_one_tensor), "tensor"), targets
        nest = inputs if self._forward is None else batch
        return self._samples_in(nest, len(targets), index), targets

    def _inputs_and_targets(self, batch: Any, index: int) -> tuple[Any, Any]:
        if callable(self._targets):
            targets = self._targets_from(batch, index)
            if (
                self._forward is None
                and isinstance(batch, tuple | list)
                and len(batch) > 2
                and any(item is targets for item in batch[1:])
            ):
                raise ValueError(
                    f"batch {index}: cannot tell which of {len(batch)} items the model takes, as "
                    "the targets are among them; say so: forward=lambda model, batch: "
                    "model(batch[0], batch[1])"
                )
            return _first_of_pair(batch), targets
        name = _LABELS if self._targets is None else self._targets
        if isinstance(batch, Mapping) and name in batch:
            return {key: value for key, value in batch.items() if key != name}, batch[name]
        if self._targets is None and isinstance(batch, tuple | list) and len(batch) == 2:
            return batch[0], batch[1]
        raise ValueError(
            f"batch {index}: expected a pair (inputs, targets), or a mapping with {name!r}, got "
            f"{_kind_of(batch)}; or say where they are: targets=lambda batch: batch[1]"
        )

    def _targets_from(self, batch: Any, index: int) -> Any:
        assert callable(self._targets)
        try:
            return self._targets(batch)
        except (RuntimeError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"batch {index}: targets= fails on {_kind_of(batch)}: {type(error).__name__}: "
                f"{first_line(error)}"
            ) from error

    def _samples_in(self, nest: Any, number: int, index: int) -> Samples:
        leaves = list(_leaves(nest))
        places = [place for place, _ in leaves]
        values = [self._moved(v) if isinstance(v, Tensor) else v for _, v in leaves]
        by_sample = [_has_samples(value, number) for value in values]
        if number == 1:  # what one sample has for itself and what all share may look the same
            known = self._by_sample
            by_sample = [
                own and known.get(place, True) for own, place in zip(by_sample, places, strict=True)
            ]
        else:
            self._require_as_before(dict(zip(places, by_sample, strict=True)), index)
        tensors = tuple(v for v, samples in zip(values, by_sample, strict=True) if samples)
        if not tensors:
            if not leaves:
                raise ValueError(
                    f"batch {index}: expected what the model takes, got none, as the batch holds "
                    "nothing but its targets; where they are what it takes, as in an autoencoder, "
                    "say so: forward=lambda model, batch: model(batch['x'])"
                )
            shapes = [described(value) for value in values if isinstance(value, Tensor)]
            if any(isinstance(value, PackedSequence) for value in values):
                shapes.append("a PackedSequence, to be packed in forward= instead")
            raise ValueError(
                f"batch {index}: expected a tensor with the {number} samples of the targets along "
                f"its first axis, got {', '.join(shapes) or 'no tensors'}"
            )
        form = (type(nest), *places) if all(by_sample) else None
        return Samples(tensors, self._guarded(self._run(nest, values, by_sample)), form)

    def _run(self, nest: Any, values: Sequence[Any], by_sample: Sequence[bool]) -> Run:
        call = _called if self._forward is None else self._forward

        def run(model: nn.Module, tensors: Sequence[Tensor]) -> Any:
            rows = iter(tensors)
            filled = [
                next(rows) if samples else value
                for value, samples in zip(values, by_sample, strict=True)
            ]
            return call(model, _filled(nest, iter(filled)))

        return run

    def _guarded(self, run: Run) -> Run:
        """Return a run that leaves the samples as they are: several runs need them."""

        def guarded(model: nn.Module, tensors: Sequence[Tensor]) -> Any:
            if self._changes_inputs is False:
                versions = [tensor._version for tensor in tensors]
                outputs = run(model, tensors)
                if versions != [tensor._version for tensor in tensors]:
                    raise ValueError(
                        f"{type(model).__name__} changes some of its inputs in place; let it work "
                        "on a copy"
                    )
                return outputs
            tensors = [tensor.clone() for tensor in tensors]
            outputs = run(model, tensors)
            if self._changes_inputs is None:
                self._changes_inputs = any(tensor._version for tensor in tensors)
            return outputs

        return guarded

    def _require_as_before(self, by_sample: Mapping[str, bool], index: int) -> None:
        """Refuse a tensor that has as many rows as there are samples in some batches only."""
        before = self._by_sample
        changed = [place for place, now in by_sample.items() if before.get(place, now) != now]
        if changed:
            raise ValueError(
                f"batch {index}: expected {listed(changed)} to have the samples along the first "
                "axis in all batches or in none; take what all samples share out of the batch, "
                "into forward="
            )
        before.update(by_sample)

    def _moved(self, tensor: Tensor) -> Tensor:
        """Return a tensor that no subclass answers for and no graph leads to."""
        tensor = plain(tensor).detach()
        if tensor.is_inference():
            tensor = tensor.clone()
        return tensor.to(self._device, non_blocking=True)


def _has_samples(value: Any, number: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == number


def _first_of_pair(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch


def _called(model: nn.Module, inputs: Any) -> Any:
    """Call a model with a mapping's values by name, with a sequence's by place."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def _children(nest: Any) -> Iterator[tuple[str, Any]] | None:
    """Return the names and values in a nest; None for what is a value itself."""
    if isinstance(nest, PackedSequence):  # samples are mixed in it
        return None
    if isinstance(nest, Mapping):
        return ((str(name), value) for name, value in nest.items())
    if isinstance(nest, tuple | list):
        return ((str(place), value) for place, value in enumerate(nest))
    if dataclasses.is_dataclass(nest) and not isinstance(nest, type):
        return iter(_attributes(nest).items())
    return None


def _attributes(nest: Any) -> dict[str, Any]:
    """Return all that a data class holds, its fields and what was set beside them."""
    fields = (field.name for field in dataclasses.fields(nest))
    slots = {name: getattr(nest, name) for name in fields if hasattr(nest, name)}
    return slots | getattr(nest, "__dict__", {})


def _leaves(nest: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the place and the value of all that is in a nest of mappings, lists, dataclasses."""
    if (children := _children(nest)) is None:
        yield prefix, nest
        return
    for name, value in children:
        yield from _leaves(value, f"{prefix}.{name}" if prefix else name)


def _filled(nest: Any, values: Iterator[Any]) -> Any:
    """Return a nest like this one, with other values in the order of ``_leaves``."""
    if _children(nest) is None:
        return next(values)
    if isinstance(nest, Mapping):
        new = {name: _filled(value, values) for name, value in nest.items()}
        return new if type(nest) is dict else _replaced(nest, new)
    if isinstance(nest, tuple | list):
        items = [_filled(value, values) for value in nest]
        return type(nest)(*items) if hasattr(nest, "_fields") else type(nest)(items)
    copied = copy.copy(nest)  # what its class does as it is made has been done
    for name, value in _attributes(nest).items():
        object.__setattr__(copied, name, _filled(value, values))
    return copied


def _replaced(mapping: Mapping[str, Any], new: Mapping[str, Any]) -> Any:
    """Return a mapping of the same class (a tokenizer's, say) with other values.

    A plain dictionary stands for a class that says nothing of how it is copied or changed.
    """
    copies = isinstance(mapping, dict) or hasattr(mapping, "__copy__")
    if not copies or not isinstance(mapping, MutableMapping):
        return new
    copied: Any = copy.copy(mapping)
    for name, value in new.items():
        copied[name] = value
    return copied


def _kind_of(value: object) -> str:
    if isinstance(value, Tensor):
        return described(value)
    if isinstance(value, Mapping):
        return f"{type(value).__name__} with {', '.join(map(repr, list(value)[:5]))}"
    items = f" of {len(value)} items" if isinstance(value, tuple | list) else ""
    return f"{type(value).__name__}{items}"
