"""Builders of what a configuration names: data, training settings, model and partition."""

import json
import os
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from flwr.app import Context, Message
from numpy.typing import NDArray
from torch import Tensor, nn

from fedcurv.clients import TrainingSettings
from fedcurv.clients.terms import LocalTerm, MakeTerm
from fedcurv.simulations.data.own import data_set_of, read_arrays
from fedcurv.simulations.data.owner import DeviceData
from fedcurv.simulations.data.partition import BY_CLASS, PARTITIONS, checked_parts, natural
from fedcurv.simulations.data.samples import DataSet
from fedcurv.simulations.data.sets import load
from fedcurv.simulations.own_calls import (
    SAME,
    call_own,
    own_function,
    own_options,
    version_of,
)
from fedcurv.simulations.parts.label_noise import (
    Labelled,
    drawn,
    noisy_validation,
)
from fedcurv.simulations.parts.models import MODELS
from fedcurv.simulations.parts.tasks import AUTO, CLASSIFICATION, Task, task_named
from fedcurv.simulations.rules import is_number

_MOST_PROCESSES = 64  # workers or threads of a device with fewer cores

# data that are the user's own, and the key that says where they are
_OWN_DATA = {"arrays": "file", "function": "function"}


class DataShape(Protocol):
    """What a model must know of its data."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input; of a picture channels, height and width."""
        ...

    @property
    def num_outputs(self) -> int:
        """How many numbers a model gives for an input, or for each of its positions."""
        ...

    @property
    def task(self) -> Task:
        """What is to be learned."""
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


def described_data(config: Mapping[str, Any]) -> DataSet | DeviceData:
    """Return the data set that a configuration names, or what it says of the devices' data.

    Raises:
        ValueError: if it cannot be meant.
        FileNotFoundError: if the data are missing.
    """
    if not on_devices(config):
        return load_data(config)
    _require_classification(config)
    return device_data(config)


def load_data(config: Mapping[str, Any]) -> DataSet:
    """Return the data set that a configuration names, or some of its samples."""
    settings = config["data"]
    seed, number = config["seed"], settings["train_samples"]
    if settings["name"] in _OWN_DATA:
        data = _own_data(settings, config.get("task", AUTO))
    else:
        _require_classification(config)
        data = load(**{key: settings[key] for key in ("name", "root", "download")})
    if held_out := settings["validation_samples"]:
        data, validation = data.split(held_out)
        if settings["evaluate_on"] == "validation":
            data = data.tested_on(*_validation_samples(validation, config))
    elif settings["evaluate_on"] == "validation":
        raise ValueError(
            "data.evaluate_on=validation needs data.validation_samples > 0, which are held out of "
            "the training samples"
        )
    elif settings["noise"].get("validation"):
        raise ValueError(
            "data.noise.validation=true needs data.validation_samples > 0, whose labels it is about"
        )
    test_samples = settings.get("test_samples")
    if test_samples is not None and settings["evaluate_on"] == "test":
        data = data.with_some_tests(test_samples)
    return data if number is None else data.some(number, seed=seed)


