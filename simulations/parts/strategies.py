"""The strategy that a configuration describes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.serverapp.strategy import Strategy
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fedcurv.clients import TrainingSettings
from fedcurv.clients.methods.named import METHODS
from fedcurv.clients.optimizers import OPTIMIZERS, require_proximal
from fedcurv.simulations.console.telling import tell_once
from fedcurv.simulations.own_calls import dotted_object
from fedcurv.strategies import FedCurv
from fedcurv.strategies.loop.strategy_state import with_inner
from fedcurv.strategies.two_sided import TwoSided


def check_targets(path: str, described: Any) -> None:
    """Raise a ValueError, in one line, for a ``_target_`` that is not there.

    Args:
        path: of what is described, in the configuration.
        described: a strategy with its options, among which others may be described.
    """
    if isinstance(described, Mapping):
        if "_target_" in described:
            dotted_object(f"{path}._target_", described["_target_"])
        for key, value in described.items():
            check_targets(f"{path}.{key}", value)
    elif isinstance(described, Sequence) and not isinstance(described, str):
        for index, value in enumerate(described):
            check_targets(f"{path}.{index}", value)


def check_method(path: str, options: Mapping[str, Any], settings: TrainingSettings) -> None:
    """Raise a ValueError if a strategy's method does not hold for how clients train.

    Args:
        path: of the strategy in the configuration.
        options: with its ``_target_``, which is there.
        settings: of the clients.
    """
    found = dotted_object(f"{path}._target_", options["_target_"])
    if isinstance(found, type) and issubclass(found, TwoSided):
        try:
            METHODS[found.method].require_settings(settings)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def estimates_fisher(options: Mapping[str, Any]) -> bool:
    """Return whether a strategy is FedCurv or derived from it, or wraps one that is."""
    try:
        found = dotted_object("_target_", options.get("_target_"))
    except ValueError:  # making it will say so
        return False
    if isinstance(found, type) and issubclass(found, FedCurv):
        return True
    inner = options.get("strategy")
    return isinstance(inner, Mapping) and estimates_fisher(inner)


def make_strategy(node: DictConfig, config: Mapping[str, Any]) -> Strategy:
    """Return a strategy.

    Args:
        node: with its ``_target_`` and options; of FedCurv, ``strength: auto`` stands for
            ``AutoStrength`` with the clients' learning rate, epochs and batches.
        config: resolved.

    Raises:
        InstantiationException: for what cannot be meant.
        ValueError: for what is no strategy, and for FedCurv with an optimizer of clients that its
            penalty does not fit.
    """
    node = _with_rule(node, config)
    strategy: Strategy = instantiate(node)
    if not isinstance(strategy, Strategy):
        raise ValueError(
            f"{node['_target_']}: expected a strategy of flwr.serverapp.strategy, got "
            f"{type(strategy).__name__}"
        )
    client = config["client"]
    proximal = client.get("penalty_mode") == "proximal"
    inner = fedcurv_in(strategy)
    if proximal and inner is not None and inner.strength != 0:
        require_proximal(client.get("optimizer", "sgd"))
    return strategy


def fedcurv_in(strategy: Strategy) -> FedCurv | None:
    """Return a strategy if it is FedCurv, or the one inside it that is; None if there is none."""
    return next((one for one in with_inner(strategy) if isinstance(one, FedCurv)), None)


def _with_rule(node: DictConfig, config: Mapping[str, Any]) -> DictConfig:
    """Return a description in which AutoStrength stands in the place of ``auto``."""
    if isinstance(node.get("strategy"), DictConfig):
        inner = _with_rule(node.strategy, config)
        if inner is not node.strategy:
            node = node.copy()
            OmegaConf.update(node, "strategy", inner, merge=False)
    if node.get("strength") == "auto":
        node = node.copy()
        rule = {
            "_target_": "fedcurv.strategies.AutoStrength",
            "lr": _learning_rate(config["client"]),
            "epochs": config["client"]["epochs"],
            "batch_size": config["client"]["batch_size"],
            "mode": config["client"].get("penalty_mode", TrainingSettings.penalty_mode),
        }
        _tell_of_no_bound(config["client"], rule["mode"])
        OmegaConf.update(node, "strength", rule, merge=False, force_add=True)
    return node


def _tell_of_no_bound(client: Mapping[str, Any], mode: str) -> None:
    named = client.get("optimizer", TrainingSettings.optimizer)
    if mode == "gradient" and OPTIMIZERS.choose(named).cls is not torch.optim.SGD:
        tell_once(
            f"strength=auto: for client.penalty_mode=gradient the bound is that of plain SGD; "
            f"client.optimizer={named} has no known one, and λ may be too strong: tune it, or use "
            "client.penalty_mode=proximal"
        )


def _learning_rate(client: Mapping[str, Any]) -> Any:
    """Return the learning rate, or with a schedule what makes a function of the round."""
    if client.get("schedule") is None:
        return client["lr"]
    rates = "fedcurv.clients.learning_rates.LearningRates"
    options = {"lr": client["lr"], "schedule": client["schedule"]}
    return {"_target_": rates, "_convert_": "all", **options}
