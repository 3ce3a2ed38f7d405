"""One client's round, from the message to the reply."""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor, nn

from fedcurv.clients.curvature import ClientCurvature
from fedcurv.clients.methods.named import METHODS
from fedcurv.clients.methods.term import MethodTerm
from fedcurv.clients.settings import TrainingSettings
from fedcurv.clients.terms import CurvatureTerm, LocalTerm, MakeTerm, ProximalTerm
from fedcurv.clients.training import InMemoryBatches
from fedcurv.curvature import require_same_shapes, shapes_of
from fedcurv.global_state import cudnn, num_threads, seeded
from fedcurv.likelihoods import Likelihood
from fedcurv.parameters import listed
from fedcurv.strategies.wire.records import LOCAL_TERM, client_id_of, unpack_tensors
from fedcurv.subset import chosen, number_of

Samples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LocalTask:
    """What one client trains in one round.

    Attributes:
        model: of the federation's architecture; its weights are replaced by the server's.
        train_samples: inputs (N, ...) and targets (N, ...) of this client.
        test_samples: for evaluation on the client, judged by the likelihood; None for none.
        settings: how to train.
        criterion: mean loss over a batch, of outputs and targets; None for cross-entropy.
        likelihood: that the Fisher information is of, whatever the criterion; see
            ``fedcurv.fisher_diagonal``.
        seed: with the client's id and the round it decides the order of batches and all random
            numbers, whatever ran before in the process.
        metrics: numbers that every training reply carries beside its own, by other names.
        terms: by name, what this client can add to its objective if the server's strategy says so.
    """

    model: nn.Module
    train_samples: Samples
    test_samples: Samples | None = None
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    criterion: nn.Module | None = None
    likelihood: Likelihood = "categorical"
    seed: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    terms: Mapping[str, MakeTerm] = field(default_factory=dict)


MakeTask = Callable[[Message, Context], LocalTask]


