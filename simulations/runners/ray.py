"""Flower's engine on Ray: what it needs is checked before it starts, and nobody waits for it."""

import inspect
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

# how long a cluster may take to answer
_CLUSTER_S = 30.0
# how long the engine may take to stop, once the server has come to its end
_STOP_S = 60.0

# what variables of this project are called
_OURS = "FEDCURV_"

_ASK = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=50, include_dashboard=False)
print(json.dumps(ray.cluster_resources()))
"""


class EngineFailed(OSError):
    """Flower's engine cannot go on."""


def check_ray(runner: Mapping[str, Any]) -> None:
    """Raise a ValueError or EngineFailed unless one client at least can run at a time.

    Args:
        runner: ``client_resources`` and ``init_args``, see conf/runner/ray.yaml.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("runner=ray needs the package ray: pip install 'ray[default]'") from error
    known = inspect.signature(ray.init).parameters
    init_args: Mapping[str, Any] = runner["init_args"]
    if unknown := sorted(set(init_args) - set(known)):
        raise ValueError(f"runner.init_args: ray.init has no {', '.join(unknown)}")
    if unknown := sorted(set(runner["client_resources"]) - {"num_cpus", "num_gpus"}):
        raise ValueError(
            f"runner.client_resources: expected num_cpus and num_gpus, got {', '.join(unknown)}"
        )
    address = _address(init_args)
    there = _here(init_args) if address == "local" else _in_cluster(address)
    for name, unit in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        wanted, have = runner["client_resources"].get(name, 0), there[unit]
        if wanted > have:
            where = "this machine has" if address == "local" else f"the cluster at {address} has"
            raise ValueError(
                f"runner.client_resources.{name}={wanted:g}: {where} {have:g} {unit}s for Ray, "
                "and no client could ever run; ask for less, or use runner=local"
            )


def _address(init_args: Mapping[str, Any]) -> str:
    """Return where Ray runs: here, unless a cluster is named.

    Ray by itself would join whatever cluster was last begun on this machine, or wait for one that
    has ended.
    """
    return str(init_args.get("address") or os.environ.get("RAY_ADDRESS") or "local")


def _here(init_args: Mapping[str, Any]) -> dict[str, float]:
    from ray._private.utils import get_num_cpus  # minds a container's limits

    for name in ("num_cpus", "num_gpus"):
        value = init_args.get(name)
        if value is not None and (not isinstance(value, int) or value < 0):
            raise ValueError(f"runner.init_args.{name} must be an integer >= 0, got {value!r}")
    cpus, gpus = init_args.get("num_cpus"), init_args.get("num_gpus")
    return {
        "CPU": float(get_num_cpus() if cpus is None else cpus),
        "GPU": float(torch.cuda.device_count() if gpus is None else gpus),
    }


def _in_cluster(address: str) -> dict[str, float]:
    reason = f"no answer in {_CLUSTER_S:g} s"
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK, address],
            capture_output=True,
            text=True,
            timeout=_CLUSTER_S,
            check=False,
        )
        if asked.returncode == 0:
            resources = json.loads(asked.stdout.strip().splitlines()[-1])
            return {unit: float(resources.get(unit, 0)) for unit in ("CPU", "GPU")}
        reason = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
    except subprocess.TimeoutExpired:
        pass
    raise EngineFailed(
        f"runner.init_args.address={address}: no Ray cluster is there ({reason}); start one with "
        "`ray start --head`, or leave the address out"
    )


def run_on_ray(
    server_app: ServerApp,
    client_app: ClientApp,
    num_clients: int,
    runner: Mapping[str, Any],
    on_reply: Callable[[Message], object] = lambda message: None,
) -> None:
    """Run a federation on Flower's engine, in a thread, so that signals and its end are noticed.

    Args:
        server_app: to run.
        client_app: handles the messages, in Ray's processes.
        num_clients: how many nodes there are.
        runner: see ``check_ray``.
        on_reply: called with each reply when the server fetches it.

    Raises:
        EngineFailed: if the engine cannot go on.
        Exception: whatever the ServerApp raises.
    """
    # the one way to hand Python objects to Flower's engine; it warns that `flwr run` is preferred
    from flwr.simulation import run_simulation

    flower_log = logging.getLogger("flwr")
    quiet = flower_log.level > logging.INFO
    init_args = {"log_to_driver": not quiet, **runner["init_args"]}
    if quiet:
        init_args.setdefault("logging_level", logging.ERROR)
        flower_log.setLevel(logging.CRITICAL)  # errors are told once, by whoever gets them
        warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)
    of_server: list[BaseException] = []
    of_engine: list[BaseException] = []
    server_is_done, engine_is_done = threading.Event(), threading.Event()
    watched = ServerApp()

    @watched.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            tell_replies(grid, on_reply)
            server_app(grid, context)
        except BaseException as error:
            of_server.append(error)
        finally:
            server_is_done.set()

    def engine() -> None:
        try:
            _begin(init_args)
            run_simulation(
                watched,
                client_app,
                num_clients,
                backend_config={"client_resources": dict(runner["client_resources"])},
            )
        except BaseException as error:
            of_engine.append(error)
        finally:
            engine_is_done.set()

    threading.Thread(target=engine, daemon=True).start()
    while not engine_is_done.wait(0.2) and not server_is_done.is_set():
        pass
    if server_is_done.is_set():
        engine_is_done.wait(_STOP_S)
    if of_server:
        raise of_server[0]
    if not server_is_done.is_set():
        raise EngineFailed(f"runner=ray: Flower's engine cannot go on: {_reason(of_engine)}")


def tell_replies(grid: Grid, on_reply: Callable[[Message], object]) -> None:
    """Have a grid tell of each reply that is fetched from it."""
    pull = grid.pull_messages

    def pull_and_tell(message_ids: Iterable[str]) -> list[Message]:
        replies = list(pull(message_ids))
        for reply in replies:
            on_reply(reply)
        return replies

    grid.pull_messages = pull_and_tell  # type: ignore[method-assign]


def _begin(init_args: Mapping[str, Any]) -> None:
    """Begin Ray here, or join a cluster, whose workers have neither our environment nor our folder.

    Flower's engine takes what has begun.
    """
    import ray

    given = dict(init_args.get("runtime_env") or {})
    said = {name: value for name, value in os.environ.items() if name.startswith(_OURS)}
    said["PYTHONPATH"] = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH")]))
    given["env_vars"] = {**said, **given.get("env_vars", {})}
    if not ray.is_initialized():
        begun = {**init_args, "address": _address(init_args), "runtime_env": given}
        ray.init(**{"include_dashboard": False, **begun})


def _reason(errors: list[BaseException]) -> str:
    """Return the first cause in one line."""
    if not errors:
        return "it stopped before the server had come to its end"
    error = errors[0]
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
