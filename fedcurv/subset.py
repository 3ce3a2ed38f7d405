"""The samples that a Fisher information is estimated with, where these are not all.

Of N samples m are chosen at random, without replacement. Where the targets are class labels, of at
most m classes, so many of each are chosen: of the n_h samples of class h, m_h >= 1, each of which
stands for n_h / m_h. With s_n the squared gradients of a sample,

    F = 1/N Σ_h n_h/m_h Σ_{n chosen of h} s_n

whose expectation is the mean of s_n over all N samples. The m_h are the whole numbers of sum m for
which Σ_h n_h² / m_h is least, to which the variance is proportional where all classes vary alike:
the classes' shares, as nearly as whole numbers can be. For other targets, or more classes than m,
all samples are one class.
"""

import heapq
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor

from fedcurv.gathering import Batch

# how many samples: so many, as many as are enough, or all
Number = int | Literal["auto", "all"]

# what ``auto`` takes: this share of the samples, but no fewer and no more than these
_SHARE = 10
_FEWEST = 24
_MOST = 64
# above every number that is drawn for a sample
_HIGHEST = 2**62


def check_number(number: Any) -> bool:
    """Return whether this says how many samples to take."""
    if isinstance(number, str):
        return number in ("auto", "all")
    return isinstance(number, Integral) and not isinstance(number, bool) and int(number) >= 1


def require_number(number: Any) -> None:
    """Refuse what does not say how many samples to take.

    Raises:
        ValueError: as said.
    """
    if not check_number(number):
        raise ValueError(f"samples must be an integer >= 1, 'auto' or 'all', got {number!r}")


