"""The ready-made ClientApp: local training with FedCurv, FedProx or neither, as the server asks."""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from fedcurv.clients.curvature import ClientCurvature
from fedcurv.clients.site_training import Share, fisher_on_site, pool_for, train_on_site
from fedcurv.clients.training import (
    InMemoryBatches,
    TrainingSettings,
    attach_proximal_term,
    evaluate,
    train,
)
from fedcurv.strategies.records import CLIENT_ID_ACTION, CONFIG, client_id_of, pack_client_id

Samples = tuple[Tensor, Tensor]

_EVALUATION_BATCH_SIZE = 512


@dataclass(frozen=True)
class LocalTask:
    """What one client trains in one round.

    Attributes:
        model: of the federation's architecture; its weights are replaced by the server's.
        train_samples: inputs (N, ...) and targets (N, ...) of this client.
        test_samples: for evaluation on the client; None where it has none.
        settings: how to train.
        criterion: mean loss over a batch, of outputs and targets; None for cross-entropy, of which
            the Fisher information is in any case.
        seed: with the client's id and the round it decides the order of batches and all random
            numbers, whatever ran before in the process.
        metrics: numbers that every training reply carries beside its own, by other names.
    """

    model: nn.Module
    train_samples: Samples
    test_samples: Samples | None = None
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    criterion: nn.Module | None = None
    seed: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


MakeTask = Callable[[Message, Context], LocalTask]
# trains and returns the loss; adds FedCurv's report to a reply
_Trainer = tuple[Callable[[], float], Callable[[RecordDict], None]]


def client_app(make_task: MakeTask, *, mods: Sequence[Any] = ()) -> ClientApp:
    """Return a ClientApp that trains, evaluates and tells its stable id.

    Args:
        make_task: builds the client's task for a message; a function of an importable module, so
            that Ray can find it.
        mods: Flower mods, outermost first.
    """
    app = ClientApp(mods=list(mods))
    app.train()(partial(_train, make_task))
    app.evaluate()(partial(_evaluate, make_task))
    app.query(CLIENT_ID_ACTION)(_tell_client_id)
    return app


def _train(make_task: MakeTask, message: Message, context: Context) -> Message:
    task = make_task(message, context)
    settings = task.settings
    inputs, targets = task.train_samples
    if len(inputs) == 0:
        raise ValueError(
            f"client {client_id_of(context)} has no training samples; give it some, or leave it out"
        )
    config = message.content.config_records["config"]
    began = time.perf_counter()
    with _reproducible(task, context, int(_number(config, "server-round"))) as generator:
        by_site = settings.trainer == "lasgd"
        device = torch.device("cpu") if by_site else settings.make_device()
        model = task.model.to(device)
        inputs, targets = inputs.to(device), targets.to(device)
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        curvature = ClientCurvature(message, context, model)
        mu = _number(config, "proximal-mu")
        if by_site:
            train_it, report = _by_site(task, curvature, mu, seed=generator.initial_seed())
        else:
            train_it, report = _in_this_process(task, curvature, mu, (inputs, targets), generator)
        loss = train_it()
        trained = time.perf_counter()
        penalty = 0.0 if curvature.penalty is None else float(curvature.penalty.value().detach())
        content = RecordDict({"arrays": ArrayRecord(model.state_dict())})
        report(content)
    content["metrics"] = MetricRecord(
        {
            **task.metrics,
            "num-examples": len(inputs),
            "train-loss": loss,
            # how far the local solution lies from the others' shared optimum
            "penalty": penalty,
            "train-seconds": trained - began,
            "fisher-seconds": time.perf_counter() - trained,
        }
    )
    return Message(content, reply_to=message)


def _in_this_process(
    task: LocalTask,
    curvature: ClientCurvature,
    mu: float,
    samples: Samples,
    generator: torch.Generator,
) -> _Trainer:
    """Return what trains the task's model, and what then adds FedCurv's report to a reply."""
    model, settings = task.model, task.settings

    def train_it() -> float:
        optimizer = settings.make_optimizer(model)
        if mu:
            attach_proximal_term(optimizer, model, mu)
        curvature.attach(optimizer, mode=settings.penalty_mode)
        batches = InMemoryBatches(*samples, settings.batch_size, generator)
        criterion = None if task.criterion is None else task.criterion.to(samples[0].device)
        return train(model, batches, optimizer, epochs=settings.epochs, criterion=criterion)

    def report(content: RecordDict) -> None:
        batches = InMemoryBatches(*samples, settings.fisher_batch_size)
        curvature.report(content, model, batches, kind=settings.fisher_kind)

    return train_it, report


def _by_site(task: LocalTask, curvature: ClientCurvature, mu: float, *, seed: int) -> _Trainer:
    """Return the same for the workers of a site."""
    pool, penalty = pool_for(task.settings), curvature.penalty
    pull = None if penalty is None else (penalty.curvature, penalty.strength)
    model, settings = task.model, task.settings
    share = Share(model, task.train_samples, settings, task.criterion, mu, pull, seed % 2**31)

    def train_it() -> float:
        done = train_on_site(pool, share)
        model.load_state_dict(done.weights)
        return done.loss_sum / done.num_samples

    def report(content: RecordDict) -> None:
        if curvature.active:
            fisher = fisher_on_site(pool, dataclasses.replace(share, penalty=None))
            curvature.report_fisher(content, model, fisher)

    return train_it, report


def _evaluate(make_task: MakeTask, message: Message, context: Context) -> Message:
    task = make_task(message, context)
    if task.test_samples is None:
        raise ValueError(f"client {client_id_of(context)} has no test samples")
    with _threads(task.settings.num_threads):
        model = task.model.to(task.settings.make_device())
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        batches = InMemoryBatches(*task.test_samples, _EVALUATION_BATCH_SIZE)
        loss, accuracy, num_examples = evaluate(model, batches)
    metrics = MetricRecord({"num-examples": num_examples, "loss": loss, "accuracy": accuracy})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _tell_client_id(message: Message, context: Context) -> Message:
    return Message(RecordDict({CONFIG: pack_client_id(context)}), reply_to=message)


def _number(config: ConfigRecord, key: str) -> float:
    value = config.get(key, 0)
    if not isinstance(value, int | float):
        raise ValueError(f"expected a number under {key!r} in the message's config, got {value!r}")
    return value


@contextmanager
def _reproducible(
    task: LocalTask, context: Context, server_round: int
) -> Iterator[torch.Generator]:
    """Seed all of torch for one client and round; leave the process as it was."""
    text = f"{task.seed}/{client_id_of(context)}/{server_round}"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 2**63
    deterministic = torch.backends.cudnn.flags(deterministic=True, benchmark=False)
    with _threads(task.settings.num_threads), torch.random.fork_rng(), deterministic:
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
