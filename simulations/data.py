"""Image data sets with real pictures, by name."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# decides which samples are held out for validation
_SPLIT_SEED = 20_240_229


@dataclass(frozen=True)
class ImageData:
    """Raw pictures in memory; ``samples`` turns a selection into what a model takes.

    Attributes:
        train_pixels: shape (N, channels, height, width), any integer type.
        train_labels: shape (N,), 0..num_classes-1.
        test_pixels: as ``train_pixels``.
        test_labels: as ``train_labels``.
        num_classes: number of classes.
        mean: of the training pixels, which are standardised with it.
        deviation: standard deviation of the training pixels.
    """

    train_pixels: Tensor
    train_labels: Tensor
    test_pixels: Tensor
    test_labels: Tensor
    num_classes: int
    mean: float
    deviation: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one picture."""
        channels, height, width = self.train_pixels.shape[1:]
        return channels, height, width

    @property
    def labels(self) -> NDArray[np.int64]:
        """The training labels, for partitions."""
        labels: NDArray[np.int64] = self.train_labels.numpy()
        return labels

    def some(self, number: int, *, seed: int) -> "ImageData":
        """Return the same data set with so many of its training samples, chosen at random.

        Raises:
            ValueError: if there are fewer, or ``number`` < 1.
        """
        if not isinstance(number, int) or not 1 <= number <= len(self.train_labels):
            raise ValueError(
                f"data.train_samples must be an integer from 1 to {len(self.train_labels)}, got "
                f"{number!r}"
            )
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self.train_labels), generator=generator)[:number]
        return replace(
            self, train_pixels=self.train_pixels[chosen], train_labels=self.train_labels[chosen]
        )

    def split(self, number: int) -> tuple["ImageData", "ImageData"]:
        """Return this data set twice without so many of its training samples, chosen at random.

        Returns:
            one with the test set as it was, one with those samples in the place of the test set.

        Raises:
            ValueError: if none would be left, or ``number`` < 1.
        """
        if not isinstance(number, int) or not 1 <= number < len(self.train_labels):
            raise ValueError(
                f"data.validation_samples must be an integer from 0 to "
                f"{len(self.train_labels) - 1}, got {number!r}"
            )
        order = torch.randperm(
            len(self.train_labels), generator=torch.Generator().manual_seed(_SPLIT_SEED)
        )
        held_out, kept = order[:number], order[number:].sort().values
        training = replace(
            self, train_pixels=self.train_pixels[kept], train_labels=self.train_labels[kept]
        )
        validation = replace(
            training,
            test_pixels=self.train_pixels[held_out],
            test_labels=self.train_labels[held_out],
        )
        return training, validation

    def train_samples(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return standardised float32 pictures and labels of some training samples."""
        chosen = torch.from_numpy(indices)
        return self._standardise(self.train_pixels[chosen]), self.train_labels[chosen]

    def test_samples(self) -> tuple[Tensor, Tensor]:
        """Return all standardised test pictures and labels."""
        return self._standardise(self.test_pixels), self.test_labels

    def _standardise(self, pixels: Tensor) -> Tensor:
        return (pixels.float() - self.mean) / self.deviation


# torchvision's class, and the files below data.root by which its absence is explained
_TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
}
DATA_SETS = ("digits", *_TORCHVISION)


@lru_cache(maxsize=1)
def load(name: str, root: str, download: bool) -> ImageData:
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


def _digits() -> ImageData:
    from sklearn.datasets import load_digits

    pictures = load_digits()
    # every fifth sample is for testing: the same ones whatever the seed
    pixels = torch.from_numpy(pictures.images.astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(pictures.target.astype(np.int64))
    is_test = torch.arange(len(labels)) % 5 == 0
    return _image_data(pixels[~is_test], labels[~is_test], pixels[is_test], labels[is_test])


def _torchvision(name: str, root: str, download: bool) -> ImageData:
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
    return _image_data(*_pixels_and_labels(train), *_pixels_and_labels(test))


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


def _image_data(
    train_pixels: Tensor, train_labels: Tensor, test_pixels: Tensor, test_labels: Tensor
) -> ImageData:
    # integer sums are exact, whatever the number of threads
    count = train_pixels.numel()
    total = int(train_pixels.sum(dtype=torch.int64))
    parts = torch.split(train_pixels, 4096)
    squares = sum([int(part.long().square().sum()) for part in parts])
    mean = total / count
    return ImageData(
        train_pixels,
        train_labels,
        test_pixels,
        test_labels,
        num_classes=int(train_labels.max()) + 1,
        mean=mean,
        deviation=(squares / count - mean**2) ** 0.5,
    )