def _validation_samples(held_out: DataSet, config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return inputs and targets to tune on; with wrong labels, if whoever tunes has no others."""
    noise, inputs, targets = config["data"]["noise"], held_out.train_inputs, held_out.train_targets
    if not noise.get("validation"):
        return inputs, targets
    samples = Labelled(inputs, targets, held_out.num_classes, held_out.human_labels, held_out.task)
    return inputs, noisy_validation(samples, noise, config["num_clients"]).labels


def _require_classification(config: Mapping[str, Any]) -> None:
    if config.get("task", AUTO) not in (AUTO, CLASSIFICATION.name):
        task_named(config["task"])
        raise ValueError(
            f"task={config['task']}: data={config['data']['name']} has classes; give targets of "
            "your own by data=function or data=arrays"
        )


def _own_data(settings: Mapping[str, Any], task: str) -> DataSet:
    place = str(settings[_OWN_DATA[settings["name"]]])
    if settings["name"] == "arrays":
        place = str(Path(place).absolute())  # as clients are told of it
    options = json.dumps(own_options("data.function", settings.get("options")), sort_keys=True)
    version = version_of(f"data.{_OWN_DATA[settings['name']]}", place)
    flags = [bool(settings.get(key)) for key in ("standardise", "channels_last")]
    if task != AUTO:
        task_named(task)
    return _own_data_set(settings["name"], place, options, *flags, task, version)


def load_anew(config: Mapping[str, Any]) -> DataSet:
    """Return the same as ``load_data``, but from the user's file or function once more."""
    _own_data_set.cache_clear()
    return load_data(config)


@lru_cache(maxsize=1)
def _own_data_set(
    kind: str,
    place: str,
    options: str,
    standardise: bool,
    channels_last: bool,
    task: str,
    version: tuple[object, ...],
) -> DataSet:
    """Return the last one that was asked for from memory, unless its file is another now."""
    if kind == "arrays":
        arrays: Any = read_arrays(Path(place))
    else:
        arrays = call_own("data.function", place, SAME, **json.loads(options))
    source = f"data.{_OWN_DATA[kind]}={place}"
    return data_set_of(
        arrays, source, standardise=standardise, channels_last=channels_last, task=task
    )


def versions_of(config: Mapping[str, Any]) -> tuple[object, ...]:
    """Return what changes with the data and the partition that a task names."""
    data, partition = config["data"], config["partition"]
    named = [(f"data.{key}", data.get(key)) for key in (_OWN_DATA.get(str(data["name"])),) if key]
    if partition["name"] == "function":
        named.append(("partition.function", partition.get("function")))
    return tuple(version_of(path, str(name)) for path, name in named)


def make_settings(config: Mapping[str, Any], client: int | None = None) -> TrainingSettings:
    """Return how a configuration has clients train.

    Args:
        config: resolved.
        client: its number, if it may be one of the stragglers.

    Raises:
        ValueError: naming what cannot be meant.
    """
    others = ("loss", "stragglers", "terms")
    options = {k: v for k, v in config["client"].items() if k not in others}
    if options.get("fisher_kind") == AUTO:
        options["fisher_kind"] = "exact"  # until the data say how many outputs there are
    stragglers = config["client"]["stragglers"]
    if not is_number(stragglers["share"]) or not 0 <= stragglers["share"] <= 1:
        raise ValueError(f"client.stragglers.share must be in [0, 1], got {stragglers['share']!r}")
    slow = TrainingSettings(**{**options, "epochs": stragglers["epochs"]})
    number = config["num_clients"]
    if client is not None and client in drawn(stragglers["share"], number, seed=config["seed"]):
        return slow
    return TrainingSettings(**options)


def require_few_processes(settings: TrainingSettings) -> None:
    """Raise a ValueError for more processes or threads than this machine could want."""
    most = max(_MOST_PROCESSES, os.cpu_count() or 1)
    for name in ("workers", "num_threads"):
        if getattr(settings, name) > most:
            raise ValueError(f"client.{name} must be at most {most}, got {getattr(settings, name)}")


def make_terms(config: Mapping[str, Any]) -> dict[str, MakeTerm]:
    """Return the user's own local terms by name; a strategy says which of them a round has.

    Raises:
        ValueError: naming what cannot be found.
    """
    terms: dict[str, MakeTerm] = {}
    for name, place in (config["client"].get("terms") or {}).items():
        path = f"client.terms.{name}"
        own_function(path, place)
        terms[name] = partial(_make_term, path, str(place))
    return terms


def _make_term(
    path: str, place: str, message: Message, context: Context, model: nn.Module
) -> LocalTerm | None:
    term = call_own(path, place, None, message, context, model)
    if term is not None and not isinstance(term, LocalTerm):
        raise ValueError(f"{path}={place}: expected a LocalTerm or None, got {type(term).__name__}")
    return term


def make_model(config: Mapping[str, Any], data: DataShape) -> nn.Module:
    """Return the model that a configuration names, for that data."""
    options = dict(config["model"])
    name = options.pop("name")
    if name == "function":
        place, inner = options.pop("function"), options.pop("options", None)
        all_options = own_options("model.function", inner, options)
        shape, outputs = data.shape, data.num_outputs
        own = call_own("model.function", place, config["seed"], shape, outputs, **all_options)
        if not isinstance(own, nn.Module):
            raise ValueError(
                f"model.function={place}: expected a torch.nn.Module, got {type(own).__name__}"
            )
        return own
    make = _by_name(MODELS, "model.name", name, "function")
    model: nn.Module = make(data.shape, data.num_outputs, **options)
    return model


def make_partition(config: Mapping[str, Any], data: DataSet) -> list[NDArray[np.int64]]:
    """Return every client's training samples."""
    options = dict(config["partition"])
    name, number, seed = options.pop("name"), config["num_clients"], config["seed"]
    if name == "function":
        place, inner = options.pop("function"), options.pop("options", None)
        labels = data.labels.copy()  # the data set stays as it is, whatever is done to them
        all_options = own_options("partition.function", {"seed": seed}, inner, options)
        own = call_own("partition.function", place, seed, labels, number, **all_options)
        return checked_parts(own, len(data.labels), number, f"partition.function={place}")
    if name == "natural":
        if data.train_groups is None:
            raise ValueError(
                f"partition=natural: data={config['data']['name']} does not say who its samples "
                "are of; it needs train_groups"
            )
        return natural(data.train_groups, number, seed=seed, **options)
    make = _by_name(PARTITIONS, "partition.name", name, "natural", "function")
    if name in BY_CLASS and not data.task.has_labels:
        raise ValueError(
            f"partition={name} deals by class, which samples of task={data.task.name} have not; "
            "use iid, quantity, natural or function"
        )
    parts: list[NDArray[np.int64]] = make(data.labels, number, seed=seed, **options)
    return parts


def _by_name(table: dict[str, Any], what: str, name: str, *others: str) -> Any:
    if name not in table:
        raise ValueError(f"{what} must be one of {', '.join((*table, *others))}, got {name!r}")
    return table[name]
