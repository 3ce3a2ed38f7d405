"""The ready-made ClientApp: local training with FedCurv, FedProx or neither, as the server asks."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedcurv.clients.errors import private_errors_mod
from fedcurv.clients.local_round import LocalRound, MakeTask, begin_round, load_weights
from fedcurv.clients.scores import score_of, sums_of_numbers
from fedcurv.clients.training import InMemoryBatches, evaluate, train
from fedcurv.global_state import num_threads
from fedcurv.strategies.wire.records import CLIENT_ID_ACTION, CONFIG, client_id_of, pack_client_id

_EVALUATION_BATCH_SIZE = 512


def client_app(make_task: MakeTask, *, mods: Sequence[Any] = ()) -> ClientApp:
    """Return a ClientApp that trains, evaluates and tells its stable id.

    Args:
        make_task: builds the client's task for a message; a function of an importable module, so
            that Ray can find it.
        mods: Flower mods, outermost first, within :func:`private_errors_mod`.
    """
    app = ClientApp(mods=[private_errors_mod, *mods])
    app.train()(partial(_train, make_task))
    app.evaluate()(partial(_evaluate, make_task))
    app.query(CLIENT_ID_ACTION)(_tell_client_id)
    return app


def _train(make_task: MakeTask, message: Message, context: Context) -> Message:
    local = begin_round(make_task(message, context), message, context)
    with local.reproducible():
        if local.task.settings.trainer == "lasgd":
            _train_on_site(local)
        else:
            _train_in_this_process(local)
        return local.reply()


def _train_in_this_process(local: LocalRound) -> None:
    model, task = local.model, local.task
    optimizer = task.settings.make_optimizer(model)
    for term in local.terms:
        term.attach(model, optimizer, task.settings)
    criterion = None if task.criterion is None else task.criterion.to(local.samples[0].device)
    epochs = task.settings.epochs
    local.trained(train(model, local.batches(), optimizer, epochs=epochs, criterion=criterion))


def _train_on_site(local: LocalRound) -> None:
    """Let the workers of a site train, and estimate the Fisher information if it is wanted."""
    # here, since they need torch.distributed and POSIX, which a device may be without
    from fedcurv.clients.site.jobs import Share, fisher_on_site, pool_for, train_on_site

    model, task = local.model, local.task
    pool, terms = pool_for(task.settings), [term.for_workers() for term in local.terms]
    share = Share(model, local.samples, task.settings, task.criterion, terms, local.seed % 2**31)
    done = train_on_site(pool, share)
    model.load_state_dict(done.weights)
    local.trained(done.loss)
    if local.curvature.active:
        share = dataclasses.replace(share, terms=(), likelihood=task.likelihood)
        local.fisher = fisher_on_site(pool, share)


def _evaluate(make_task: MakeTask, message: Message, context: Context) -> Message:
    task = make_task(message, context)
    if task.test_samples is None:
        raise ValueError(f"client {client_id_of(context)} has no test samples")
    with num_threads(task.settings.num_threads):
        model = task.model.to(task.settings.make_device())
        load_weights(model, message.content)
        batches = InMemoryBatches(*task.test_samples, _EVALUATION_BATCH_SIZE)
        score = score_of(task.likelihood, task.test_samples[1])
        loss, accuracy, num_examples = evaluate(model, batches, score)
    metrics = MetricRecord({"num-examples": num_examples, "loss": loss})
    if score is not sums_of_numbers:  # of which none is right
        metrics["accuracy"] = accuracy
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _tell_client_id(message: Message, context: Context) -> Message:
    return Message(RecordDict({CONFIG: pack_client_id(context)}), reply_to=message)
