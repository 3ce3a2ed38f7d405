"""Several multilayer perceptrons of one shape, trained side by side by closed-form gradients.

Each step is the one that ``fedcurv.clients.train`` takes with plain SGD and cross-entropy, for
every client on its own batch, to rounding: the same batches in the same order, FedCurv's penalty as
a gradient or a proximal step, and the terms of FedProx, SCAFFOLD, FedDyn, FedNova and all others
that have an affine gradient. One matrix product for all clients does the work of many small ones;
the product that forms a weight's gradient takes the step at once. Convolutions are no small
operations: stacked, they were slower on a CPU (tests/benchmarks).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedcurv.clients.local_round import LocalRound, LocalTask
from fedcurv.clients.terms import AffineGradient, CurvatureTerm, LocalTerm
from fedcurv.losses import CrossEntropy
from fedcurv.parameters import listed
from fedcurv.quadratic import Quadratic
from fedcurv.simulations.runners.batched.batches import StackedBatches, StackedSamples, Step
from fedcurv.simulations.runners.batched.products import back_through, by_client, forward, step_

# to record a graph of an epoch takes as long as a few epochs without one
_EPOCHS_WORTH_A_GRAPH = 5


@dataclass
class _Parameter:
    """One parameter of all clients.

    Attributes:
        values: shape (clients, ...).
        start: as the round began, where the terms' gradient has a slope; None without.
        shift: of the terms' gradient; None without.
        pull: the others' statistics, for proximal steps in that form; None without a penalty.
    """

    values: Tensor
    start: Tensor | None
    shift: Tensor | None
    pull: Quadratic | None


def why_not_stacked(task: LocalTask) -> str:
    """Return what of a client's task is not of the kind that this module trains; or nothing."""
    settings = task.settings
    if not settings.is_plain_sgd:
        return "client.optimizer is not SGD without momentum and weight decay"
    if settings.trainer != "local":
        return f"client.trainer={settings.trainer}"
    if task.likelihood != "categorical":
        return "the task is not classification"
    if task.criterion is not None and not _is_plain_cross_entropy(task.criterion):
        return "client.loss is not cross-entropy"
    if not _is_perceptron(task.model):
        return "the model is no multilayer perceptron of trainable float32 weights"
    return ""


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
        sum(gradient.slope for gradient in _affine(local)),
        None if penalty is None else (penalty.strength, *penalty.names),
        local.curvature.active,
    )


def why_terms_not_stacked(local: LocalRound) -> str:
    """Return what says that a round has a term of another form than stacks take; or nothing."""
    shapes = {name: p.shape for name, p in local.model.named_parameters()}
    for term in local.terms:
        if type(term) is CurvatureTerm:
            continue
        gradient, name = _gradient(term, local), type(term).__name__
        if gradient is None:
            return f"the strategy's local term is a {name}"
        if not 0.0 <= gradient.slope < math.inf:
            return f"the slope of {name}'s gradient is {gradient.slope!r}, not finite and >= 0"
        odd = [n for n, shift in gradient.shift.items() if shapes.get(n) != shift.shape]
        if odd:
            return f"{name}'s gradient has a shift for {listed(odd)}, no parameter of that shape"
    return ""


def _gradient(term: LocalTerm, local: LocalRound) -> AffineGradient | None:
    """Return a term's gradient; None as well where a subclass has its own ``attach`` alone."""
    if _place(term, "affine") > _place(term, "attach"):
        return None
    return term.affine(local.model, local.task.settings)


def _place(term: LocalTerm, method: str) -> int:
    """Return how far up among a term's classes a method is defined."""
    return next(i for i, kind in enumerate(type(term).__mro__) if method in vars(kind))


def _affine(local: LocalRound) -> list[AffineGradient]:
    gradients = [_gradient(term, local) for term in local.terms]
    return [gradient for gradient in gradients if gradient is not None]


def stacked_parameters(rounds: Sequence[LocalRound], device: torch.device) -> dict[str, Tensor]:
    """Return the parameters of all models, each of shape (clients, ...)."""
    names = [name for name, _ in rounds[0].model.named_parameters()]
    return {
        name: _stacked([local.model.get_parameter(name).detach() for local in rounds], device)
        for name in names
    }


def _stacked(tensors: list[Tensor], device: torch.device) -> Tensor:
    return torch.stack(tensors).to(device)


@torch.no_grad()
def train_stacked(
    rounds: Sequence[LocalRound], samples: StackedSamples, parameters: Mapping[str, Tensor]
) -> list[float]:
    """Train all models in place; return each client's mean loss over the last epoch.

    Args:
        rounds: of one kind, see :func:`same_kind`, each fit by :func:`why_not_stacked`.
        samples: of these rounds, on the device to train on.
        parameters: of the models, see :func:`stacked_parameters`, likewise; trained in place too.
    """
    settings = rounds[0].task.settings
    stack, batches = _Stack(rounds, parameters), StackedBatches(samples, settings.batch_size)
    of_clients = [local.batches() for local in rounds]
    losses = torch.zeros(len(rounds), device=samples.inputs.device)

    def take_steps() -> None:
        for step in batches:
            stack.take(step)

    if losses.is_cuda and settings.epochs >= _EPOCHS_WORTH_A_GRAPH:
        take_steps = _Replayed(take_steps)
    for epochs_after in reversed(range(settings.epochs)):
        batches.set_order([client.order() for client in of_clients])
        if epochs_after:
            take_steps()
    for step in batches:  # of the last epoch
        nll = -stack.take(step).log_softmax(2).gather(2, step.labels)
        losses += (nll * (step.shares > 0)).sum((1, 2))
    stack.hand_back(rounds)
    for local in rounds:
        local.note_steps()
    return [loss / size for loss, size in zip(losses.tolist(), samples.sizes, strict=True)]


