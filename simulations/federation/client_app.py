"""The experiments' ClientApp: one for every runner, told by the server what to train on what.

The description travels as JSON and holds names and numbers only; names are looked up in this
project's own tables, so that a message cannot make a client import anything. It holds no path
either: where data lie, and which functions are the user's own, a node knows by its own
configuration or environment.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message
from numpy.typing import NDArray
from torch import nn

from fedcurv.clients import LocalTask, SecureSumsMod, client_app
from fedcurv.clients.owner import owner_allows
from fedcurv.curvature import require_same_shapes, shapes_of
from fedcurv.simulations.build import (
    DataShape,
    described_data,
    load_data,
    make_model,
    make_partition,
    make_settings,
    make_terms,
    on_devices,
    require_few_processes,
    versions_of,
)
from fedcurv.simulations.data.owner import DeviceData, load_device
from fedcurv.simulations.data.samples import DataSet
from fedcurv.simulations.federation.task_description import TaskDescription, read_task, task_text
from fedcurv.simulations.own import with_own_names
from fedcurv.simulations.parts.feature_noise import noisy_inputs
from fedcurv.simulations.parts.label_noise import Labelled, noisy_labels
from fedcurv.simulations.parts.losses import make_loss

DATA_ROOT_VARIABLE = "FEDCURV_DATA_ROOT"
DATA_DOWNLOAD_VARIABLE = "FEDCURV_DATA_DOWNLOAD"


@lru_cache(maxsize=1)
def _world(
    task: str, root: str, download: bool, versions: tuple[object, ...]
) -> tuple[DataSet, list[NDArray[np.int64]]]:
    """Return data and partition; the last ones stay in memory, unless their files have changed."""
    config = json.loads(task)
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
        place = "" if str(error).startswith((f"{name}.", f"{name}=")) else f"{name}: "
        raise ValueError(f"task: {place}{error}") from error
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
    config = with_own_names(read_task(description), context.node_config)
    with _section("data"):
        is_own = on_devices(config)
    make = _task_on_own_data if is_own else _task_on_partition
    return make(config, message, context)


def _task_on_own_data(config: TaskDescription, message: Message, context: Context) -> LocalTask:
    with _section("data"):
        data = described_data(config)
        assert isinstance(data, DeviceData)  # as ``on_devices`` said
    with _section("client"):
        settings, criterion = make_settings(config), make_loss(config["client"]["loss"], data.task)
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
        terms=make_terms(config),
    )


def _task_on_partition(config: TaskDescription, message: Message, context: Context) -> LocalTask:
    may_download = owner_allows(context.node_config, "data-download", DATA_DOWNLOAD_VARIABLE)
    with _section("data"):
        versions = versions_of(config)
    root = data_root(context.node_config)
    data, parts = _world(json.dumps(config), root, may_download, versions)
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
        settings = make_settings(config, client)
        criterion = make_loss(config["client"]["loss"], data.task)
        require_few_processes(settings)
    inputs, targets = data.train_samples(parts[client])
    with _section("data.noise"):
        human = data.human_labels_of(parts[client])
        noisy = noisy_labels(
            Labelled(inputs, targets, data.num_classes, human, data.task),
            config["data"]["noise"],
            client=client,
            num_clients=config["num_clients"],
            seed=config["seed"],
        )
    with _section("data"):
        measured = noisy_inputs(
            inputs,
            config["data"].get("feature_noise", 0.0),
            client=client,
            num_clients=config["num_clients"],
            seed=config["seed"],
        )
    return LocalTask(
        model=_model(config, data, message),
        train_samples=(measured, noisy.labels),
        settings=settings,
        criterion=criterion,
        likelihood=data.task.likelihood,
        seed=config["seed"],
        metrics={"label-noise": noisy.rate},
        terms=make_terms(config),
    )


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
        if config["model"].get("name") == "function":  # the node's own, which decides for itself
            model = make_model(config, data)
            described = shapes_of(model.state_dict())
            require_same_shapes(sent, described, "the server's weights", "the node's own model")
            return model
        with torch.device("meta"):
            described = shapes_of(make_model(config, data).state_dict())
        require_same_shapes(sent, described, "the server's weights", "the model described")
        return make_model(config, data)


# whoever owns a node decides whether it trains for servers without secure sums, too
app = client_app(make_task, mods=[SecureSumsMod(plain=None)])
