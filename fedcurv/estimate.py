"""Sums of squared per-sample gradients over batches, and errors that name the batch."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedcurv.curvature import extremes
from fedcurv.errors import first_line
from fedcurv.gathering import Batch, gathered, joined
from fedcurv.lazy import LazyTensors
from fedcurv.parameters import listed
from fedcurv.per_sample import (
    Findings,
    PerSampleSquares,
    Samples,
    SelfCheck,
    refuse_accidental_rows,
    samples_at_once,
    samples_worth_a_pass,
    unchecked,
)

# from outputs (N, ...) and targets (N, ...) to the cotangents to sum over
CotangentsOf = Callable[..., Sequence[Tensor]]


class Estimate:
    """Sums Σ_n Σ_v (∂⟨f(x_n), v⟩/∂p)² over batches.

    Args:
        model: in eval mode.
        parameters: the trainable ones, by name.
        cotangents_of: called as cotangents_of(outputs, targets=...).
        chunk_size: see ``fedcurv.fisher_diagonal``.
        self_check: likewise.
        several_at_once: whether small batches may be taken together.

    Attributes:
        num_samples: so far.
        totals: the sums, by name.
        last_operation: what computed the outputs; "" if that is not known.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        cotangents_of: CotangentsOf,
        *,
        chunk_size: int | None,
        self_check: bool,
        several_at_once: bool,
    ) -> None:
        self._model = model
        self._parameters = parameters
        self._cotangents_of = cotangents_of
        self._chunk_size = chunk_size
        self._several_at_once = several_at_once
        self._squares = PerSampleSquares(
            model,
            parameters,
            Findings() if self_check else unchecked(model),
            looks=self_check,
            check=SelfCheck(model, parameters) if self_check else None,
        )
        self._rows_known = False
        self._sizes: list[tuple[int, int]] = []
        self._probes: list[_Probe] = []
        self.num_samples = 0

    @property
    def totals(self) -> dict[str, Tensor]:
        """The sums, by name."""
        return self._squares.totals

    @property
    def last_operation(self) -> str:
        """What computed the outputs."""
        return self._squares.last_operation

    def add(self, batches: Iterable[Batch]) -> None:
        """Add batches of at least one sample, small ones together.

        Raises:
            ValueError, RuntimeError: see ``fedcurv.fisher_diagonal``.
        """
        following = iter(batches)
        if (first := next(following, None)) is None:
            return
        with self._squares:
            with self._named(first):
                self._squares.begin(first.inputs)
            for several in gathered(chain([first], following), self._at_once):
                self._add_together(several)

    def _at_once(self, batch: Batch) -> int:
        findings = self._squares.findings
        if not self._several_at_once or findings.alone:
            return 0
        graph_bytes = findings.graph_bytes(batch.inputs)
        return samples_worth_a_pass(graph_bytes, len(batch), batch.inputs.device)

    def _add_together(self, batches: Sequence[Batch]) -> None:
        begun = self._squares.begun
        try:
            self._add(joined(batches))
        except Exception:
            if len(batches) == 1 or self._squares.begun > begun:
                raise
            # one of them is at fault, or the model takes no more samples than a batch has
            self._several_at_once = False
            for batch in batches:
                self._add(batch)

    def _add(self, batch: Batch) -> None:
        with self._named(batch):
            size = self._chunk_size or samples_at_once(
                self._squares.findings.graph_bytes(batch.inputs), len(batch), batch.inputs.device
            )
            for inputs, targets, counts in batch.in_parts(-(-len(batch) // size)):
                self._add_part(inputs, targets, counts, batch)
        self._sizes += batch.sizes

    def _add_part(
        self, inputs: Samples, targets: Tensor, counts: Tensor | None, batch: Batch
    ) -> None:
        of_outputs = partial(self._of_samples, targets=targets, counts=counts)
        cotangents = self._squares.add(inputs, of_outputs)
        if cotangents is None:
            if not self._rows_known:
                refuse_accidental_rows(self._model, batch.inputs)
            self._rows_known = True
            for rows, several in self._squares.add_apart(inputs, self._of_rows(targets, counts)):
                self._probes += [_Probe(self.num_samples, rows, _sums(v)) for v in several]
        else:
            self._probes += [_Probe(self.num_samples, None, _sums(v)) for v in cotangents]
        self.num_samples += len(inputs)

    def _of_samples(
        self, outputs: Tensor, *, targets: Tensor, counts: Tensor | None
    ) -> Sequence[Tensor]:
        cotangents = self._cotangents_of(outputs, targets=targets)
        return cotangents if counts is None else _Counted(cotangents, counts)

    def _of_rows(
        self, targets: Tensor, counts: Tensor | None
    ) -> Callable[[Tensor, Tensor], Sequence[Tensor]]:
        return lambda outputs, rows: self._of_samples(
            outputs, targets=targets[rows], counts=None if counts is None else counts[rows]
        )

    def require_finite(self) -> None:
        """Refuse what is not finite, naming the first batch with such outputs, or the parameters.

        Raises:
            ValueError: as said.
        """
        bad = [n for n, total in self.totals.items() if not math.isfinite(extremes(total)[1])]
        first = self._first_not_finite()
        if first is None and not bad:
            return
        batch = "" if first is None else f"batch {first}: "
        where = f" in {listed(bad)}" if bad else ""
        raise ValueError(
            f"{batch}expected finite losses and gradients, got NaN or inf{where}; has the training "
            "diverged, or do the inputs hold NaN?"
        )

    def _first_not_finite(self) -> int | None:
        """Return the index of the first batch with such cotangents; None if there is none."""
        finite = torch.cat([probe.sums for probe in self._probes]).isfinite()
        if bool(finite.all()):
            return None
        samples = torch.cat([probe.samples() for probe in self._probes])
        batch_of = [index for index, size in self._sizes for _ in range(size)]
        return batch_of[int(samples[~finite.cpu()].min())]

    @contextmanager
    def _named(self, batch: Batch) -> Iterator[None]:
        """Say in an error which batch it is of, and what that is like."""
        try:
            yield
        except ValueError as error:
            message = str(error)
            raise ValueError(
                message if message.startswith(("batch ", "batches ")) else f"{batch}: {message}"
            ) from error
        except (RuntimeError, LookupError, TypeError, AttributeError) as error:
            dtypes = {p.dtype for p in self._parameters.values() if p.is_floating_point()}
            of_inputs = {t.dtype for t in batch.inputs.tensors if t.is_floating_point()}
            if of_inputs and not of_inputs <= dtypes:
                names = ", ".join(sorted(_name_of(dtype) for dtype in dtypes))
                (wanted, *_) = dtypes
                raise ValueError(
                    f"{batch}: expected inputs in the model's type, {names}, got "
                    f"{batch.contents()}; convert the inputs by .to(torch.{_name_of(wanted)})"
                ) from error
            several = ", each taken to have the samples along its first axis"
            raise RuntimeError(
                f"{batch}: the model or the likelihood fails on {batch.contents()}"
                f"{several if len(batch.inputs.tensors) > 1 else ''}: {first_line(error)}"
            ) from error


class _Probe(NamedTuple):
    """What tells of some samples whether their cotangents are finite.

    Attributes:
        first: the number of the first sample of their part of a batch.
        rows: theirs in it; None for all.
        sums: finite only if the cotangents are, by sample.
    """

    first: int
    rows: Tensor | None
    sums: Tensor

    def samples(self) -> Tensor:
        """Return their numbers."""
        rows = torch.arange(len(self.sums)) if self.rows is None else self.rows.cpu()
        return rows + self.first


class _Counted(LazyTensors):
    """Cotangents of samples that each stand for several: their squares count so many times."""

    def __init__(self, cotangents: Sequence[Tensor], counts: Tensor) -> None:
        self._cotangents, self._roots = cotangents, counts.sqrt()

    def __len__(self) -> int:
        return len(self._cotangents)

    def made(self, index: int) -> Tensor:
        v = self._cotangents[index]
        return v * self._roots.to(v.dtype).view(-1, *[1] * (v.ndim - 1))


def _sums(cotangent: Tensor) -> Tensor:
    return cotangent.flatten(1).sum(1) if cotangent.ndim > 1 else cotangent


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
