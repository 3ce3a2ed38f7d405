"""Ways that samples take through a forward pass which reads values, and which samples take one.

Python that reads a value (``if mask.all():``) may go one way for a batch and another for a sample
of it alone, and the information is that of samples alone. Those that go one way alone are taken at
once, for this reason:

1. One sample is run alone and followed. Of each value that Python reads and the sample enters, the
   functions are kept that led to it.
2. These are called on every other sample alone. Python sees of a sample nothing but shapes, which
   all share, and what it reads. So a sample for which every read, in turn, would give what it gave
   to the first calls the same functions in the same order: the two go one way.
3. Samples of one way are run as one batch, and every read in it must give what it gives to each of
   them alone. So the batch goes their way too, though it reads values of the whole batch.
4. Seven of them are followed: no value that is made of several samples may enter the outputs (see
   ``following``). So such values serve to be read, and what was read is each sample's own.

Where one of this fails, or cannot be said (values changed in place, more than a few ways), samples
are taken one after another. As with all batches, outputs are compared with those of one sample.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedcurv.global_state import random_states, random_states_kept, same_states
from fedcurv.per_sample.following import Following, Function, Read, name_of, values_in, versions
from fedcurv.per_sample.nests import mapped
from fedcurv.per_sample.recent import remember
from fedcurv.per_sample.samples import FAILURES, Samples
from fedcurv.per_sample.sharing import followed
from fedcurv.per_sample.surroundings import buffers_kept

# of one batch; samples that go further ones are taken one after another
_MOST = 8
_REMEMBERED = 32


class _Step(NamedTuple):
    """A function that was called on something followed, and what it gave."""

    func: Function
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    reads: bool
    arguments_versions: list[int]
    results_versions: list[int]

    def kept(self) -> bool:
        """Return whether nothing that the call took or gave was changed in place."""
        now = versions((self.args, self.kwargs)), versions(self.result)
        return now == (self.arguments_versions, self.results_versions)


class _Recording(Following):
    """Follows one sample and keeps what is called on it."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__(inputs, 1)
        self.steps: list[_Step] = []

    def call(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function, and keep the call."""
        takes_samples, number = self.follows((args, kwargs)), len(self.reads)
        before = versions((args, kwargs)) if takes_samples else []
        result = super().call(func, args, kwargs)
        if takes_samples:
            reads = len(self.reads) > number
            self.steps.append(_Step(func, args, kwargs, result, reads, before, versions(result)))
        return result

    def leading_to_reads(self) -> list[_Step]:
        """Return the steps that values which are read depend on, in their order."""
        needed: set[int] = set()
        chosen = []
        for step in reversed(self.steps):
            made = [step.result, step.args[:1] if name_of(step.func) == "__setitem__" else ()]
            if step.reads or any(id(v) in needed for v in values_in(made)):
                chosen.append(step)
                arguments = values_in((step.args, step.kwargs))
                needed |= {id(value) for value in arguments if isinstance(value, Tensor)}
        return chosen[::-1]


class Way:
    """The way of a sample alone.

    Args:
        one: the sample's tensors.
        reads: what was read on it.
        steps: that lead to the reads which the sample enters.

    Attributes:
        at_once: whether those that go it may be run as one batch; None if that is unknown.
    """

    def __init__(
        self, one: Sequence[Tensor], reads: Sequence[Read], steps: Sequence[_Step]
    ) -> None:
        self._one = one
        self._reads = reads
        self._steps = steps
        self.at_once: bool | None = None

    def is_of(self, one: Sequence[Tensor]) -> bool:
        """Return whether another sample goes this way when it is alone."""
        values = {id(mine): other for mine, other in zip(self._one, one, strict=True)}
        try:
            return all(_agrees(step, values) for step in self._steps)
        except FAILURES:
            return False

    def meets(self, reads: Sequence[Read]) -> bool:
        """Return whether a pass over several has read what is read on each alone."""
        return len(reads) == len(self._reads) and all(
            mine.name == other.name and (not mine.followed or mine.value == other.value)
            for mine, other in zip(self._reads, reads, strict=True)
        )


class Ways:
    """The ways through a model.

    Args:
        model: in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: dict[Hashable, tuple[Hashable, Way]] = {}
        self._number = 0

    @torch.no_grad()
    def split(self, inputs: Samples) -> Iterator[tuple[Tensor, Way | None]]:
        """Yield the rows of samples that go one way, and the way; None if they must be apart."""
        rest = list(range(len(inputs)))
        ones = [[t[n : n + 1] for t in inputs.tensors] for n in rest]
        kind = inputs.form, *((t.shape[1:], t.dtype) for t in inputs.tensors)
        known = [way for of, way in self._known.values() if of == kind]
        for _ in range(_MOST):
            if not rest:
                return
            way = known.pop() if known else self._way_of(inputs[rest[0] : rest[0] + 1], kind)
            if way is None:
                break
            alike = [n for n in rest if way.is_of(ones[n])]
            taken = set(alike)
            rest = [n for n in rest if n not in taken]
            if alike:
                rows = torch.tensor(alike, device=inputs.device)
                at_once = len(alike) > 1 and self._may_be_taken_at_once(way, inputs[rows])
                yield rows, way if at_once else None
        if rest:
            yield torch.tensor(rest, device=inputs.device), None

    def _way_of(self, one: Samples, kind: Hashable) -> Way | None:
        recording = _Recording(one.tensors)
        with buffers_kept(self._model), random_states_kept(one.device):
            before = random_states(one.device)
            try:
                with recording:
                    one.outputs(self._model)
            except FAILURES:
                return None  # what is wrong shows in a pass of its own
            drawn = not same_states(before, random_states(one.device))
        steps = recording.leading_to_reads()
        if recording.shares is not None or drawn or not all(step.kept() for step in steps):
            return None
        way = Way(one.tensors, recording.reads, steps)
        if one.form is not None:
            self._number += 1
            remember(self._known, self._number, (kind, way), _REMEMBERED)
        return way

    def _may_be_taken_at_once(self, way: Way, inputs: Samples) -> bool:
        if way.at_once is None:
            with buffers_kept(self._model), random_states_kept(inputs.device):
                following = followed(self._model, inputs)
            way.at_once = (
                following is not None and following.shares is None and way.meets(following.reads)
            )
        return way.at_once


def _agrees(step: _Step, values: dict[int, Any]) -> bool:
    """Call a function on another sample; return whether it reads there what it read."""
    args, kwargs = mapped(lambda value: values.get(id(value), value), (step.args, step.kwargs))
    got = step.func(*args, **kwargs)
    if step.reads:
        return bool(got == step.result)
    both = zip(values_in(step.result), values_in(got), strict=True)
    values.update((id(mine), other) for mine, other in both if isinstance(mine, Tensor))
    return True
