"""Batches as they were read, and small ones that follow one another, taken as one.

The Fisher information is of samples, however these are batched; a small network's pass over a
small batch costs more for being begun than for its numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

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
        counts: how many samples each stands for, shape (N,); None for itself alone.
    """

    inputs: Samples
    targets: Tensor
    sizes: Sequence[tuple[int, int]]
    counts: Tensor | None = None

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

    def in_parts(self, number: int) -> Iterable[tuple[Samples, Tensor, Tensor | None]]:
        """Return at most so many parts, of about equal length: inputs, targets and counts."""
        if number == 1:
            return [(self.inputs, self.targets, self.counts)]
        counts = itertools.repeat(None) if self.counts is None else self.counts.chunk(number)
        return zip(self.inputs.chunk(number), self.targets.chunk(number), counts, strict=False)

    def copied(self) -> Batch:
        """Return one in memory of its own."""
        tensors = tuple(tensor.clone() for tensor in self.inputs.tensors)
        inputs = Samples(tensors, self.inputs.run, self.inputs.form)
        return replace(self, inputs=inputs, targets=self.targets.clone())

    def rows(self, rows: Tensor) -> Batch:
        """Return some samples of one batch, in memory of their own."""
        ((index, _),) = self.sizes
        of_device = rows.to(self.inputs.device)
        targets = self.targets[rows.to(self.targets.device)]
        return Batch(self.inputs[of_device], targets, [(index, len(rows))])

    def standing_for(self, counts: Tensor) -> Batch:
        """Return it with how many samples each stands for."""
        return replace(self, counts=counts.to(self.inputs.device))


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
    counts = [batch.counts for batch in batches if batch.counts is not None]
    return Batch(
        inputs,
        targets,
        [size for batch in batches for size in batch.sizes],
        torch.cat(counts) if counts else None,
    )


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
