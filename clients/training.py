"""The local training loop: E epochs of SGD or Adam, and FedProx's term."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedcurv.likelihoods import FisherKind
from fedcurv.parameters import gradients_of, trainable_parameters
from fedcurv.penalty import PenaltyMode
from fedcurv.steps import Steppable, require_no_closure, require_single_gradient, scale_of

OptimizerName = Literal["sgd", "adam"]
Trainer = Literal["local", "lasgd"]

# small batches only make an estimate slow; larger ones than in training would take more memory
_SMALLEST_FISHER_BATCH = 64

_TERM_IN_LOSS = "add (mu/2)·‖w − w_t‖² to the loss inside its closure instead"


@dataclass(frozen=True)
class TrainingSettings:
    """How a client trains for one round.

    Attributes:
        epochs: passes over the client's data, E >= 1.
        batch_size: B >= 1.
        optimizer: ``sgd`` or ``adam``.
        lr: learning rate > 0.
        momentum: of SGD, in [0, 1).
        weight_decay: >= 0.
        penalty_mode: how FedCurv's penalty is applied; see ``CurvaturePenalty.attach``.
        fisher_kind: see ``fisher_diagonal``.
        fisher_share: of its samples that a client estimates with, in (0, 1]; chosen anew in each
            round.
        device: ``auto`` takes CUDA where there is one; else a name that torch knows.
        num_threads: CPU threads of torch's operations; the bits of a sum depend on it.
        trainer: ``local`` trains in this process; ``lasgd`` by several workers of the site, each
            on a GPU where there are any; then the bits depend on their speeds.
        workers: of ``lasgd``, >= 1.
        sync_every: of ``lasgd``, see there.

    Raises:
        ValueError: naming every setting out of range.
    """

    epochs: int = 1
    batch_size: int = 32
    optimizer: OptimizerName = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    penalty_mode: PenaltyMode = "gradient"
    fisher_kind: FisherKind = "empirical"
    fisher_share: float = 1.0
    device: str = "auto"
    num_threads: int = 1
    trainer: Trainer = "local"
    workers: int = 2
    sync_every: int = 8

    @property
    def fisher_batch_size(self) -> int:
        """How many samples an estimate takes at once."""
        return max(self.batch_size, _SMALLEST_FISHER_BATCH)

    def __post_init__(self) -> None:
        """Collect everything that is out of range and raise once."""
        faults = [
            f"{name} must be {wanted}, got {getattr(self, name)!r}"
            for name, (holds, wanted) in _RULES.items()
            if not _holds_without_error(holds, getattr(self, name))
        ]
        if faults:
            raise ValueError("; ".join(faults))

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return an optimizer over the model's trainable parameters."""
        parameters = trainable_parameters(model).values()
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )

    def make_device(self) -> torch.device:
        """Return the device to train on.

        Raises:
            ValueError: if this machine has no such device.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(1, device=device).cpu()
        except (RuntimeError, AssertionError, ImportError) as error:
            why = str(error).partition("\n")[0]
            raise ValueError(
                f"client.device={self.device}: torch has no such device on this machine ({why}); "
                "use auto or cpu"
            ) from error
        return device


def _positive_integer(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


_RULES: dict[str, tuple[Callable[[Any], object], str]] = {
    "epochs": (_positive_integer, "an integer >= 1"),
    "batch_size": (_positive_integer, "an integer >= 1"),
    "optimizer": (lambda v: v in get_args(OptimizerName), "sgd or adam"),
    "lr": (lambda v: 0 < v < math.inf, "> 0 and finite"),
    "momentum": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "weight_decay": (lambda v: 0 <= v < math.inf, ">= 0 and finite"),
    "penalty_mode": (lambda v: v in get_args(PenaltyMode), "gradient or proximal"),
    "fisher_kind": (lambda v: v in get_args(FisherKind), "empirical, exact or sampled"),
    "fisher_share": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "device": (lambda v: v == "auto" or torch.device(v), "auto or a device that torch knows"),
    "num_threads": (_positive_integer, "an integer >= 1"),
    "trainer": (lambda v: v in get_args(Trainer), "local or lasgd"),
    "workers": (_positive_integer, "an integer >= 1"),
    "sync_every": (_positive_integer, "an integer >= 1"),
}


def _holds_without_error(holds: Callable[[Any], object], value: Any) -> bool:
    try:
        return not isinstance(value, bool) and bool(holds(value))  # true is no 1 here
    except (TypeError, RuntimeError):  # a value of another type, or no such device
        return False


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
        ValueError: if there are no samples.
    """
    for _ in range(epochs):
        total, num_samples = train_epoch(model, batches, optimizer, criterion)
        if num_samples == 0:
            raise ValueError("expected training samples, got none")
    return total / num_samples


