"""Batches of several clients side by side, padded to the largest of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# inputs, labels, and how many samples each stands for, if not for itself alone
ChosenSamples = tuple[Tensor, Tensor, Tensor | None]


class StackedSamples:
    """Every client's samples, one client after the other, on one device.

    Args:
        clients: inputs (N, ...) and labels (N) of each.
        device: where they are wanted.

    Attributes:
        inputs: flattened, shape (samples of all clients, width).
        labels: shape (samples of all clients).
        sizes: how many samples each client has.
        roots: the root of how many samples each stands for, likewise; None for itself alone.
    """

    roots: Tensor | None = None

    def __init__(self, clients: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> None:
        self.sizes = [len(labels) for _, labels in clients]
        first, _ = clients[0]
        self.inputs = torch.empty(sum(self.sizes), first[0].numel(), device=device)
        self.labels = torch.empty(sum(self.sizes), dtype=torch.int64, device=device)
        # each to its place: to put them together first would take as long as to send them
        for (inputs, labels), place, label_place in zip(
            clients,
            torch.split(self.inputs, self.sizes),
            torch.split(self.labels, self.sizes),
            strict=True,
        ):
            place.copy_(inputs.flatten(1))
            label_place.copy_(labels)


def stacked_choice(clients: Sequence[ChosenSamples], device: torch.device) -> StackedSamples:
    """Return the samples that each client has chosen."""
    samples = StackedSamples([(inputs, labels) for inputs, labels, _ in clients], device)
    if any(counts is not None for *_, counts in clients):
        roots = [torch.ones(len(y)) if n is None else n.sqrt().float() for _, y, n in clients]
        samples.roots = torch.cat(roots).to(device)
    return samples


@dataclass
class Step:
    """Every client's batch of one step.

    Attributes:
        inputs: shape (clients, batch size, width).
        labels: shape (clients, batch size, 1).
        shares: shape (clients, batch size, 1): one over the client's batch's size, 0 for padding.
        active: shape (clients): 1 where a client takes the step; None if all do.
        roots: shape (clients, batch size, 1), see ``StackedSamples``.
    """

    inputs: Tensor
    labels: Tensor
    shares: Tensor
    active: Tensor | None
    roots: Tensor | None = None


class StackedBatches:
    """One pass over every client's samples, in the order that was set last.

    Args:
        samples: of the clients.
        batch_size: >= 1; each client's last batch may be smaller.
    """

    def __init__(self, samples: StackedSamples, batch_size: int) -> None:
        self._samples, device = samples, samples.inputs.device
        sizes, longest = torch.tensor(samples.sizes).unsqueeze(1), max(samples.sizes)
        self._firsts = sizes.cumsum(0) - sizes
        self._steps = [slice(first, first + batch_size) for first in range(0, longest, batch_size)]
        within = torch.arange(longest) < sizes
        # how many samples each client has in each step
        rows = torch.stack([within[:, step].sum(1) for step in self._steps], dim=1)
        shares = [within[:, s] / rows[:, i, None].clamp(min=1) for i, s in enumerate(self._steps)]
        self._shares = [share.unsqueeze(2).to(device) for share in shares]
        active = (rows > 0).float().to(device)
        self._active = [
            None if all_are else active[:, index]
            for index, all_are in enumerate((rows > 0).all(0).tolist())
        ]
        # filled in place: what is queued on a GPU reads from here
        self._chosen = torch.zeros(within.numel(), dtype=torch.int64, device=device)

    def set_order(self, orders: Sequence[Tensor]) -> None:
        """Set the order of the next passes.

        Args:
            orders: a permutation of each client's samples, on the CPU.
        """
        padded = torch.nn.utils.rnn.pad_sequence(list(orders), batch_first=True) + self._firsts
        chosen = torch.cat([padded[:, step].flatten() for step in self._steps])
        if self._chosen.is_cuda:
            chosen = chosen.pin_memory()  # so that the GPU need not be idle for the copy
        self._chosen.copy_(chosen, non_blocking=True)

    def __iter__(self) -> Iterator[Step]:
        """Yield the steps of a pass."""
        clients, width = len(self._samples.sizes), self._samples.inputs.shape[1]
        of_steps = torch.split(self._chosen, [share.numel() for share in self._shares])
        roots = self._samples.roots
        for chosen, shares, active in zip(of_steps, self._shares, self._active, strict=True):
            yield Step(
                self._samples.inputs.index_select(0, chosen).view(clients, -1, width),
                self._samples.labels.index_select(0, chosen).view(clients, -1, 1),
                shares,
                active,
                None if roots is None else roots.index_select(0, chosen).view(clients, -1, 1),
            )
