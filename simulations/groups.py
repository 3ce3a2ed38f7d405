"""Choices of a configuration without a file in conf/: models and data sets by their code alone."""

import inspect
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from fedcurv.simulations.data.sets import DATA_SETS
from fedcurv.simulations.parts.models import MODELS

# of a data set's file, all but the name
_LIKE = "digits"


def store_groups(conf: Path) -> None:
    """Let ``model=`` and ``data=`` choose what is registered and has no file.

    Args:
        conf: the folder of the configuration's files.
    """
    for name, make in MODELS.items():
        _store(conf, "model", name, {"name": name, **_defaults(make)})
    like: Any = OmegaConf.to_container(OmegaConf.load(conf / "data" / f"{_LIKE}.yaml"))
    for name in DATA_SETS:
        _store(conf, "data", name, {**like, "name": name})


def _store(conf: Path, group: str, name: str, node: dict[str, Any]) -> None:
    if not (conf / group / f"{name}.yaml").exists():
        ConfigStore.instance().store(group=group, name=name, node=node)


def _defaults(make: Any) -> dict[str, Any]:
    # the first two are the shape of an input and the number of outputs
    parameters = list(inspect.signature(make).parameters.values())[2:]
    return {
        p.name: list(p.default) if isinstance(p.default, tuple) else p.default
        for p in parameters
        if p.default is not p.empty
    }
