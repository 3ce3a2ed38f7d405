"""Every key of every configuration with values of wrong types or out of range."""

import copy
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedcurv.simulations.commands import simulate as run_module
from fedcurv.simulations.commands.experiment import run_experiment
from fedcurv.simulations.commands.frame import explain
from fedcurv.simulations.commands.simulate import simulate
from fedcurv.simulations.configuration import resolve
from fedcurv.simulations.experiments import runs as experiment_runs
from tests.simulations.test_run import configuration

# together they hold every file of every group but the other data sets', which are alike
COMPOSITIONS = [
    ("config", ["strategy=[fedavg,fedprox,fedcurv_fedadam]"]),
    ("config", ["strategy=[fedavgm,fednova,scaffold,feddyn]"]),
    ("config", ["strategy=fedcurv", "model=cnn", "partition=dirichlet", "client=adam"]),
    ("config", ["strategy=fedadam", "model=resnet18", "partition=pathological", "runner=batched"]),
    ("config", ["strategy=fedavg", "partition=flwr_datasets", "model=small_resnet"]),
    ("config", ["strategy=[secure_fedavg,secure_fedcurv]", "runner=ray"]),
    *([("config", ["strategy=[private_fedavg,private_fedcurv]"])] if find_spec("opacus") else []),
    (
        "config",
        [
            *("strategy=fedavg", "data=function", "data.function=tests.own_tables:rows"),
            *("model=function", "model.function=tests.own_tables:network"),
            *("partition=function", "partition.function=tests.own_tables:by_turns"),
            "+client.terms.none=tests.own_tables:no_term",
        ],
    ),
    (
        "config",
        ["data=function", "data.function=tests.own_tables:text", "model=lstm", "partition=natural"],
    ),
    (
        "config",
        ["data=function", "data.function=tests.own_tables:text", "model=transformer"],
    ),
    ("nodes", ["strategy=fedavg", "data=device", "data.classes=[a,b]", "fraction_evaluate=1"]),
    ("experiments", ["experiment=noisy_clients", "experiment.only=[ce-fedavg]"]),
]
CANDIDATES: list[Any] = ["a word", -5, math.nan, True, None, [], {}, [None], "", 1.5]
# those that can be meant
GOOD: dict[str, list[Any]] = {
    "data.root": ["a word"],
    "data.download": [True],
    "data.train_samples": [None],
    "data.test_samples": [None],
    "data.noise.clients": [[]],  # nobody's
    "data.noise.labels": [None],
    "data.noise.rate": [None],
    "data.feature_noise": [1.5],
    "data.mean": [-5, 1.5],
    "data.deviation": [1.5],
    "data.label": ["a word", ""],
    "data.standardise": [True],
    **{f"{part}.options": [{}] for part in ("data", "model", "partition")},
    "client.terms": [{}, None],
    "data.test": [{}],
    **{f"data.test.{key}": ["a word", None] for key in ("folder", "csv", "function")},
    "partition.size_ratio": [1.5],
    "partition.alpha": [1.5],
    "model.hidden": [[]],  # softmax regression
    "client.lr": [1.5],
    "client.schedule": [None],
    "client.outer": [None],
    "client.compression": [None],
    "client.weight_decay": [1.5],
    "round_timeout": [None, 1.5],
    "target_accuracies": [[]],
    "metric": [{}],
    "metric.function": [None],
    "metric.higher_is_better": [True],
    "metric.targets": [[]],
    "verbose": [True],
    "resume": ["a word", None],
    "strategy.fedprox.proximal_mu": [1.5],
    "strategy.fedcurv.strength": [1.5],
    "strategy.fedcurv_fedadam.strength": [1.5],
    "strategy.fedcurv.max_precision": [1.5],
    "strategy.fedcurv_fedadam.max_precision": [1.5],
    **{
        f"strategy.{name}.{bound}": [1.5, None]
        for name in ("fedcurv", "fedcurv_fedadam")
        for bound in ("max_distance", "max_trace")
    },
    "strategy.secure_fedcurv.strategy.strength": [1.5],
    "strategy.secure_fedcurv.strategy.secure_sums": [True],
    **{f"strategy.secure_{name}.stage_timeout": [1.5] for name in ("fedavg", "fedcurv")},
    "strategy.private_fedavg.strength": [1.5],
    "strategy.private_fedcurv.strength": [1.5],
    **{
        f"strategy.{name}.{key}": [1.5]
        for name in ("private_fedavg", "private_fedcurv")
        for key in (
            *(f"private_sums.{key}" for key in ("clip", "noise_multiplier", "distance")),
            "private_sums.threshold",
            *(f"strategy.{key}" for key in ("noise_multiplier", "clipping_norm")),
            "strategy.num_sampled_clients",
        )
    },
    "strategy.fedadam.eta": [1.5],
    "strategy.fedavgm.server_learning_rate": [1.5],
    "strategy.feddyn.alpha": [1.5],
    "strategy.fedcurv_fedadam.strategy.eta": [1.5],
    "runner.client_resources": [{}],
    "runner.client_resources.num_cpus": [1.5],
    "runner.init_args": [{}],
    "experiment.only": [None],
    "experiment.against": ["ce-fedavg", None],
    "experiment.tuning_seeds": [None, []],  # nothing is tuned
    "experiment.methods.ce-fedavg.set": [None, {}, [], ""],
    "experiment.methods.ce-fedavg.grid": [{}],  # nothing is tuned
}


