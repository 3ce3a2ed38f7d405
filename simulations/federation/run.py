"""Runners by name: this process, one client by one or together, or Flower's engine, Ray."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message
from flwr.serverapp import ServerApp

from fedcurv.simulations.console.telling import each_line_once
from fedcurv.simulations.federation.client_app import (
    DATA_DOWNLOAD_VARIABLE,
    DATA_ROOT_VARIABLE,
    make_task,
)
from fedcurv.simulations.federation.client_app import app as client_app
from fedcurv.simulations.own import OWN_VARIABLE, own_names
from fedcurv.simulations.runners.batched.grid import BatchedGrid
from fedcurv.simulations.runners.local import run_local, run_on
from fedcurv.simulations.runners.ray import check_ray, run_on_ray

OnReply = Callable[[Message], object]


def run(
    server_app: ServerApp, config: dict[str, Any], on_reply: OnReply = lambda message: None
) -> None:
    """Run the federation with the experiments' ClientApp.

    Args:
        server_app: to run.
        config: resolved: ``num_clients``; ``runner`` with its ``name`` (local, batched or ray), for
            ray also ``client_resources`` and ``init_args``; ``data.root``.
        on_reply: called after each message that a client has handled, perhaps in other threads.

    Raises:
        KeyError: for an unknown runner.
        EngineFailed: if Flower's engine cannot go on.
        Exception: whatever the ServerApp raises.
    """
    runner = config["runner"]
    with _environment(said_to_clients(config)), each_line_once():
        RUNNERS[runner["name"]](server_app, config["num_clients"], runner, on_reply)


def said_to_clients(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables that tell clients what on devices their owners say.

    That is where the data are, whether to fetch them, and which functions are the user's own. Where
    all clients are on this machine, their owner is who runs them.
    """
    data = config["data"]
    return {
        OWN_VARIABLE: own_names(config),
        DATA_ROOT_VARIABLE: str(Path(data.get("root", "data")).absolute()),
        DATA_DOWNLOAD_VARIABLE: str(data.get("download", False)).lower(),
    }


@contextmanager
def _environment(said: Mapping[str, str]) -> Iterator[None]:
    """Set variables, here and in processes that are started."""
    before = {name: os.environ.get(name) for name in said}
    os.environ.update(said)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def check_runner(runner: Mapping[str, Any]) -> None:
    """Raise a ValueError or an OSError if a runner lacks what it needs."""
    if runner["name"] == "ray":
        check_ray(runner)


def _load_what_optimizers_need() -> None:
    """Let torch import what a process's first optimizer does, so that no method's seconds do."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0)


def _run_local(
    server_app: ServerApp, num_clients: int, runner: Mapping[str, Any], on_reply: OnReply
) -> None:
    _load_what_optimizers_need()
    run_local(server_app, client_app, num_clients, on_reply=on_reply)


def _run_batched(
    server_app: ServerApp, num_clients: int, runner: Mapping[str, Any], on_reply: OnReply
) -> None:
    _load_what_optimizers_need()
    run_on(BatchedGrid(client_app, make_task, num_clients, on_reply=on_reply), server_app)


def _run_ray(
    server_app: ServerApp, num_clients: int, runner: Mapping[str, Any], on_reply: OnReply
) -> None:
    run_on_ray(server_app, client_app, num_clients, runner, on_reply)


RUNNERS: dict[str, Callable[[ServerApp, int, Mapping[str, Any], OnReply], None]] = {
    "local": _run_local,
    "batched": _run_batched,
    "ray": _run_ray,
}
