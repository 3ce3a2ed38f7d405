"""Dealing of samples: each once an epoch, to whoever asks next."""

import inspect
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fedcurv.lasgd.control import Control

# of a DataLoader's options: those that no loader of shared samples has, and that may be off
_OWN = ("drop_last", "sampler", "batch_sampler")

# so that the generator of every epoch gets one of its own
_LARGEST_SEED = 2**40

# ranges, before they are merged
_MANY = 1000


@dataclass(frozen=True)
class Claim:
    """Samples that one worker has taken: an epoch, and where in its order they are."""

    epoch: int
    begin: int
    end: int


class Trained:
    """Where in each epoch's order the samples are that the common model has been trained on."""

    def __init__(self) -> None:
        self._ranges: dict[int, list[tuple[int, int]]] = {}

    @property
    def epochs(self) -> set[int]:
        """Epochs of which anything has landed."""
        return set(self._ranges)

    def add(self, claims: Iterable[Claim]) -> None:
        """Note what has landed."""
        for claim in claims:
            ranges = self._ranges.setdefault(claim.epoch, [])
            ranges.append((claim.begin, claim.end))
            if len(ranges) > _MANY:
                ranges[:] = _merged(ranges)

    def ranges(self, epoch: int) -> list[tuple[int, int]]:
        """Return begins and ends, in order and as few as possible."""
        return _merged(self._ranges.get(epoch, []))


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