class Started(Exception):
    """Everything was accepted."""


def start(*_: object, **__: object) -> None:
    raise Started


def start_on_nodes(config: DictConfig, folder: Path, command: str) -> None:
    resolve(config)
    start()


COMMANDS = {
    "config": simulate,
    "nodes": start_on_nodes,
    "experiments": run_experiment,
}


def places(table: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield every key, tables' too, with those above it."""
    for key, value in table.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))


def new_places() -> Iterator[tuple[str, dict[str, Any], tuple[str, ...]]]:
    """Yield the name of a configuration, one that holds a key, and the key; each key once."""
    seen = set()
    for name, choices in COMPOSITIONS:
        file = "config" if name == "nodes" else name
        config = OmegaConf.to_container(configuration(*choices, name=file))
        if name == "experiments":  # one training
            experiment = config["experiment"]
            experiment["cells"] = experiment["cells"][:1]
            method = {**experiment["methods"]["ce-fedavg"], "grid": {"client.lr": [0.1]}}
            experiment["methods"] = {"ce-fedavg": method}
        for place in places(config):
            if place not in seen:
                seen.add(place)
                yield name, config, place


def with_value(config: dict[str, Any], place: tuple[str, ...], value: Any) -> DictConfig:
    changed = table = copy.deepcopy(config)
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    config = OmegaConf.create(changed)
    OmegaConf.set_struct(config, True)  # as Hydra does
    return config


def said_of(name: str, config: DictConfig, folder: Path) -> str | None:
    """Return what a command says before it starts; None if it starts."""
    try:
        COMMANDS[name](config, folder, command="")
    except Started:
        return None
    except (HydraException, OmegaConfBaseException, ValueError, OSError, ImportError) as error:
        return explain(error)
    raise AssertionError("nothing was started")


def test_every_key_has_a_value_that_can_be_meant_or_is_named_in_one_line(tmp_path, monkeypatch):
    """Nothing is started then, and nothing written."""
    monkeypatch.setattr(run_module, "run", start)
    monkeypatch.setattr(run_module, "write_config", start)
    monkeypatch.setattr(experiment_runs, "run", start)
    wrong, number = [], 0
    for number, (name, config, place) in enumerate(new_places()):
        key = ".".join(place)
        # who chose the package is told of it first
        names = {place[-1].rpartition(".")[2], "partition=flwr_datasets"} | {
            place[-2] if len(place) > 1 else key
        }
        for index, value in enumerate(CANDIDATES):
            folder = tmp_path / f"{number}-{index}"
            said = said_of(name, with_value(config, place, value), folder)
            if said is None:
                fits = any(repr(value) == repr(good) for good in GOOD.get(key, []))
            else:
                fits = "\n" not in said and not folder.exists()
                fits = fits and any(name in said for name in names)
            if not fits:
                wrong.append(f"{key}={value!r}: {said}")
    assert not wrong, "\n".join(wrong)
    assert number > 120


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("data.noise", "data.noise must be given"),
        ("client.stragglers", "client.stragglers must be given"),
        ("data.download", "data.download must be given"),
        ("model.name", "model.name must be given"),
        ("num_rounds", "num_rounds must be given"),
    ],
)
def test_a_key_that_was_taken_out_is_named(key, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        simulate(configuration(f"~{key}"), tmp_path / "out", command="")
    assert not (tmp_path / "out").exists()
