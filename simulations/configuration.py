"""A command's configuration as plain values, checked before anything starts."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fedcurv.clients.learning_rates import LearningRates
from fedcurv.errors import in_one_line
from fedcurv.simulations.build import (
    described_data,
    make_model,
    make_partition,
    make_settings,
    make_terms,
    on_devices,
    require_few_processes,
)
from fedcurv.simulations.console.telling import tell_once
from fedcurv.simulations.data.owner import DeviceData
from fedcurv.simulations.data.samples import DataSet
from fedcurv.simulations.federation.run import RUNNERS, check_runner
from fedcurv.simulations.groups import store_groups
from fedcurv.simulations.parts.feature_noise import check_feature_noise
from fedcurv.simulations.parts.label_noise import check_noise
from fedcurv.simulations.parts.losses import make_loss
from fedcurv.simulations.parts.metrics import R2, check_metric, metric_function
from fedcurv.simulations.parts.strategies import (
    check_method,
    check_targets,
    estimates_fisher,
)
from fedcurv.simulations.parts.tasks import AUTO, metric_of, spread_of
from fedcurv.simulations.rules import check_strategy, check_values
from fedcurv.simulations.tried import (
    check_model,
    check_own_loss,
    require_same_data,
    require_same_model,
    require_same_parts,
)

# passes of the exact Fisher information, above which signs take their place by themselves
_MOST_PASSES = 16
CONF = Path(__file__).parent / "conf"

store_groups(CONF)


def composed(overrides: Sequence[str]) -> DictConfig:
    """Return the configuration of ``fedcurv-simulate`` with these overrides.

    Raises:
        HydraException: for overrides that it has not.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


def resolve(config: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain values, checked as far as that goes without training.

    Raises:
        ValueError: naming what cannot work.
        FileNotFoundError: if the data are missing.
    """
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    settings = {str(key): value for key, value in resolved.items()}
    check_values(settings)
    fraction, num_clients = settings["fraction_train"], settings["num_clients"]
    is_number = isinstance(fraction, int | float) and not isinstance(fraction, bool)
    if not is_number or not 1 <= fraction * num_clients <= num_clients:
        raise ValueError(
            f"fraction_train={fraction} of {num_clients} clients selects nobody or more than all; "
            f"expected a number from {1 / num_clients:.3g} to 1"
        )
    if settings["runner"]["name"] not in RUNNERS:
        raise ValueError(
            f"runner.name must be one of {', '.join(RUNNERS)}, got {settings['runner']['name']!r}"
        )
    if not settings.get("strategy"):
        raise ValueError("strategy: expected at least one, got none")
    for name, options in settings["strategy"].items():
        check_strategy(f"strategy.{name}", options, num_clients)
        check_targets(f"strategy.{name}", options)
    try:
        training = make_settings(settings)
    except TypeError as error:  # an option that there is not
        raise ValueError(f"client: {error}") from error
    for name, options in settings["strategy"].items():
        check_method(f"strategy.{name}", options, training)
    LearningRates(training.lr, training.schedule).check(settings["num_rounds"])
    make_terms(settings)
    metric_function(settings.get("metric"))
    if settings["data"]["evaluate_on"] not in ("test", "validation"):
        raise ValueError(
            f"data.evaluate_on must be test or validation, got {settings['data']['evaluate_on']!r}"
        )
    _check_evaluation(settings)
    if not on_devices(settings):
        # workers of Ray have working directories of their own
        for key in ("root", "file"):
            if key in settings["data"]:
                place = Path(settings["data"][key]).expanduser().absolute()
                settings["data"][key] = str(place)
    data = described_data(settings)
    _settle_task(settings, data)
    if isinstance(data, DataSet):
        require_same_data(settings, data)
    parts: dict[str, Callable[[], Any]] = {"model": lambda: make_model(settings, data)}
    if isinstance(data, DataSet):
        parts["partition"] = lambda: make_partition(settings, data)
    for part, make in parts.items():
        try:
            made = make()
        except TypeError as error:
            raise ValueError(f"{part}: an option is of a wrong type: {error}") from error
        except (RuntimeError, MemoryError, ArithmeticError) as error:  # as of a layer without end
            raise ValueError(
                f"{part}={settings[part]['name']} cannot be made for {_described(data)} "
                f"({in_one_line(error)})"
            ) from error
        if part == "partition" and settings["partition"]["name"] == "function":
            require_same_parts(made, make(), settings["partition"]["function"])
        if isinstance(made, nn.Module):
            training.check_model(made)
            if isinstance(data, DataSet):
                check_model(made, data, settings["model"]["name"])
                require_same_model(settings, data, made)
                check_own_loss(settings["client"], made, data)
    if isinstance(data, DataSet):
        inputs, _ = data.train_samples(np.arange(1))
        check_feature_noise(settings["data"].get("feature_noise", 0.0), inputs)
    return settings


def _settle_task(settings: dict[str, Any], data: DataSet | DeviceData) -> None:
    """Put the data's task into a configuration, and its loss; refuse what does not go with it."""
    task = data.task
    settings["task"] = task.name
    make_loss(settings["client"]["loss"], task)
    if settings["client"]["loss"] == AUTO:
        settings["client"]["loss"] = task.loss
    _settle_fisher_kind(settings, data)
    human = data.human_labels if isinstance(data, DataSet) else ()
    check_noise(settings["data"]["noise"], settings["num_clients"], task, human)
    metric, targets = metric_of(settings), settings["target_accuracies"]
    check_metric(settings.get("metric"), metric)
    if not metric.is_share and targets and targets != _default_targets():
        tell_once(
            f"target_accuracies={targets} is not used, as {metric.label} is no accuracy; its "
            "targets are metric.targets"
        )
    if (
        isinstance(data, DataSet)
        and metric_of(settings) is R2
        and spread_of(data.test_targets) == 0
    ):
        raise ValueError(
            f"task={task.name}: expected test targets that differ, got equal ones, for which R² is "
            "not defined; give others, or name a metric of your own by metric.function"
        )


def _settle_fisher_kind(settings: dict[str, Any], data: DataSet | DeviceData) -> None:
    """Put the kind of Fisher information that ``auto`` stands for into a configuration.

    The exact kind takes a backward pass for nearly every output of a sample; where these are many,
    signs that make one of them are the same on average.
    """
    client = settings["client"]
    if client.get("fisher_kind") != AUTO:
        return
    outputs = data.num_outputs
    if isinstance(data, DataSet) and not data.task.like_outputs:
        outputs *= data.train_targets[0].numel()
    client["fisher_kind"] = "exact" if outputs <= _MOST_PASSES else "signed"
    estimated = any(map(estimates_fisher, settings["strategy"].values()))
    if estimated and client["fisher_kind"] == "signed":
        tell_once(
            f"client.fisher_kind=auto: signed, as a sample has {outputs} outputs, for nearly each "
            "of which exact takes a backward pass"
        )


@lru_cache(maxsize=1)
def _default_targets() -> Any:
    return OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))["target_accuracies"]  # type: ignore[index, call-overload]