def number_of(number: Number, num_samples: int) -> int:
    """Return how many of so many samples are taken."""
    if not isinstance(number, str):
        return min(int(number), num_samples)
    enough = min(max(_FEWEST, -(-num_samples // _SHARE)), _MOST)
    return num_samples if number == "all" else min(enough, num_samples)


def chosen(
    targets: Tensor, number: Number, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Return some samples' rows in ascending order, and how many each stands for.

    Args:
        targets: of all samples, shape (N, ...).
        number: see ``fedcurv.fisher_diagonal``.
        generator: draws them; None for the global random state.
    """
    keys = _keys(len(targets), generator)
    labels = class_labels(targets)
    if labels is None:
        labels = torch.zeros(len(targets), dtype=torch.long)
    sizes = Counter(labels.tolist())
    return _lowest(keys, labels, sizes, number_of(number, len(targets)))


def class_labels(targets: Tensor) -> Tensor | None:
    """Return the class label of each sample, on the CPU; None if the targets are no such labels.

    Whole numbers are, one for each sample, and floats that are all 0 or 1.
    """
    if targets.numel() != len(targets) or targets.is_complex():
        return None
    labels = targets.detach().reshape(-1).cpu()
    if labels.is_floating_point() and not bool(((labels == 0) | (labels == 1)).all()):
        return None
    return labels.long()


def allocation(sizes: Sequence[int], number: int) -> list[int]:
    """Return m_h >= 1 of sum ``number`` for which Σ_h n_h² / m_h is least.

    Args:
        sizes: n_h >= 1, at most ``number`` of them.
        number: m, at most their sum.
    """
    shares = [1] * len(sizes)
    # one more of class h takes n_h² / (m_h (m_h + 1)) off the sum
    gains = [(-n * n / 2, place) for place, n in enumerate(sizes) if n > 1]
    heapq.heapify(gains)
    for _ in range(number - len(sizes)):
        _, place = gains[0]
        shares[place] += 1
        n, m = sizes[place], shares[place]
        if m < n:
            heapq.heapreplace(gains, (-n * n / (m * (m + 1)), place))
        else:
            heapq.heappop(gains)
    return shares


class Subset:
    """Chooses samples of batches that are read once, one after the other.

    Of each class no more are held than twice as many as may be chosen; no model sees the others.

    Args:
        number: see ``fedcurv.fisher_diagonal``; not ``all``.
        generator: draws them; None for the global random state.
        copies: whether what is held is copied, as a loader may read into the same memory again.

    Attributes:
        num_samples: N, of all that was read.
    """

    def __init__(
        self, number: Number, generator: torch.Generator | None = None, *, copies: bool = True
    ) -> None:
        self._number, self._generator, self._copies = number, generator, copies
        self._most = _MOST if isinstance(number, str) else int(number)
        self._has_classes = True
        self._sizes: Counter[int] = Counter()
        self._held: list[_Held] = []
        self._num_held = 0
        # by class: who has a higher key is not among those that may be chosen
        self._highest: dict[int, int] = {}
        self.num_samples = 0

    def read(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Read all batches, then yield the chosen samples in their order."""
        for batch in batches:
            self._add(batch)
        if not self.num_samples:
            return
        number = number_of(self._number, self.num_samples)
        rows, counts = _lowest(*self._keys_and_labels(), self._sizes, number)
        held, self._held = self._held, []
        for part, some in _by_part(held, rows):
            batch = part.batch.rows(part.rows[rows[some] - part.first])
            yield batch if number == self.num_samples else batch.standing_for(counts[some])

    def _add(self, batch: Batch) -> None:
        keys = _keys(len(batch), self._generator)
        self.num_samples += len(batch)
        labels = class_labels(batch.targets) if self._has_classes else None
        if labels is not None:
            self._sizes.update(labels.tolist())
        if self._has_classes and (labels is None or len(self._sizes) > self._most):
            self._forget_classes()
        if labels is None or not self._has_classes:
            labels = torch.zeros_like(keys)
            self._sizes[0] = self.num_samples
        rows = torch.arange(len(batch))
        if self._highest:
            highest = [self._highest.get(label, _HIGHEST) for label in labels.tolist()]
            rows = rows[keys <= torch.tensor(highest)]
        if len(rows) > 2 * self._most * len(self._sizes):
            rows = rows[_ranks(keys[rows], labels[rows]) < self._most]
        if len(rows):
            self._hold(batch, rows, keys[rows], labels[rows])
        if self._num_held > 2 * self._most * len(self._sizes):
            self._let_go()

    def _hold(self, batch: Batch, rows: Tensor, keys: Tensor, labels: Tensor) -> None:
        if self._copies:
            batch, rows = batch.rows(rows), torch.arange(len(rows))
        self._held.append(_Held(batch, rows, keys, labels, self._num_held))
        self._num_held += len(rows)

    def _forget_classes(self) -> None:
        self._has_classes = False
        self._sizes, self._highest = Counter(), {}
        self._held = [replace(p, labels=torch.zeros_like(p.labels)) for p in self._held]

    def _keys_and_labels(self) -> tuple[Tensor, Tensor]:
        return torch.cat([p.keys for p in self._held]), torch.cat([p.labels for p in self._held])

    def _let_go(self) -> None:
        """Let go of the samples that cannot be chosen any more."""
        keys, labels = self._keys_and_labels()
        ranks = _ranks(keys, labels)
        last = ranks == self._most - 1
        self._highest = dict(zip(labels[last].tolist(), keys[last].tolist(), strict=True))
        rows = (ranks < self._most).nonzero().flatten()
        held, self._held, self._num_held = self._held, [], 0
        for part, some in _by_part(held, rows):
            own = rows[some] - part.first
            self._hold(part.batch, part.rows[own], part.keys[own], part.labels[own])


@dataclass(frozen=True)
class _Held:
    """Some samples of a batch.

    Attributes:
        batch: that they are in.
        rows: where in it.
        keys: the number that was drawn for each.
        labels: their classes.
        first: the place of the first of them among all that are held.
    """

    batch: Batch
    rows: Tensor
    keys: Tensor
    labels: Tensor
    first: int


def _keys(size: int, generator: torch.Generator | None) -> Tensor:
    """Return a random number for each sample; those with the lowest are chosen."""
    device = "cpu" if generator is None else generator.device
    return torch.randint(_HIGHEST, (size,), generator=generator, device=device).cpu()


def _lowest(
    keys: Tensor, labels: Tensor, sizes: Counter[int], number: int
) -> tuple[Tensor, Tensor]:
    """Return the rows of so many lowest keys by class, and how many samples each stands for."""
    if len(sizes) > number:
        labels, sizes = torch.zeros_like(labels), Counter({0: sizes.total()})
    shares = dict(zip(sizes, allocation(list(sizes.values()), number), strict=True))
    classes = sorted(sizes)
    of_class = torch.searchsorted(torch.tensor(classes), labels)
    share = torch.tensor([shares[label] for label in classes])
    count = torch.tensor([sizes[c] / shares[c] for c in classes], dtype=torch.float64)
    rows = (_ranks(keys, labels) < share[of_class]).nonzero().flatten()
    return rows, count[of_class[rows]]


def _ranks(keys: Tensor, labels: Tensor) -> Tensor:
    """Return how many samples of its class have a lower key than each sample."""
    order = keys.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]
    ordered, places = labels[order], torch.arange(len(order))
    begins = torch.cat([places[:1] == 0, ordered[1:] != ordered[:-1]])
    firsts, _ = (places * begins).cummax(0)
    return torch.empty_like(order).scatter_(0, order, places - firsts)


def _by_part(held: Iterable[_Held], rows: Tensor) -> Iterator[tuple[_Held, slice]]:
    """Yield each part with some of these ascending rows, and where in ``rows`` they are."""
    places = rows.tolist()
    for part in held:
        begin = bisect_left(places, part.first)
        end = bisect_left(places, part.first + len(part.keys))
        if begin < end:
            yield part, slice(begin, end)
