"""Several multilayer perceptrons of one shape, trained side by side by closed-form gradients.

Each step is the one that ``fedcurv.clients.train`` takes with plain SGD and cross-entropy, for
every client on its own batch, to rounding: the same batches in the same order, FedProx's term,
FedCurv's penalty as a gradient or a proximal step. One matrix product for all clients does the work
of many small ones; the product that forms a weight's gradient takes the step at once. Convolutions
are no small operations: stacked, they were slower on a CPU (tests/benchmarks).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fedcurv.clients.app import LocalRound, LocalTask
from fedcurv.clients.training import InMemoryBatches
from fedcurv.losses import CrossEntropy
from fedcurv.quadratic import Quadratic
from fedcurv.simulations.products import affine, back_through, step_


@dataclass
class _Parameter:
    """One parameter of all clients.

    Attributes:
        values: shape (clients, ...).
        start: as the round began, for FedProx; None without it.
        pull: the others' statistics, for proximal steps in that form; None without a penalty.
    """

    values: Tensor
    start: Tensor | None
    pull: Quadratic | None


@dataclass
class _Step:
    """Every client's batch of one step, padded to the largest of them.

    Attributes:
        samples: shape (clients * batch size), rows of all clients' samples.
        shares: shape (clients, batch size, 1): one over the batch's size, 0 for padding.
        active: shape (clients): 1 where a client takes the step; None if all do.
    """

    samples: Tensor
    shares: Tensor
    active: Tensor | None


def can_be_stacked(task: LocalTask) -> bool:
    """Return whether a client's task is of the kind that this module trains."""
    settings = task.settings
    return (
        settings.optimizer == "sgd"
        and settings.momentum == settings.weight_decay == 0.0
        and settings.trainer == "local"
        and (task.criterion is None or _is_plain_cross_entropy(task.criterion))
        and _is_perceptron(task.model)
    )


def _is_plain_cross_entropy(criterion: nn.Module) -> bool:
    if type(criterion) not in (nn.CrossEntropyLoss, CrossEntropy):
        return False
    plain: nn.Module = type(criterion)()
    return vars(criterion) == vars(plain)


def _is_perceptron(model: nn.Module) -> bool:
    """Return whether a model is Flatten, Linear, ReLU, Linear, ..., Linear and nothing else."""
    if type(model) is not nn.Sequential or len(model) < 2 or type(model[0]) is not nn.Flatten:
        return False
    wanted = [nn.Linear if index % 2 == 0 else nn.ReLU for index in range(len(model) - 1)]
    layers = list(model)[1:]
    return (
        [type(layer) for layer in layers] == wanted
        and type(layers[-1]) is nn.Linear
        and all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
        and all(layer.bias is not None for layer in layers[::2])
    )


def same_kind(local: LocalRound) -> tuple[object, ...]:
    """Return what must be equal for rounds to be trained together, and nearly so for speed."""
    settings = local.task.settings
    penalty = local.curvature.penalty
    return (
        settings,
        tuple(p.shape for p in local.model.parameters()),
        local.mu,
        None if penalty is None else penalty.strength,
    )


@torch.no_grad()
def train_stacked(rounds: Sequence[LocalRound]) -> list[float]:
    """Train all models in place; return each client's mean loss over the last epoch.

    Args:
        rounds: of one kind, see :func:`same_kind`, each fit by :func:`can_be_stacked`.
    """
    settings, mu = rounds[0].task.settings, rounds[0].mu
    stack = _Stack(rounds)
    batches = [local.batches() for local in rounds]
    for epoch in range(settings.epochs):
        is_last = epoch == settings.epochs - 1
        losses = stack.train_epoch(_steps_of(batches), settings.lr, mu, with_losses=is_last)
    stack.hand_back(rounds)
    return [
        loss / len(local.samples[0]) for loss, local in zip(losses.tolist(), rounds, strict=True)
    ]


