"""The strategy that a configuration describes."""

from collections.abc import Mapping
from typing import Any

from flwr.serverapp.strategy import Strategy
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf


def make_strategy(node: DictConfig, config: Mapping[str, Any]) -> Strategy:
    """Return a strategy.

    Args:
        node: with its ``_target_`` and options; of FedCurv, ``strength: auto`` stands for
            ``AutoStrength`` with the clients' learning rate, epochs and batches.
        config: resolved.

    Raises:
        InstantiationException: for what cannot be meant.
    """
    if node.get("strength") == "auto":
        node = node.copy()
        rule = {
            "_target_": "fedcurv.strategies.AutoStrength",
            "lr": config["client"]["lr"],
            "epochs": config["client"]["epochs"],
            "batch_size": config["client"]["batch_size"],
        }
        OmegaConf.update(node, "strength", rule, merge=False, force_add=True)
    strategy: Strategy = instantiate(node)
    return strategy
