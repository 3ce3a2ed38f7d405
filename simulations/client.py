"""The experiments' ClientApp: one for every runner, told by the server what to train on what.

The description travels as JSON and holds names and numbers only; names are looked up in this
project's own tables, so that a message cannot make a client import anything. It holds no path
either: where data lie, a node knows by its own configuration or environment.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from flwr.app import Context, Message
from numpy.typing import NDArray
from torch import nn

from fedcurv.clients import LocalTask, TrainingSettings, client_app
from fedcurv.clients.owner import owner_allows
from fedcurv.curvature import require_same_shapes, shapes_of
from fedcurv.simulations.data import ImageData, load
from fedcurv.simulations.device import DeviceData, load_device
from fedcurv.simulations.losses import make_loss
from fedcurv.simulations.models import MODELS
from fedcurv.simulations.noise import drawn, noisy_labels
from fedcurv.simulations.partition import PARTITIONS
from fedcurv.simulations.rules import is_number
from fedcurv.simulations.task_description import TaskDescription, read_task, task_text

DATA_ROOT_VARIABLE = "FEDCURV_DATA_ROOT"
DATA_DOWNLOAD_VARIABLE = "FEDCURV_DATA_DOWNLOAD"

_MOST_PROCESSES = 64  # workers or threads of a device with fewer cores


class DataShape(Protocol):
    """What a model must know of its data."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an input."""
        ...

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        ...


def on_devices(config: TaskDescription) -> bool:
    """Return whether the clients have data of their own."""
    return bool(config["data"]["name"] == "device")


def device_data(config: TaskDescription) -> DeviceData:
    """Return what a configuration says of the devices' data.

    Raises:
        ValueError: if it cannot be meant.
    """
    keys = ("shape", "classes", "mean", "deviation", "label")
    return DeviceData(**{key: config["data"][key] for key in keys})


def described_data(config: TaskDescription) -> ImageData | DeviceData:
    """Return the data set that a configuration names, or what it says of the devices' data.

    Raises:
        ValueError: if it cannot be meant.
        FileNotFoundError: if the data are missing.
    """
    return device_data(config) if on_devices(config) else load_data(config)


def load_data(config: TaskDescription) -> ImageData:
    """Return the data set that a configuration names, or some of its training samples."""
    settings = config["data"]
    seed, number = config["seed"], settings["train_samples"]
    data = load(**{key: settings[key] for key in ("name", "root", "download")})
    if held_out := settings["validation_samples"]:
        # the same ones for every seed: what was tuned on must never be trained on
        training, validation = data.split(held_out)
        data = validation if settings["evaluate_on"] == "validation" else training
    elif settings["evaluate_on"] == "validation":
        raise ValueError(
            "data.evaluate_on=validation needs data.validation_samples > 0, which are held out of "
            "the training samples"
        )
    return data if number is None else data.some(number, seed=seed)


def make_settings(config: TaskDescription, client: int | None = None) -> TrainingSettings:
    """Return how a configuration has clients train.

    Args:
        config: resolved.
        client: its number, if it may be one of the stragglers.

    Raises:
        ValueError: naming what cannot be meant.
    """
    options = {k: v for k, v in config["client"].items() if k not in ("loss", "stragglers")}
    stragglers = config["client"]["stragglers"]
    if not is_number(stragglers["share"]) or not 0 <= stragglers["share"] <= 1:
        raise ValueError(f"client.stragglers.share must be in [0, 1], got {stragglers['share']!r}")
    slow = TrainingSettings(**{**options, "epochs": stragglers["epochs"]})
    number = config["num_clients"]
    if client is not None and client in drawn(stragglers["share"], number, seed=config["seed"]):
        return slow
    return TrainingSettings(**options)


def make_model(config: TaskDescription, data: DataShape) -> nn.Module:
    """Return the model that a configuration names, for that data."""
    options = dict(config["model"])
    make = _by_name(MODELS, "model.name", options.pop("name"))
    model: nn.Module = make(data.shape, data.num_classes, **options)
    return model


def make_partition(config: TaskDescription, data: ImageData) -> list[NDArray[np.int64]]:
    """Return every client's training samples."""
    options = dict(config["partition"])
    make = _by_name(PARTITIONS, "partition.name", options.pop("name"))
    parts: list[NDArray[np.int64]] = make(
        data.labels, config["num_clients"], seed=config["seed"], **options
    )
    return parts


def _by_name(table: dict[str, Any], what: str, name: str) -> Any:
    if name not in table:
        raise ValueError(f"{what} must be one of {', '.join(table)}, got {name!r}")
    return table[name]


