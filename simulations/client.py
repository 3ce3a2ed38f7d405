"""The experiments' ClientApp: one for every runner, told by the server what to train on what.

The description travels as JSON and holds names and numbers only; names are looked up in this
project's own tables, so that a message cannot make a client import anything.
"""

import json
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message
from numpy.typing import NDArray
from torch import nn

from fedcurv.clients import LocalTask, TrainingSettings, client_app
from fedcurv.simulations.data import ImageData, load
from fedcurv.simulations.losses import make_loss
from fedcurv.simulations.models import MODELS
from fedcurv.simulations.noise import noisy_labels
from fedcurv.simulations.partition import PARTITIONS

_TASK_KEY = "fedcurv-task"

TaskDescription = dict[str, Any]


def describe_task(config: TaskDescription) -> ConfigRecord:
    """Return the training configuration that tells clients their task.

    Args:
        config: the keys ``data``, ``partition``, ``model``, ``client``, ``num_clients`` and
            ``seed`` of a resolved configuration.
    """
    keys = ("data", "partition", "model", "client", "num_clients", "seed")
    return ConfigRecord({_TASK_KEY: json.dumps({key: config[key] for key in keys})})


def load_data(config: TaskDescription) -> ImageData:
    """Return the data set that a configuration names, or some of its training samples."""
    options = {k: v for k, v in config["data"].items() if k not in ("noise", "train_samples")}
    data, number = load(**options), config["data"]["train_samples"]
    return data if number is None else data.some(number, seed=config["seed"])


def make_settings(config: TaskDescription) -> TrainingSettings:
    """Return how a configuration has clients train."""
    options = {key: value for key, value in config["client"].items() if key != "loss"}
    return TrainingSettings(**options)


def make_model(config: TaskDescription, data: ImageData) -> nn.Module:
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
def _world(description: str) -> tuple[ImageData, list[NDArray[np.int64]]]:
    config = json.loads(description)
    data = load_data(config)
    return data, make_partition(config, data)


def make_task(message: Message, context: Context) -> LocalTask:
    """Return the task that the message describes, for the partition of this node."""
    description = str(message.content["config"][_TASK_KEY])
    config = json.loads(description)
    data, parts = _world(description)
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
        settings=make_settings(config),
        criterion=make_loss(config["client"]["loss"]),
        seed=config["seed"],
        metrics={"label-noise": noisy.rate},
    )


app = client_app(make_task)