def _described(data: DataSet | DeviceData) -> str:
    return f"inputs of shape {tuple(data.shape)} and {data.num_outputs} outputs"


def _check_evaluation(settings: Mapping[str, Any]) -> None:
    """Refuse evaluation on clients without test data, devices without any evaluation, and noise."""
    fraction = settings["fraction_evaluate"]
    if not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
        raise ValueError(f"fraction_evaluate must be in [0, 1], got {fraction!r}")
    if not on_devices(settings):
        if fraction > 0:
            raise ValueError(
                f"fraction_evaluate={fraction}: the clients of a simulation have no test data, the "
                "server evaluates; use 0"
            )
        return
    if settings["data"]["noise"]["kind"] != "none":
        raise ValueError("data.noise.kind: devices' own labels are left as they are; use none")
    if settings["data"].get("test_samples") is not None:
        raise ValueError("data.test_samples: data.test names the server's own test set; use null")
    if settings["data"].get("feature_noise", 0.0):
        raise ValueError("data.feature_noise: devices' own inputs are left as they are; use 0")
    if fraction == 0 and not any(settings["data"]["test"].values()):
        raise ValueError(
            "data=device: expected the server's test set in data.test, or fraction_evaluate > 0 "
            "for evaluation on the devices, got neither"
        )


def check_simulation(settings: Mapping[str, Any]) -> None:
    """Raise a ValueError unless this machine can run what a resolved configuration asks for.

    That is: the data are not on devices, the runner has what it needs, and so has training.
    """
    if on_devices(settings):
        raise ValueError(
            "data=device needs real nodes, which know where their data are: use `flwr run` on "
            "simulations/app, or fedcurv-trial with --node-config"
        )
    check_runner(settings["runner"])
    if settings["runner"]["name"] != "ray":  # whose workers may be on other machines
        training = make_settings(settings)
        training.make_device()
        require_few_processes(training)


def only_strategy(config: DictConfig) -> tuple[str, Any]:
    """Return the name and the description of a configuration's one strategy.

    Raises:
        ValueError: if there are several.
    """
    if len(config.strategy) != 1:
        raise ValueError(f"strategy: expected one, got {', '.join(config.strategy)}")
    ((name, node),) = config.strategy.items()
    return str(name), node