@lru_cache(maxsize=1)
def _world(
    description: str, root: str, download: bool
) -> tuple[ImageData, list[NDArray[np.int64]]]:
    config = read_task(description)
    config["data"] |= {"root": root, "download": download}  # the node's own affair, both
    with _section("data"):
        data = load_data(config)
    with _section("partition"):
        if config["num_clients"] > len(data.labels):
            raise ValueError(
                f"num_clients must be at most {len(data.labels)}, one for each training sample, "
                f"got {config['num_clients']}"
            )
        return data, make_partition(config, data)


@contextmanager
def _section(name: str) -> Iterator[None]:
    """Name a description's section in what its use raises, whatever that is."""
    try:
        yield
    except (FileNotFoundError, ImportError):
        raise  # nothing is wrong with the description
    except ValueError as error:
        raise ValueError(f"task: {name}: {error}") from error
    except Exception as error:  # of whatever class a value of a wrong type makes
        raise ValueError(
            f"task: {name} cannot be meant: {type(error).__name__}: {error}"
        ) from error


def data_root(node_config: Mapping[str, Any]) -> str:
    """Return where a node keeps torchvision's data sets, as its owner says."""
    return str(node_config.get("data-root") or os.environ.get(DATA_ROOT_VARIABLE) or "data")


def make_task(message: Message, context: Context) -> LocalTask:
    """Return the task that the message describes, on this node's own data or its partition.

    Raises:
        ValueError: naming the section of the description, or the place in the node's own data, that
            is not as expected.
        FileNotFoundError: if data are missing.
        ImportError: if the task needs a package that is not installed.
    """
    description = task_text(message.content)
    config = read_task(description)
    with _section("data"):
        is_own = on_devices(config)
    make = _task_on_own_data if is_own else _task_on_partition
    return make(config, description, message, context)


def _task_on_own_data(
    config: TaskDescription, description: str, message: Message, context: Context
) -> LocalTask:
    with _section("data"):
        data = device_data(config)
    with _section("client"):
        settings, criterion = make_settings(config), make_loss(config["client"]["loss"])
        require_few_processes(settings)
    model = _model(config, data, message)
    train_samples, test_samples = load_device(context.node_config, data)
    return LocalTask(
        model=model,
        train_samples=train_samples,
        test_samples=test_samples,
        settings=settings,
        criterion=criterion,
        seed=config["seed"],
    )


def _task_on_partition(
    config: TaskDescription, description: str, message: Message, context: Context
) -> LocalTask:
    may_download = owner_allows(context.node_config, "data-download", DATA_DOWNLOAD_VARIABLE)
    data, parts = _world(description, data_root(context.node_config), may_download)
    if "partition-id" not in context.node_config:
        raise ValueError(
            f"data={config['data']['name']} is dealt out by partition-id, which is not in the "
            "node's configuration; add it, or use data=device"
        )
    client = int(context.node_config["partition-id"])
    if not 0 <= client < len(parts):
        raise ValueError(
            f"partition-id={client} in the node's configuration: expected 0 to {len(parts) - 1}, "
            f"for num_clients={len(parts)}"
        )
    with _section("client"):
        settings, criterion = make_settings(config, client), make_loss(config["client"]["loss"])
        require_few_processes(settings)
    inputs, labels = data.train_samples(parts[client])
    with _section("data.noise"):
        noisy = noisy_labels(
            inputs,
            labels,
            data.num_classes,
            config["data"]["noise"],
            client=client,
            num_clients=config["num_clients"],
            seed=config["seed"],
        )
    return LocalTask(
        model=_model(config, data, message),
        train_samples=(inputs, noisy.labels),
        settings=settings,
        criterion=criterion,
        seed=config["seed"],
        metrics={"label-noise": noisy.rate},
    )


def require_few_processes(settings: TrainingSettings) -> None:
    """Raise a ValueError for more processes or threads than this machine could want."""
    most = max(_MOST_PROCESSES, os.cpu_count() or 1)
    for name in ("workers", "num_threads"):
        if getattr(settings, name) > most:
            raise ValueError(f"{name} must be at most {most}, got {getattr(settings, name)}")


def _model(config: TaskDescription, data: DataShape, message: Message) -> nn.Module:
    """Return the model that a description names, which must be the one whose weights came with it.

    Its parameters are counted without memory for them, since only weights that are there may decide
    how much a device takes.
    """
    with _section("model"):
        if (record := message.content.array_records.get("arrays")) is None:
            raise ValueError("expected the server's weights under 'arrays' in the message")
        sent = {name: tuple(array.shape) for name, array in record.items()}
        for name, array in record.items():
            if math.prod(sent[name]) > len(array.data):
                raise ValueError(f"{name!r} is said to have the shape {sent[name]}, and has not")
        for key, value in config["model"].items():
            if isinstance(value, list) and len(value) > len(sent):
                raise ValueError(f"{key} has {len(value)} entries, more than arrays came")
        with torch.device("meta"):
            described = shapes_of(make_model(config, data).state_dict())
        require_same_shapes(sent, described, "the server's weights", "the model described")
        return make_model(config, data)


app = client_app(make_task)
