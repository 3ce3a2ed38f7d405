"""A regression, a metric of one's own for it, and a model that estimates one number.

Start the command where this file lies, or put the file where Python finds it.
"""

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from torch import nn


def data(test_every: int = 5) -> dict[str, np.ndarray]:
    """Return ten measurements of 442 patients, and how far their diabetes went within a year.

    The targets have mean 0 and deviation 1, as the Fisher information of a regression expects.
    """
    patients = load_diabetes()
    inputs = patients.data / patients.data.std(0)
    targets = (patients.target - patients.target.mean()) / patients.target.std()
    is_test = np.arange(len(inputs)) % test_every == 0
    return {
        "train_inputs": inputs[~is_test],
        "train_targets": targets[~is_test],
        "test_inputs": inputs[is_test],
        "test_targets": targets[is_test],
        # for partition=natural: patients of about the same age
        "train_groups": np.floor(inputs[~is_test, 0]),
    }


def model(shape: tuple[int, ...], num_outputs: int, width: int = 16) -> nn.Module:
    """Return a small network."""
    return nn.Sequential(nn.Linear(shape[0], width), nn.Tanh(), nn.Linear(width, num_outputs))


def mean_absolute_error(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the mean distance of all outputs from their targets."""
    return float((outputs - targets).abs().mean())