class _Stack:
    def __init__(self, rounds: Sequence[LocalRound]) -> None:
        settings = rounds[0].task.settings
        device = rounds[0].samples[0].device
        self.num_clients, self.mode = len(rounds), settings.penalty_mode
        self.inputs = torch.cat([local.samples[0].flatten(1) for local in rounds])
        self.targets = torch.cat([local.samples[1] for local in rounds])
        # of one kind, either all have a penalty or none
        penalties = [p for local in rounds if (p := local.curvature.penalty) is not None]
        self.strength = penalties[0].strength if penalties else 0.0
        pulls = [penalty.curvature for penalty in penalties]
        self.parameters: list[_Parameter] = []
        for name, _ in rounds[0].model.named_parameters():
            values = torch.stack([local.model.get_parameter(name).detach() for local in rounds])
            pull = None
            if self.strength > 0.0:
                pull = Quadratic(
                    torch.stack([p.precision[name] for p in pulls]),
                    torch.stack([p.information[name] for p in pulls]),
                )
                if self.mode == "proximal":
                    pull.become_proximal(2.0 * settings.lr * self.strength)
            start = values.clone() if rounds[0].mu else None
            self.parameters.append(_Parameter(values, start, pull))
        self.losses = torch.zeros(self.num_clients, device=device)

    def train_epoch(
        self, steps: Sequence[_Step], lr: float, mu: float, *, with_losses: bool
    ) -> Tensor:
        """Take every step of an epoch; return the sums of the losses, if they are wanted."""
        self.losses.zero_()
        width = self.inputs.shape[1]
        for step in steps:
            inputs = self.inputs.index_select(0, step.samples).view(self.num_clients, -1, width)
            targets = self.targets.index_select(0, step.samples).view(self.num_clients, -1, 1)
            activations = self._forward(inputs)
            logits = activations.pop()
            if with_losses:
                nll = -logits.log_softmax(2).gather(2, targets)
                self.losses += (nll * (step.shares > 0)).sum((1, 2))
            residual = logits.softmax(2)
            residual.scatter_add_(2, targets, torch.full_like(targets, -1.0, dtype=residual.dtype))
            self._step_back(activations, residual.mul_(step.shares), step.active, lr, mu)
        return self.losses

    def _forward(self, inputs: Tensor) -> list[Tensor]:
        """Return what goes into each layer, and the logits."""
        layers = list(zip(self.parameters[::2], self.parameters[1::2], strict=True))
        activations = [inputs]
        for index, (weight, bias) in enumerate(layers):
            outputs = affine(activations[-1], weight.values, bias.values)
            activations.append(outputs.relu_() if index < len(layers) - 1 else outputs)
        return activations

    def _step_back(
        self,
        activations: list[Tensor],
        residual: Tensor,
        active: Tensor | None,
        lr: float,
        mu: float,
    ) -> None:
        """Go back through the layers and step each as soon as its weights have passed on."""
        for index in reversed(range(len(activations))):
            weight, bias = self.parameters[2 * index], self.parameters[2 * index + 1]
            below = None
            if index > 0:
                below = back_through(residual, weight.values).mul_(activations[index] > 0)
            for parameter in (weight, bias):
                self._pull_before_step(parameter, active, lr, mu)
            step_(weight.values, residual, activations[index], lr)
            bias.values.sub_(residual.sum(1), alpha=lr)
            for parameter in (weight, bias):
                self._pull_after_step(parameter, active)
            if below is not None:
                residual = below

    def _pull_before_step(
        self, parameter: _Parameter, active: Tensor | None, lr: float, mu: float
    ) -> None:
        pull = None
        if parameter.pull is not None and self.mode == "gradient":
            pull = parameter.pull.first * parameter.values
            pull.sub_(parameter.pull.second).mul_(2.0 * lr * self.strength)
        if parameter.start is not None:
            away = (parameter.values - parameter.start).mul_(lr * mu)
            pull = away if pull is None else pull.add_(away)
        if pull is not None:
            parameter.values.sub_(_where(active, pull))

    def _pull_after_step(self, parameter: _Parameter, active: Tensor | None) -> None:
        if parameter.pull is not None and self.mode == "proximal":
            weight = _where(active, parameter.pull.first)
            parameter.values.lerp_(parameter.pull.second, weight)

    def hand_back(self, rounds: Sequence[LocalRound]) -> None:
        """Give every client its model."""
        for index, local in enumerate(rounds):
            for own, parameter in zip(local.model.parameters(), self.parameters, strict=True):
                own.copy_(parameter.values[index])


def _where(active: Tensor | None, values: Tensor) -> Tensor:
    """Return the values, and 0 for clients that do not take the step."""
    return values if active is None else values * active.view(-1, *[1] * (values.ndim - 1))


def _steps_of(clients: Sequence[InMemoryBatches]) -> list[_Step]:
    """Return an epoch in the order of each client's ``InMemoryBatches``."""
    size, device = clients[0].batch_size, clients[0].inputs.device
    numbers = [len(batches.inputs) for batches in clients]
    starts = accumulate(numbers, initial=0)
    orders = [batches.order() + start for batches, start in zip(clients, starts, strict=False)]
    steps = []
    for first in range(0, max(numbers), size):
        sizes = torch.tensor([min(size, max(0, number - first)) for number in numbers])
        samples = pad_sequence([order[first : first + size] for order in orders], batch_first=True)
        within = torch.arange(samples.shape[1]) < sizes.unsqueeze(1)
        shares = within / sizes.clamp(min=1).unsqueeze(1)
        steps.append(
            _Step(
                samples.flatten().to(device),
                shares.unsqueeze(-1).to(device),
                None if sizes.all() else (sizes > 0).float().to(device),
            )
        )
    return steps
