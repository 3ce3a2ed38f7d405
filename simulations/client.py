"""The experiments' ClientApp: one for every runner, told by the server what to train on what.

The description travels as JSON and holds names and numbers only; names are looked up in this
project's own tables, so that a message cannot make a client import anything. It holds no path
either: where data lie, a node knows by its own configuration or environment.
"""

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from flwr.app import ConfigRecord, Context, Message
from numpy.typing import NDArray
from torch import nn

from fedcurv.clients import LocalTask, TrainingSettings, client_app
from fedcurv.simulations.data import ImageData, load
from fedcurv.simulations.device import DeviceData, load_device
from fedcurv.simulations.losses import make_loss
from fedcurv.simulations.models import MODELS
from fedcurv.simulations.noise import drawn, noisy_labels
from fedcurv.simulations.partition import PARTITIONS

_TASK_KEY = "fedcurv-task"

DATA_ROOT_VARIABLE = "FEDCURV_DATA_ROOT"

TaskDescription = Mapping[str, Any]


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


def describe_task(config: TaskDescription) -> ConfigRecord:
    """Return the training configuration that tells clients their task.

    Args:
        config: the keys ``data``, ``partition``, ``model``, ``client``, ``num_clients`` and
            ``seed`` of a resolved configuration.
    """
    keys = ("partition", "model", "client", "num_clients", "seed")
    task = {key: config[key] for key in keys}
    task["data"] = {k: v for k, v in config["data"].items() if k not in ("root", "test")}
    return ConfigRecord({_TASK_KEY: json.dumps(task)})


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
    if not isinstance(stragglers["share"], int | float) or not 0 <= stragglers["share"] <= 1:
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
def _world(description: str, root: str) -> tuple[ImageData, list[NDArray[np.int64]]]:
    config = json.loads(description)
    config["data"]["root"] = root
    data = load_data(config)
    return data, make_partition(config, data)


def data_root(node_config: Mapping[str, Any]) -> str:
    """Return where a node keeps torchvision's data sets, as its owner says."""
    return str(node_config.get("data-root") or os.environ.get(DATA_ROOT_VARIABLE) or "data")


def make_task(message: Message, context: Context) -> LocalTask:
    """Return the task that the message describes, on this node's own data or its partition."""
    description = str(message.content["config"][_TASK_KEY])
    config = json.loads(description)
    if on_devices(config):
        return _task_on_own_data(config, context)
    return _task_on_partition(config, description, context)


def _task_on_own_data(config: TaskDescription, context: Context) -> LocalTask:
    data = device_data(config)
    train_samples, test_samples = load_device(context.node_config, data)
    return LocalTask(
        model=make_model(config, data),
        train_samples=train_samples,
        test_samples=test_samples,
        settings=make_settings(config),
        criterion=make_loss(config["client"]["loss"]),
        seed=config["seed"],
    )


def _task_on_partition(config: TaskDescription, description: str, context: Context) -> LocalTask:
    data, parts = _world(description, data_root(context.node_config))
    if "partition-id" not in context.node_config:
        raise ValueError(
            f"data={config['data']['name']} is dealt out by partition-id, which is not in the "
            "node's configuration; add it, or use data=device"
        )
    client = int(context.node_config["partition-id"])
    inputs, labels = data.train_samples(parts[client])
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
        model=make_model(config, data),
        train_samples=(inputs, noisy.labels),
        settings=make_settings(config, client),
        criterion=make_loss(config["client"]["loss"]),
        seed=config["seed"],
        metrics={"label-noise": noisy.rate},
    )


app = client_app(make_task)
