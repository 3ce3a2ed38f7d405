"""Where the clients run: in this process, one by one or together, or on Flower's engine, Ray."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.serverapp import ServerApp

from fedcurv.simulations.batched import BatchedGrid
from fedcurv.simulations.client import DATA_ROOT_VARIABLE, make_task
from fedcurv.simulations.client import app as client_app
from fedcurv.simulations.local import run_local, run_on


def run(server_app: ServerApp, config: dict[str, Any]) -> None:
    """Run the federation with the experiments' ClientApp.

    Args:
        server_app: to run.
        config: resolved: ``num_clients``; ``runner`` with its ``name`` (local, batched or ray), for
            ray also ``client_resources`` and ``init_args``; ``data.root``.

    Raises:
        KeyError: for an unknown runner.
        Exception: whatever the ServerApp raises.
    """
    runner = config["runner"]
    with _data_root(config["data"]["root"]):
        RUNNERS[runner["name"]](server_app, config["num_clients"], runner)


@contextmanager
def _data_root(root: str) -> Iterator[None]:
    """Tell the clients where the data are, in this process and in those that it starts."""
    before = os.environ.get(DATA_ROOT_VARIABLE)
    os.environ[DATA_ROOT_VARIABLE] = root
    try:
        yield
    finally:
        del os.environ[DATA_ROOT_VARIABLE]
        if before is not None:
            os.environ[DATA_ROOT_VARIABLE] = before


def _run_local(server_app: ServerApp, num_clients: int, runner: dict[str, Any]) -> None:
    run_local(server_app, client_app, num_clients)


def _run_batched(server_app: ServerApp, num_clients: int, runner: dict[str, Any]) -> None:
    run_on(BatchedGrid(client_app, make_task, num_clients), server_app)


def _run_ray(server_app: ServerApp, num_clients: int, runner: dict[str, Any]) -> None:
    # the one way to hand Python objects to Flower's engine; it warns that `flwr run` is preferred
    from flwr.simulation import run_simulation

    quiet = logging.getLogger("flwr").level > logging.INFO
    init_args = {"log_to_driver": not quiet, **runner["init_args"]}
    if quiet:
        init_args.setdefault("logging_level", logging.WARNING)
    run_simulation(
        server_app,
        client_app,
        num_clients,
        backend_config={"client_resources": runner["client_resources"], "init_args": init_args},
    )


RUNNERS: dict[str, Callable[[ServerApp, int, dict[str, Any]], None]] = {
    "local": _run_local,
    "batched": _run_batched,
    "ray": _run_ray,
}
