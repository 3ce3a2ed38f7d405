"""The local training loop: E epochs over batches in memory, and evaluation."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedcurv.clients.scores import Score, sums_of_classes


@dataclass
class InMemoryBatches:
    """Batches cut from tensors in memory; with a generator, reshuffled at each pass.

    Attributes:
        inputs: shape (N, ...).
        targets: shape (N, ...).
        batch_size: the last batch may be smaller.
        generator: decides the order; None keeps it.
    """

    inputs: Tensor
    targets: Tensor
    batch_size: int
    generator: torch.Generator | None = field(default=None)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs, targets)."""
        if self.generator is None:
            yield from zip(
                torch.split(self.inputs, self.batch_size),
                torch.split(self.targets, self.batch_size),
                strict=True,
            )
            return
        for indices in torch.split(self.order().to(self.inputs.device), self.batch_size):
            yield self.inputs[indices], self.targets[indices]

    def order(self) -> Tensor:
        """Return the order of the next pass, as the generator has it."""
        return torch.randperm(len(self.inputs), generator=self.generator)


def train(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int = 1,
    criterion: nn.Module | None = None,
) -> float:
    """Train in place and return the mean loss per sample over the last epoch, without penalties.

    Args:
        model: left in train mode.
        batches: iterated once per epoch.
        optimizer: over the model's parameters; penalties are hooked to its steps.
        epochs: >= 1.
        criterion: mean loss over a batch; cross-entropy by default.

    Raises:
        ValueError: if there are no samples, or the criterion does not return a batch's mean loss.
    """
    for epoch in range(epochs):
        total, num_samples = train_epoch(model, batches, optimizer, criterion, is_first=epoch == 0)
        if num_samples == 0:
            raise ValueError("expected training samples, got none")
    return total / num_samples


def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    criterion: nn.Module | None = None,
    *,
    is_first: bool = True,
) -> tuple[float, int]:
    """Train in place for one pass; return the sum of the losses per sample, and their number.

    Args:
        model: see :func:`train`.
        batches: see :func:`train`.
        optimizer: see :func:`train`.
        criterion: see :func:`train`.
        is_first: of the passes of a round, whose first loss is checked.

    Raises:
        ValueError: if that is not the mean loss of a batch, and finite.
    """
    criterion = nn.CrossEntropyLoss() if criterion is None else criterion
    device = next(model.parameters()).device
    model.train()
    total, num_samples = torch.zeros((), device=device), 0
    for inputs, targets in batches:
        inputs, targets = inputs.to(device), targets.to(device)
        optimizer.zero_grad()
        loss = criterion(model(inputs), targets)
        if is_first and num_samples == 0 and (fault := fault_of_loss(loss)):
            raise ValueError(f"client.loss ({type(criterion).__name__}): {fault}")
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(targets)
        num_samples += len(targets)
    return float(total), num_samples


def fault_of_loss(loss: object) -> str:
    """Return what keeps a model from being trained by a batch's loss, in words; or nothing."""
    wanted = "expected a batch's mean loss, a tensor of shape () that requires gradients"
    if not isinstance(loss, Tensor):
        return f"{wanted}, got {type(loss).__name__}; return such a tensor"
    if loss.ndim or not loss.requires_grad:
        remedy = (
            "reduce it by .mean()"
            if loss.ndim
            else "compute it from the outputs, without detach() and item()"
        )
        got = f"shape {tuple(loss.shape)} and requires_grad={loss.requires_grad}"
        return f"{wanted}, got {got}; {remedy}"
    if not loss.isfinite():
        return (
            f"expected a finite loss of the first batch, got {loss.detach():g}; look for "
            "logarithms of 0 and divisions by 0 in it, or for absurd weights from the server"
        )
    return ""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    sums: Score = sums_of_classes,
) -> tuple[float, float, int]:
    """Return mean loss, share of right predictions and their number, in eval mode.

    Args:
        model: to evaluate; left in the mode that it was in.
        batches: inputs and targets.
        sums: of a batch's outputs and targets; by default those of cross-entropy and accuracy.

    Raises:
        ValueError: if there are no samples.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    loss = correct = torch.zeros((), device=device)
    number = 0
    for inputs, targets in batches:
        inputs, targets = inputs.to(device), targets.to(device)
        loss_of_batch, correct_of_batch, number_of_batch = sums(model(inputs), targets)
        loss, correct = loss + loss_of_batch, correct + correct_of_batch
        number += number_of_batch
    model.train(was_training)
    if number == 0:
        raise ValueError("expected samples to evaluate on, got none")
    return float(loss) / number, float(correct) / number, number