def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    criterion: nn.Module | None = None,
) -> tuple[float, int]:
    """Train in place for one pass; return the sum of the losses per sample, and their number."""
    criterion = nn.CrossEntropyLoss() if criterion is None else criterion
    device = next(model.parameters()).device
    model.train()
    total, num_samples = torch.zeros((), device=device), 0
    for inputs, targets in batches:
        inputs, targets = inputs.to(device), targets.to(device)
        optimizer.zero_grad()
        loss = criterion(model(inputs), targets)
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(targets)
        num_samples += len(targets)
    return float(total), num_samples


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[float, float, int]:
    """Return mean cross-entropy, accuracy in [0, 1] and the number of samples, in eval mode.

    Raises:
        ValueError: if there are no samples.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    loss = correct = torch.zeros((), device=device)
    num_samples = 0
    for inputs, targets in batches:
        inputs, targets = inputs.to(device), targets.to(device)
        logits = model(inputs)
        loss = loss + nn.functional.cross_entropy(logits, targets, reduction="sum")
        correct = correct + (logits.argmax(dim=1) == targets).sum()
        num_samples += len(targets)
    model.train(was_training)
    if num_samples == 0:
        raise ValueError("expected samples to evaluate on, got none")
    return float(loss) / num_samples, float(correct) / num_samples, num_samples


def attach_proximal_term(
    optimizer: torch.optim.Optimizer, model: nn.Module, mu: float
) -> RemovableHandle:
    """Add FedProx's μ(w − w_t), the gradient of (μ/2)‖w − w_t‖², before every step.

    w_t is the model as it is now. The norm is squared, and w is the weights of each step. A step
    pulls at those of the parameters that the optimizer holds and that require gradients then, back
    to w_t with ``maximize=True`` as well; a sparse gradient becomes dense.

    Raises:
        ValueError: if mu is negative or not finite.
        TypeError: for LBFGS and SparseAdam, whose steps such a gradient does not fit.
        RuntimeError: at a step that is given a closure, whose backward pass would come after.
    """
    if not 0 <= mu < math.inf:
        raise ValueError(f"proximal-mu must be finite and >= 0, got {mu!r}; use 0 for plain FedAvg")
    require_single_gradient(optimizer, _TERM_IN_LOSS)
    steppable = Steppable(trainable_parameters(model))
    steppable.require_dense_steps(optimizer, "take SGD or Adagrad, or sparse=False")
    anchors = [p.detach().clone() for p in steppable.parameters]

    @torch.no_grad()
    def pull_back(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        require_no_closure(args, kwargs, "FedProx's term is attached", _TERM_IN_LOSS)
        for group, indices in steppable.stepped_by(optimizer):
            parameters = [steppable.parameters[i] for i in indices]
            away = torch._foreach_sub(parameters, [anchors[i] for i in indices])
            scale = scale_of(optimizer, group)
            if isinstance(scale, Tensor):
                torch._foreach_mul_(away, scale)
                scale = 1.0
            torch._foreach_add_(gradients_of(parameters), away, alpha=scale * mu)

    return optimizer.register_step_pre_hook(pull_back)
