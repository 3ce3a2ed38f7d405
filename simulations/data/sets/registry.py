"""The data sets that a configuration can name; a file in this folder registers its own."""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from fedcurv.discovery import enter
from fedcurv.simulations.data.samples import DataSet, mean_and_deviation

# from data.root and data.download
Load = Callable[[str, bool], DataSet]
Registered = TypeVar("Registered", bound=Load)

DATA_SETS: dict[str, Load] = {}


def register_data_set(name: str) -> Callable[[Registered], Registered]:
    """Return a decorator that makes a function the data set of that name.

    It is called with the folder where data sets are kept, and whether to fetch what is missing.
    """

    def register(load: Registered) -> Registered:
        enter(DATA_SETS, "data set", name, load)
        return load

    return register


def standardised(
    train_inputs: Tensor, train_targets: Tensor, test_inputs: Tensor, test_targets: Tensor
) -> DataSet:
    """Return a data set of classes, whose inputs are brought to mean 0 and deviation 1."""
    mean, deviation = mean_and_deviation(train_inputs)
    return DataSet(
        train_inputs,
        train_targets,
        test_inputs,
        test_targets,
        num_classes=int(train_targets.max()) + 1,
        mean=mean,
        deviation=deviation,
    )
