"""Image data sets with real pictures, by name."""

from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor

from fedcurv.simulations.data.samples import DataSet, mean_and_deviation

# torchvision's class, and the files below data.root by which its absence is explained
_TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
}
DATA_SETS = ("digits", *_TORCHVISION)


@lru_cache(maxsize=1)
def load(name: str, root: str, download: bool) -> DataSet:
    """Return a data set by name; the last one stays in memory.

    Args:
        name: ``digits`` (scikit-learn's 8x8 scans, part of that package), ``mnist``,
            ``fashion_mnist`` or ``cifar10``.
        root: the folder where torchvision keeps its data sets.
        download: whether to fetch what is missing there.

    Raises:
        ValueError: for an unknown name.
        FileNotFoundError: if the files are missing and cannot be fetched.
    """
    if name == "digits":
        return _digits()
    if name not in _TORCHVISION:
        raise ValueError(f"data.name must be one of {', '.join(DATA_SETS)}, got {name!r}")
    return _torchvision(name, root, download)


def _digits() -> DataSet:
    from sklearn.datasets import load_digits

    pictures = load_digits()
    # every fifth sample is for testing: the same ones whatever the seed
    pixels = torch.from_numpy(pictures.images.astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(pictures.target.astype(np.int64))
    is_test = torch.arange(len(labels)) % 5 == 0
    return _standardised(pixels[~is_test], labels[~is_test], pixels[is_test], labels[is_test])


def _torchvision(name: str, root: str, download: bool) -> DataSet:
    import torchvision

    class_name, folder = _TORCHVISION[name]
    make = getattr(torchvision.datasets, class_name)
    try:
        train, test = (_open(make, root, is_train, download) for is_train in (True, False))
    except (RuntimeError, URLError, OSError) as error:
        raise FileNotFoundError(
            f"data={name}: not found in {Path(root) / folder} and "
            f"{'could not be downloaded' if download else 'data.download is false'} "
            f"({' '.join(str(error).split())}); set "
            "data.root to a folder that has it, run once where there is a network, or use "
            "data=digits; on a node its owner does so: data-root and data-download=true in the "
            "node's configuration"
        ) from error
    return _standardised(*_pixels_and_labels(train), *_pixels_and_labels(test))


def _open(make: Any, root: str, is_train: bool, download: bool) -> Any:
    try:
        return make(root, train=is_train, download=False)
    except RuntimeError:
        if not download:
            raise
        return make(root, train=is_train, download=True)


def _pixels_and_labels(data: Any) -> tuple[Tensor, Tensor]:
    labels = torch.as_tensor(data.targets, dtype=torch.int64)
    pixels = torch.as_tensor(data.data)
    if pixels.ndim == 4:  # (N, height, width, channels), as CIFAR-10 has it
        return pixels.permute(0, 3, 1, 2).contiguous(), labels
    return pixels.unsqueeze(1), labels


def _standardised(
    train_inputs: Tensor, train_targets: Tensor, test_inputs: Tensor, test_targets: Tensor
) -> DataSet:
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
