"""Data sets of pictures that torchvision has."""

from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor

from fedcurv.simulations.data.samples import DataSet
from fedcurv.simulations.data.sets.registry import register_data_set, standardised

# torchvision's class, and the files below data.root by which its absence is explained
_TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
}


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
    return standardised(*_pixels_and_labels(train), *_pixels_and_labels(test))


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


for _name in _TORCHVISION:
    register_data_set(_name)(partial(_torchvision, _name))
