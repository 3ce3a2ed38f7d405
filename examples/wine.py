"""A data set, a model, a partition, a loss and a strategy of one's own, for the command to name.

Start the command where this file lies, or put the file where Python finds it.
"""

from collections.abc import Iterable

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from sklearn.datasets import load_wine
from torch import nn

ALCOHOL = 0


def data(test_every: int = 4) -> dict[str, np.ndarray]:
    """Return 178 wines of three growers, by 13 measurements."""
    wines = load_wine()
    inputs = (wines.data - wines.data.mean(0)) / wines.data.std(0)
    is_test = np.arange(len(inputs)) % test_every == 0
    return {
        "train_inputs": inputs[~is_test],
        "train_targets": wines.target[~is_test],
        "test_inputs": inputs[is_test],
        "test_targets": wines.target[is_test],
        # for partition=natural: wines of about the same strength
        "train_groups": np.floor(wines.data[~is_test, ALCOHOL] / 0.5),
    }


def model(shape: tuple[int, ...], num_classes: int, width: int = 16) -> nn.Module:
    """Return a small network."""
    return nn.Sequential(nn.Linear(shape[0], width), nn.Tanh(), nn.Linear(width, num_classes))


def by_alcohol(labels: np.ndarray, num_clients: int, *, seed: int) -> list[np.ndarray]:
    """Return an equal share for each client, from the weakest wines to the strongest."""
    order = np.argsort(data()["train_inputs"][:, ALCOHOL])
    return np.array_split(order, num_clients)


class Brier(nn.Module):
    """The squared distance between probabilities and the class."""

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean over a batch."""
        wanted = nn.functional.one_hot(targets, logits.shape[1])
        return (logits.softmax(1) - wanted).square().sum(1).mean()


class DampedAverage(FedAvg):
    """FedAvg that goes a share of the way to the clients' average."""

    def __init__(self, share: float = 0.5, **options: object) -> None:
        super().__init__(**options)
        self.share = share
        self.before = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember the model that clients start from."""
        self.before = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the damped average."""
        average, metrics = super().aggregate_train(server_round, replies)
        if average is None:
            return None, metrics
        before, after = self.before.to_torch_state_dict(), average.to_torch_state_dict()
        damped = {name: torch.lerp(before[name], after[name], self.share) for name in before}
        return ArrayRecord(damped), metrics
