"""Batches as they were read, and small ones that follow one another, taken as one.

The Fisher information is of samples, however these are batched; a small network's pass over a
small batch costs more for being begun than for its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedcurv.parameters import described
from fedcurv.per_sample import Samples


@dataclass(frozen=True)
class Batch:
    """One batch, or several as one.

    Attributes:
        inputs: of all samples.
        targets: of all samples.
        sizes: (index, number of samples) of each batch, in order.
    """

    inputs: Samples
    targets: Tensor
    sizes: Sequence[tuple[int, int]]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.inputs)

    def __str__(self) -> str:
        """Name it as errors do."""
        (first, _), (last, _) = self.sizes[0], self.sizes[-1]
        return f"batch {first}" if first == last else f"batches {first} to {last}"

    def contents(self) -> str:
        """Return types and shapes, for an error."""
        return f"inputs {self.inputs.described()} and targets {described(self.targets)}"

    def in_parts(self, number: int) -> Iterable[tuple[Samples, Tensor]]:
        """Return at most so many parts, of about equal length."""
        if number == 1:
            return [(self.inputs, self.targets)]
        return zip(self.inputs.chunk(number), self.targets.chunk(number), strict=True)

    def copied(self) -> Batch:
        """Return one in memory of its own."""
        tensors = tuple(tensor.clone() for tensor in self.inputs.tensors)
        inputs = Samples(tensors, self.inputs.run, self.inputs.form)
        return Batch(inputs, self.targets.clone(), self.sizes)


def gathered(
    batches: Iterable[Batch], at_once: Callable[[Batch], int]
) -> Iterator[Sequence[Batch]]:
    """Yield batches that follow one another and can be one.

    Args:
        batches: whose tensors may lie in the same memory, one after the other.
        at_once: gives how many samples are worth being taken together, if they are like a batch's.
    """
    waiting: list[Batch] = []
    number = 0
    for batch in batches:
        most = at_once(batch)
        if waiting and not (_alike(waiting[0], batch) and number + len(batch) <= most):
            yield waiting
            waiting, number = [], 0
        waiting.append(batch)
        number += len(batch)
        if number + len(batch) > most:  # no room for the next one
            yield waiting
            waiting, number = [], 0
        else:
            waiting[-1] = batch.copied()
    if waiting:
        yield waiting


def joined(batches: Sequence[Batch]) -> Batch:
    """Return several batches as one."""
    if len(batches) == 1:
        return batches[0]
    inputs = Samples.joined([batch.inputs for batch in batches])
    targets = torch.cat([batch.targets for batch in batches])
    return Batch(inputs, targets, [size for batch in batches for size in batch.sizes])


def _alike(one: Batch, other: Batch) -> bool:
    """Return whether two batches differ in nothing but their samples."""
    tensors = (*one.inputs.tensors, one.targets), (*other.inputs.tensors, other.targets)
    return (
        one.inputs.form is not None
        and one.inputs.form == other.inputs.form
        and all(
            a.shape[1:] == b.shape[1:] and a.dtype == b.dtype for a, b in zip(*tensors, strict=True)
        )
    )
