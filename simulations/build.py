"""The things that a configuration names: data, training settings, model and partition."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedcurv.clients import TrainingSettings
from fedcurv.simulations.data.named import ImageData, load
from fedcurv.simulations.data.owner import DeviceData
from fedcurv.simulations.data.partition import PARTITIONS
from fedcurv.simulations.parts.label_noise import drawn
from fedcurv.simulations.parts.models import MODELS


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


def on_devices(config: Mapping[str, Any]) -> bool:
    """Return whether the clients have data of their own."""
    return bool(config["data"]["name"] == "device")


def device_data(config: Mapping[str, Any]) -> DeviceData:
    """Return what a configuration says of the devices' data.

    Raises:
        ValueError: if it cannot be meant.
    """
    keys = ("shape", "classes", "mean", "deviation", "label")
    return DeviceData(**{key: config["data"][key] for key in keys})


def described_data(config: Mapping[str, Any]) -> ImageData | DeviceData:
    """Return the data set that a configuration names, or what it says of the devices' data.

    Raises:
        ValueError: if it cannot be meant.
        FileNotFoundError: if the data are missing.
    """
    return device_data(config) if on_devices(config) else load_data(config)


def load_data(config: Mapping[str, Any]) -> ImageData:
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


def make_settings(config: Mapping[str, Any], client: int | None = None) -> TrainingSettings:
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


def make_model(config: Mapping[str, Any], data: DataShape) -> nn.Module:
    """Return the model that a configuration names, for that data."""
    options = dict(config["model"])
    make = _by_name(MODELS, "model.name", options.pop("name"))
    model: nn.Module = make(data.shape, data.num_classes, **options)
    return model


def make_partition(config: Mapping[str, Any], data: ImageData) -> list[NDArray[np.int64]]:
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
