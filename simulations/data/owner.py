"""A device's own data, found where the device itself says: a folder, a CSV file, or a function.

What travels is only what all devices must agree on: shape, classes in their order, standardisation.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedcurv.simulations.data.pictures import read_pictures
from fedcurv.simulations.data.rows import read_rows
from fedcurv.simulations.own_calls import SAME, call_own
from fedcurv.simulations.parts.tasks import CLASSIFICATION, Task

Samples = tuple[Tensor, Tensor]

# what a node's configuration may name
SOURCES = ("data-folder", "data-csv", "data-function")

# of one input: no message makes a device bring its pictures to any size
_MOST_NUMBERS = 2**24
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class DeviceData:
    """What all devices of a federation agree on.

    Attributes:
        shape: channels, height and width of an input; of a CSV file's rows, as many numbers.
        classes: names in the order of the model's outputs.
        mean: taken off every number; pictures' pixels lie in [0, 1].
        deviation: every number is divided by it, > 0.
        label: a CSV file's column with the class.

    Raises:
        ValueError: if one cannot be meant.
    """

    shape: tuple[int, int, int]
    classes: Sequence[str]
    mean: float = 0.0
    deviation: float = 1.0
    label: str = "label"

    def __post_init__(self) -> None:
        """Check the values, and have tuples of the right types."""
        shape = tuple(self.shape) if isinstance(self.shape, list | tuple) else (self.shape,)
        if len(shape) != 3 or not all(type(n) is int and n >= 1 for n in shape):
            raise ValueError(
                f"data.shape must be channels, height and width, such as [1, 28, 28], got "
                f"{list(shape)}; for rows of n numbers use [1, 1, n]"
            )
        if math.prod(shape) > _MOST_NUMBERS:
            raise ValueError(
                f"data.shape must have at most {_MOST_NUMBERS:,} numbers, got {list(shape)}"
            )
        is_list = isinstance(self.classes, list | tuple)
        if not is_list or not all(type(name) in (str, int) for name in self.classes):
            raise ValueError(f"data.classes must be a list of names, got {self.classes!r}")
        classes = tuple(str(name) for name in self.classes)
        if not classes or len(set(classes)) < len(classes):
            raise ValueError(
                f"data.classes must list every class's name once, got {list(classes)}; the "
                "order must be the same on all devices, so it is not taken from their folders"
            )
        if not all(type(n) in (int, float) for n in (self.mean, self.deviation)) or not (
            0 < self.deviation < math.inf and abs(self.mean) < math.inf
        ):
            raise ValueError(
                f"data.mean must be finite and data.deviation > 0, got {self.mean!r} and "
                f"{self.deviation!r}"
            )
        if not isinstance(self.label, str):
            raise ValueError(f"data.label must be a column's name, got {self.label!r}")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "classes", classes)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def num_outputs(self) -> int:
        """How many numbers a model gives for an input: a logit for each class."""
        return self.num_classes

    @property
    def task(self) -> Task:
        """What is to be learned."""
        return CLASSIFICATION

    def standardised(self, numbers: Tensor) -> Tensor:
        """Return numbers less the mean, over the deviation.

        Raises:
            ValueError: if that is more than the numbers' type holds.
        """
        standardised = (numbers - float(self.mean)) / float(self.deviation)
        if not standardised.isfinite().all():
            raise ValueError(
                f"data.mean={self.mean:g} and data.deviation={self.deviation:g} bring the inputs, "
                f"from {numbers.min():g} to {numbers.max():g}, beyond what float32 holds"
            )
        return standardised


def load_device(source: Mapping[str, Any], data: DeviceData) -> tuple[Samples, Samples | None]:
    """Return the samples for training, and those for testing if there are any.

    Args:
        source: has one of ``data-folder`` (``train/CLASS/*.png`` and perhaps ``test/CLASS/*.png``,
            of the formats BMP, JPEG, PNG, PPM, TIFF and WEBP), ``data-csv`` (a header, a row for
            each sample; perhaps ``data-test-csv`` beside it) and ``data-function``
            (``module:function``, which is called with ``"train"`` and ``"test"`` and with
            ``source``, and returns inputs of shape (N, channels, height, width) and labels of
            shape (N,), or None).
        data: what all devices agree on.

    Raises:
        ValueError: naming what was expected and what is there.
        FileNotFoundError: if the folder or file is missing.
    """
    named = [key for key in SOURCES if source.get(key)]
    if len(named) != 1:
        raise ValueError(
            f"expected one of {', '.join(SOURCES)} in the node's configuration, got "
            f"{', '.join(named) or 'none'}; start the SuperNode with, for example, "
            "--node-config \"data-folder='/absolute/folder'\""
        )
    (key,) = named
    train, test = (_LOADERS[key](source, part, data) for part in ("train", "test"))
    if train is None:
        raise ValueError(f"{key}={source[key]}: expected samples for training, got none")
    return train, test


def load_test_set(source: Mapping[str, Any], data: DeviceData) -> Samples | None:
    """Return the server's own test set, or None if it names none.

    Args:
        source: one of ``folder`` (``test/CLASS/*.png`` in it), ``csv`` and ``function``, as for
            a device; the others None.
        data: what all devices agree on.

    Raises:
        ValueError: naming what was expected and what is there.
        FileNotFoundError: if the file is missing.
        ImportError: if pictures need Pillow.
    """
    named = {kind: place for kind, place in source.items() if place}
    if not named:
        return None
    if len(named) > 1:
        raise ValueError(f"data.test: expected one of folder, csv, function, got {list(named)}")
    ((kind, place),) = named.items()
    as_of_device = {"data-test-csv" if kind == "csv" else f"data-{kind}": place}
    samples = _LOADERS[f"data-{kind}"](as_of_device, "test", data)
    if samples is None:
        raise ValueError(f"data.test.{kind}={place}: expected samples for testing, got none")
    return samples


def _from_folder(source: Mapping[str, Any], part: str, data: DeviceData) -> Samples | None:
    root = Path(str(source["data-folder"]))
    if part == "train" and not (root / part).is_dir():
        raise FileNotFoundError(f"data-folder={root}: expected a folder 'train' in it")
    found = read_pictures(root / part, data.classes, data.shape)
    return None if found is None else (data.standardised(found[0]), found[1])


def _from_csv(source: Mapping[str, Any], part: str, data: DeviceData) -> Samples | None:
    file = source.get("data-csv" if part == "train" else "data-test-csv")
    if not file:
        return None
    found = read_rows(Path(str(file)), data.label, data.classes, math.prod(data.shape))
    if found is None:
        return None
    return data.standardised(found[0].reshape(-1, *data.shape)), found[1]


def _from_function(source: Mapping[str, Any], part: str, data: DeviceData) -> Samples | None:
    name = str(source["data-function"])
    samples = call_own("data-function", name, SAME, part, source)
    return _checked(samples, f"{name} for {part!r}", data)


def _checked(samples: Any, what: str, data: DeviceData) -> Samples | None:
    if samples is None:
        return None
    is_pair = isinstance(samples, tuple | list) and len(samples) == 2
    if not is_pair or not all(isinstance(part, Tensor) for part in samples):
        raise ValueError(
            f"{what}: expected a pair of tensors, inputs and labels, or None, got {_kind(samples)}"
        )
    inputs, labels = samples
    if inputs.shape[1:] != data.shape or labels.shape != inputs.shape[:1]:
        raise ValueError(
            f"{what}: expected inputs (N, {', '.join(map(str, data.shape))}) and labels (N,), got "
            f"{tuple(inputs.shape)} and {tuple(labels.shape)}"
        )
    if inputs.is_complex() or labels.dtype not in _INTEGERS:
        raise ValueError(
            f"{what}: expected real inputs and integer labels from 0 to {data.num_classes - 1}, "
            f"got {inputs.dtype} and {labels.dtype}"
        )
    inputs, labels = inputs.float(), labels.long()
    if not inputs.isfinite().all():
        raise ValueError(f"{what}: expected finite inputs, got NaN, inf or more than float32 holds")
    wrong = ((labels < 0) | (labels >= data.num_classes)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"{what}: expected integer labels from 0 to {data.num_classes - 1}, for as many "
            f"data.classes, got {int(labels[wrong[0]])} for sample {wrong[0]} ({len(wrong)} such)"
        )
    return (inputs, labels) if len(labels) else None


def _kind(samples: Any) -> str:
    if isinstance(samples, tuple | list):
        return (
            f"{type(samples).__name__} of {', '.join(type(part).__name__ for part in samples[:4])}"
        )
    return type(samples).__name__


# from where the data are, "train" or "test", and what all devices agree on
_LOADERS: dict[str, Callable[[Mapping[str, Any], str, DeviceData], Samples | None]] = {
    "data-folder": _from_folder,
    "data-csv": _from_csv,
    "data-function": _from_function,
}