class _Replayed:
    """Queues the same work on a GPU again and again, after the first call by one graph for all."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work, self._calls = work, 0
        self._graph = torch.cuda.CUDAGraph()

    def __call__(self) -> None:
        self._calls += 1
        if self._calls == 1:  # libraries prepare themselves, which a graph cannot hold
            return self._work()
        if self._calls == 2:
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._work()
        self._graph.replay()


class _Stack:
    def __init__(self, rounds: Sequence[LocalRound], parameters: Mapping[str, Tensor]) -> None:
        settings = rounds[0].task.settings
        self.lr, self.mode = settings.lr, settings.penalty_mode
        gradients = [_affine(local) for local in rounds]
        self.slope = sum(gradient.slope for gradient in gradients[0])  # of one kind
        # of one kind, either all have a penalty or none
        penalties = [p for local in rounds if (p := local.curvature.penalty) is not None]
        self.strength = penalties[0].strength if penalties else 0.0
        pulls = [penalty.curvature for penalty in penalties]
        self.parameters: list[_Parameter] = []
        for name, values in parameters.items():
            pull = None
            if self.strength > 0.0 and name in pulls[0].precision:
                pull = Quadratic(
                    _stacked([p.precision[name] for p in pulls], values.device),
                    _stacked([p.weighted_parameters[name] for p in pulls], values.device),
                )
                if self.mode == "proximal":
                    pull.become_proximal(2.0 * settings.lr * self.strength)
            start = values.clone() if self.slope else None
            shift = _shift([[g.shift.get(name) for g in of_one] for of_one in gradients], values)
            self.parameters.append(_Parameter(values, start, shift, pull))
        self.weights = [parameter.values for parameter in self.parameters[::2]]
        self.biases = [parameter.values for parameter in self.parameters[1::2]]

    def take(self, step: Step) -> Tensor:
        """Take one step; return the clients' logits before it, shape (clients, batch size, C)."""
        activations = forward(self.weights, self.biases, step.inputs)
        logits = activations.pop()
        residual = logits.softmax(2)
        residual.scatter_add_(2, step.labels, residual.new_full(step.labels.shape, -1.0))
        self._step_back(activations, residual.mul_(step.shares), step.active)
        return logits

    def _step_back(
        self, activations: list[Tensor], residual: Tensor, active: Tensor | None
    ) -> None:
        """Go back through the layers and step each as soon as its weights have passed on."""
        for index in reversed(range(len(activations))):
            below = None
            if index > 0:
                below = back_through(residual, self.weights[index]).mul_(activations[index] > 0)
            of_layer = self.parameters[2 * index : 2 * index + 2]
            for parameter in of_layer:
                self._pull_before_step(parameter, active)
            step_(self.weights[index], residual, activations[index], self.lr)
            self.biases[index].sub_(residual.sum(1), alpha=self.lr)
            for parameter in of_layer:
                self._pull_after_step(parameter, active)
            if below is not None:
                residual = below

    def _pull_before_step(self, parameter: _Parameter, active: Tensor | None) -> None:
        pull = None
        if parameter.pull is not None and self.mode == "gradient":
            pull = parameter.pull.first * parameter.values
            pull.sub_(parameter.pull.second).mul_(2.0 * self.lr * self.strength)
        if parameter.start is not None:
            away = (parameter.values - parameter.start).mul_(self.lr * self.slope)
            pull = away if pull is None else pull.add_(away)
        if parameter.shift is not None:
            shift = self.lr * parameter.shift
            pull = shift if pull is None else pull.add_(shift)
        if pull is not None:
            parameter.values.sub_(_where(active, pull))

    def _pull_after_step(self, parameter: _Parameter, active: Tensor | None) -> None:
        if parameter.pull is not None and self.mode == "proximal":
            weight = _where(active, parameter.pull.first)
            parameter.values.lerp_(parameter.pull.second, weight)

    def hand_back(self, rounds: Sequence[LocalRound]) -> None:
        """Give every client its model."""
        models = [local.model.parameters() for local in rounds]
        for parameter, *owns in zip(self.parameters, *models, strict=True):
            # in one piece from a GPU
            for own, values in zip(owns, parameter.values.to(owns[0].device), strict=True):
                own.copy_(values)


def _shift(of_clients: Sequence[Sequence[Tensor | None]], values: Tensor) -> Tensor | None:
    """Return the sums of every client's shifts of a parameter; None if there are none at all."""
    if all(one is None for shifts in of_clients for one in shifts):
        return None
    total = torch.zeros_like(values)
    for row, shifts in zip(total, of_clients, strict=True):
        for one in shifts:
            if one is not None:
                row.add_(one.to(values.device))
    return total


def _where(active: Tensor | None, values: Tensor) -> Tensor:
    """Return the values, and 0 for clients that do not take the step."""
    return values if active is None else values * by_client(active, values)