class Deck:
    """Every epoch's order of samples, and what of it is left.

    Args:
        num_samples: in an epoch.
        trained: what has landed.
        shuffle: else samples are dealt in their own order.
        seed: decides the order, together with the epoch.
        state: of :meth:`state_dict`, to go on from.

    Raises:
        ValueError: if there are no samples, or the state is of another data set.
    """

    def __init__(
        self,
        num_samples: int,
        trained: Trained,
        *,
        shuffle: bool = True,
        seed: int = 0,
        state: dict[str, Any] | None = None,
    ) -> None:
        if num_samples < 1:
            raise ValueError(f"expected a data set with samples, got {num_samples}")
        self._num_samples, self._trained = num_samples, trained
        self._shuffle, self._seed = shuffle, seed
        self._first = 0
        self._rests: dict[int, Tensor] = {}
        if state is not None:
            if state["num_samples"] != num_samples:
                raise ValueError(
                    f"expected the data set of the saved state, with {state['num_samples']} "
                    f"samples, got one with {num_samples}"
                )
            self._first, self._rests = state["first"], dict(state["rests"])

    def order(self, epoch: int) -> Tensor:
        """Return the samples of an epoch that are dealt, shape (n,), int64."""
        if epoch in self._rests:
            return self._rests[epoch]
        if not self._shuffle:
            return torch.arange(self._num_samples)
        generator = torch.Generator().manual_seed(1_000_003 * self._seed + epoch)
        order: Tensor = torch.randperm(self._num_samples, generator=generator)
        return order

    def rest(self, epoch: int) -> Tensor:
        """Return the samples of an epoch that have not landed, in order."""
        order = self.order(epoch)
        left = torch.ones(len(order), dtype=torch.bool)
        for begin, end in self._trained.ranges(epoch):
            left[begin:end] = False
        rest: Tensor = order[left]
        return rest

    @property
    def first_epoch(self) -> int:
        """The first epoch of which not all has landed."""
        epoch = self._first
        while self._has_landed(epoch):
            epoch += 1
        return epoch

    def _has_landed(self, epoch: int) -> bool:
        dealt = len(self._rests[epoch]) if epoch in self._rests else self._num_samples
        return sum(end - begin for begin, end in self._trained.ranges(epoch)) == dealt

    @property
    def description(self) -> dict[str, Any]:
        """What must be the same at all workers, so that each sample is dealt once an epoch."""
        return {
            "samples": self._num_samples,
            "shuffle": self._shuffle,
            "seed": self._seed,
            "first epoch": self._first,
            "samples left": {str(epoch): len(rest) for epoch, rest in self._rests.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what is left of the epochs that have begun."""
        first = self.first_epoch
        begun = {first, *self._rests, *self._trained.epochs}
        rests = {epoch: self.rest(epoch) for epoch in sorted(begun) if epoch >= first}
        return {"num_samples": self._num_samples, "first": first, "rests": rests}


def check_loader(
    dataset: Dataset[Any], batch_size: int, shuffle: bool, seed: int, options: Mapping[str, Any]
) -> None:
    """Raise a ValueError for what no shared order of samples can be dealt from."""
    kind = type(dataset).__name__
    is_map = hasattr(dataset, "__getitem__") or hasattr(dataset, "__getitems__")
    other = isinstance(dataset, Mapping | IterableDataset)
    if other or not is_map or not hasattr(dataset, "__len__"):
        raise ValueError(
            "expected a data set with a length and samples by index, of which each is dealt once, "
            f"got {kind}; give every worker a torch DataLoader of its own part of it instead"
        )
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer >= 1, got {batch_size!r}")
    if not isinstance(shuffle, bool):
        raise ValueError(f"shuffle must be True or False, got {shuffle!r}")
    if not isinstance(seed, int) or isinstance(seed, bool) or abs(seed) > _LARGEST_SEED:
        raise ValueError(f"seed must be an integer of at most 2^40 in size, got {seed!r}")
    # an empty sampler is one, too
    taken = [n for n in _OWN if options.get(n) is not None and options[n] is not False]
    if taken:
        raise ValueError(
            f"loader() deals every sample itself and takes no {' or '.join(taken)}; leave it out: "
            "the last batch of an epoch may be smaller, for one worker"
        )
    unknown = sorted(options.keys() - inspect.signature(DataLoader.__init__).parameters.keys())
    if unknown:
        raise ValueError(f"loader() knows no {', '.join(unknown)}, nor does torch's DataLoader")
    try:  # now, and not when the training has begun
        DataLoader(dataset, batch_sampler=[], **_for_torch(options))
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(
            f"loader() gives {', '.join(options)} to torch's DataLoader: {error}"
        ) from error


def _for_torch(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _OWN}


class SharedLoader:
    """Batches of an epoch, as long as any worker leaves some; a pass is an epoch of all together.

    Args:
        dataset: with a length, the same at all workers.
        deck: says in which order.
        batch_size: of this worker; others may take another.
        control: a view of its own.
        require_within: raises where no batch may be dealt.
        note: told of each claim when its batch is handed out.
        options: for ``torch.utils.data.DataLoader``. With its processes batches are claimed well
            ahead of use.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        deck: Deck,
        batch_size: int,
        control: Control,
        require_within: Callable[[], None],
        note: Callable[[Claim], None],
        options: dict[str, Any],
    ) -> None:
        self._dataset, self._deck, self._batch_size = dataset, deck, batch_size
        self._control, self._require_within, self._note = control, require_within, note
        self._options = _for_torch(options)
        self._epoch = deck.first_epoch

    def __iter__(self) -> Iterator[Any]:
        """Yield batches of the next epoch.

        Raises:
            RuntimeError: outside of the ``with`` block, where nothing is averaged.
        """
        self._require_within()
        epoch, self._epoch = self._epoch, self._epoch + 1
        order = self._deck.order(epoch)
        claimed: deque[Claim] = deque()
        with ThreadPoolExecutor(1, "lasgd-claims") as thread:

            def next_claim() -> Claim:
                begin = self._control.claim(epoch, self._batch_size)
                return Claim(epoch, begin, min(begin + self._batch_size, len(order)))

            def indices() -> Iterator[list[int]]:
                coming = thread.submit(next_claim)
                while (claim := coming.result()).begin < len(order):
                    claimed.append(claim)
                    coming = thread.submit(next_claim)
                    yield order[claim.begin : claim.end].tolist()

            for batch in DataLoader(self._dataset, batch_sampler=indices(), **self._options):
                self._note(claimed.popleft())
                yield batch


def packed(claims: Sequence[Claim]) -> str:
    """Return claims as text."""
    return json.dumps([[c.epoch, c.begin, c.end] for c in claims])


def unpacked(text: str) -> list[Claim]:
    """Return claims from text."""
    return [Claim(*numbers) for numbers in json.loads(text)]
