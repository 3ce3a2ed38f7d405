"""The strategy that a configuration describes."""

import math
from collections.abc import Mapping
from typing import Any

from flwr.serverapp.strategy import Strategy
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fedcurv.simulations.client import load_data, on_devices


def make_strategy(node: DictConfig, config: Mapping[str, Any]) -> Strategy:
    """Return a strategy.

    Args:
        node: with its ``_target_`` and options; of FedCurv, ``strength: auto`` stands for
            ``AutoStrength`` with the clients' learning rate and number of steps.
        config: resolved.

    Raises:
        ValueError: for ``auto`` where the clients' data are not known here.
        InstantiationException: for what cannot be meant.
    """
    if node.get("strength") == "auto":
        node = node.copy()
        rule = {
            "_target_": "fedcurv.strategies.AutoStrength",
            "lr": config["client"]["lr"],
            "local_steps": local_steps(config),
        }
        OmegaConf.update(node, "strength", rule, merge=False, force_add=True)
    strategy: Strategy = instantiate(node)
    return strategy


def local_steps(config: Mapping[str, Any]) -> int:
    """Return how many steps a client of average size takes in a round.

    Raises:
        ValueError: if the clients' data are not known here.
    """
    if on_devices(config):
        raise ValueError(
            "strategy.fedcurv.strength=auto needs to know how many samples a device has; give a "
            "number"
        )
    samples = len(load_data(config).labels) / config["num_clients"]
    epochs, batch_size = config["client"]["epochs"], config["client"]["batch_size"]
    return int(epochs * math.ceil(samples / batch_size))