@dataclass
class LocalRound:
    """One client's round, from the message to the reply; whoever has it decides how to train.

    Attributes:
        message: that asks for it.
        context: of the client.
        task: what to train, with the settings of this round.
        model: with the server's weights, on the device where it is trained in this process, or on
            the CPU if others train it.
        samples: for training, likewise.
        curvature: FedCurv's part of the message.
        terms: of the objective beside the loss.
        seed: of the client's random numbers in this round.
        fisher: at the trained model, if it has been estimated already.
    """

    message: Message
    context: Context
    task: LocalTask
    model: nn.Module
    samples: Samples
    curvature: ClientCurvature
    terms: Sequence[LocalTerm]
    seed: int
    fisher: Mapping[str, Tensor] | None = None
    _began: float = field(default_factory=time.perf_counter)
    _trained: float = 0.0
    _loss: float = math.nan
    _penalty: float = 0.0

    def batches(self) -> InMemoryBatches:
        """Return the batches to train on, in an order that the seed decides."""
        generator = torch.Generator().manual_seed(self.seed)
        return InMemoryBatches(*self.samples, self.task.settings.batch_size, generator)

    def fisher_samples(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the samples to estimate the Fisher information with.

        Returns:
            inputs, targets, and how many samples each stands for; None for itself alone.
        """
        inputs, targets = self.samples
        number = self.task.settings.fisher_samples
        if number_of(number, len(inputs)) == len(inputs):
            return inputs, targets, None
        rows, counts = chosen(targets, number, self._fisher_generator())
        rows = rows.to(inputs.device)
        return inputs[rows], targets[rows], counts

    def _fisher_generator(self) -> torch.Generator:
        # another order than that of the batches
        return torch.Generator(self.samples[0].device).manual_seed(self.seed ^ 1)

    @contextmanager
    def reproducible(self) -> Iterator[None]:
        """Seed torch for this client and round; leave the process as it was."""
        threads = num_threads(self.task.settings.num_threads)
        random_numbers = seeded(self.seed, self.samples[0].device)
        with threads, random_numbers, cudnn(deterministic=True, benchmark=False):
            yield

    def trained(self, loss: float) -> None:
        """Note that the model is trained, with this loss in the last epoch."""
        self._loss, self._trained = loss, time.perf_counter()
        if (penalty := self.curvature.penalty) is not None:
            self._penalty = float(penalty.value().detach())
            settings = self.task.settings
            by_lr = settings.penalty_mode == "proximal" or settings.is_sgd
            if by_lr and not penalty.found_optimizer:  # others took the steps
                penalty.felt(settings.lr, self._num_steps)

    def note_steps(self) -> None:
        """Tell the terms of the steps that were taken without an optimizer."""
        for term in self.terms:
            term.note_steps(self._num_steps, self.task.settings.lr)

    @property
    def _num_steps(self) -> int:
        settings = self.task.settings
        return settings.epochs * math.ceil(len(self.samples[0]) / settings.batch_size)

    def report(self, content: RecordDict) -> None:
        """Add FedCurv's part to a reply."""
        if self.fisher is not None:
            self.curvature.report_fisher(content, self.model, self.fisher)
            return
        settings = self.task.settings
        batches: Iterable[Samples] = [self.samples]  # to choose from
        if number_of(settings.fisher_samples, len(self.samples[0])) == len(self.samples[0]):
            batches = InMemoryBatches(*self.samples, settings.fisher_batch_size)
        self.curvature.report(
            content,
            self.model,
            batches,
            kind=settings.fisher_kind,
            likelihood=self.task.likelihood,
            generator=self._fisher_generator(),
            samples=settings.fisher_samples,
        )

    def reply(self) -> Message:
        """Return the reply."""
        content = RecordDict({"arrays": ArrayRecord(self.model.state_dict())})
        self.report(content)
        content["metrics"] = MetricRecord(
            {
                **self.task.metrics,
                "num-examples": len(self.samples[0]),
                "train-loss": self._loss,
                # how far the local solution lies from the others' shared optimum
                "penalty": self._penalty,
                "lr": self.task.settings.lr,
                "train-seconds": self._trained - self._began,
                "fisher-seconds": time.perf_counter() - self._trained,
            }
        )
        for term in self.terms:
            term.report(content, self.model)
        return Message(content, reply_to=self.message)


def begin_round(
    task: LocalTask, message: Message, context: Context, device: torch.device | None = None
) -> LocalRound:
    """Return what a client does in the round that a training message begins.

    Args:
        task: what to train.
        message: that asks for it.
        context: of the client.
        device: where the model and the samples are put; None for the settings' own.

    Raises:
        ValueError: if the client has no samples, or the message is not fit for use.
    """
    inputs, targets = task.train_samples
    if len(inputs) == 0:
        raise ValueError(
            f"client {client_id_of(context)} has no training samples; give it some, or leave it out"
        )
    config = message.content.config_records.get("config", ConfigRecord())
    server_round = int(_number(config, "server-round"))
    task = replace(task, settings=task.settings.at_round(server_round))
    if device is None:
        # the workers of a site take the samples to their own devices
        by_site = task.settings.trainer == "lasgd"
        device = torch.device("cpu") if by_site else task.settings.make_device()
    model = task.model.to(device)
    load_weights(model, message.content)
    curvature, seed = ClientCurvature(message, context, model), _seed(task, context, server_round)
    with seeded(seed, device):  # a user's term may draw random numbers as it is made
        terms = _terms(task, message, context, model, curvature)
    samples = (inputs.to(device), targets.to(device))
    return LocalRound(message, context, task, model, samples, curvature, terms, seed)


def _terms(
    task: LocalTask,
    message: Message,
    context: Context,
    model: nn.Module,
    curvature: ClientCurvature,
) -> list[LocalTerm]:
    """Return FedProx's term, FedCurv's and the strategy's own, as far as there are any."""
    config = message.content.config_records.get("config", ConfigRecord())
    terms: list[LocalTerm] = []
    if mu := _number(config, "proximal-mu"):
        terms.append(ProximalTerm(mu))
    if curvature.active:
        task.settings.check_penalty()
    if curvature.penalty is not None:
        terms.append(CurvatureTerm(curvature))
    if (name := config.get(LOCAL_TERM)) is None:
        return terms
    makers: dict[str, MakeTerm] = {**METHODS, **task.terms}
    if name not in makers:
        raise ValueError(
            f"the server's strategy wants the local term {name!r:.80}, client "
            f"{client_id_of(context)} has {listed(list(task.terms)) or 'none'}; give its LocalTask "
            "terms={name: function}"
        )
    own = makers[str(name)](message, context, model)
    if isinstance(own, MethodTerm):
        own.require_alone(terms)
    return terms if own is None else [*terms, own]


def load_weights(model: nn.Module, content: RecordDict) -> None:
    """Give a model the weights that the server has sent.

    Raises:
        ValueError: unless they are arrays of numbers with the model's names and shapes.
    """
    if (record := content.array_records.get("arrays")) is None:
        raise ValueError("expected the server's weights under 'arrays' in the message, got none")
    weights = unpack_tensors(record)
    own = shapes_of(model.state_dict())
    require_same_shapes(own, shapes_of(weights), "the client's model", "the server's weights")
    model.load_state_dict(weights)


def _number(config: ConfigRecord, key: str) -> float:
    value = config.get(key, 0)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(
            f"expected a finite number under {key!r} in the message's config, got {value!r}"
        )
    return value


def _seed(task: LocalTask, context: Context, server_round: int) -> int:
    """Return a seed for one client and round."""
    text = f"{task.seed}/{client_id_of(context)}/{server_round}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 2**63
