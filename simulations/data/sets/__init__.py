"""Data sets by name; a file registers its own as it is imported."""

from functools import lru_cache

from fedcurv.discovery import import_all
from fedcurv.simulations.data.samples import DataSet
from fedcurv.simulations.data.sets.registry import (
    DATA_SETS,
    register_data_set,
    standardised,
)

import_all(__name__, __path__)

__all__ = ["DATA_SETS", "load", "register_data_set", "standardised"]


@lru_cache(maxsize=1)
def load(name: str, root: str, download: bool) -> DataSet:
    """Return a data set by name; the last one stays in memory.

    Args:
        name: one of ``DATA_SETS``.
        root: the folder where torchvision keeps its data sets.
        download: whether to fetch what is missing there.

    Raises:
        ValueError: for an unknown name, or a function that returns something else.
        FileNotFoundError: if the files are missing and cannot be fetched.
    """
    if name not in DATA_SETS:
        raise ValueError(f"data.name must be one of {', '.join(DATA_SETS)}, got {name!r}")
    data = DATA_SETS[name](root, download)
    if not isinstance(data, DataSet):
        raise ValueError(
            f"data={name}: expected its function to return a DataSet, as standardised("
            "train_inputs, train_targets, test_inputs, test_targets) makes one, got "
            f"{type(data).__name__}"
        )
    return data
