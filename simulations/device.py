"""A device's own data, found where the device itself says: a folder, a CSV file, or a function.

What travels is only what all devices must agree on: shape, classes in their order, standardisation.
"""

import csv
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Samples = tuple[Tensor, Tensor]

# what a node's configuration may name
SOURCES = ("data-folder", "data-csv", "data-function")


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
        shape, classes = tuple(self.shape), tuple(str(name) for name in self.classes)
        if len(shape) != 3 or not all(isinstance(n, int) and n >= 1 for n in shape):
            raise ValueError(
                f"data.shape must be channels, height and width, such as [1, 28, 28], got "
                f"{list(shape)}; for rows of n numbers use [1, 1, n]"
            )
        if not classes or len(set(classes)) < len(classes):
            raise ValueError(
                f"data.classes must list every class's name once, got {list(classes)}; the "
                "order must be the same on all devices, so it is not taken from their folders"
            )
        if not 0 < self.deviation < math.inf or not math.isfinite(self.mean):
            raise ValueError(
                f"data.mean must be finite and data.deviation > 0, got {self.mean!r} and "
                f"{self.deviation!r}"
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "classes", classes)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def index_by_class(self) -> dict[str, int]:
        """Every class's number, by its name."""
        return {name: index for index, name in enumerate(self.classes)}

    def standardised(self, numbers: Tensor) -> Tensor:
        """Return numbers less the mean, over the deviation."""
        return (numbers - self.mean) / self.deviation


def load_device(source: Mapping[str, Any], data: DeviceData) -> tuple[Samples, Samples | None]:
    """Return the samples for training, and those for testing if there are any.

    Args:
        source: has one of ``data-folder`` (``train/CLASS/*.png`` and perhaps ``test/CLASS/*.png``,
            of any format that torchvision reads), ``data-csv`` (a header, a row for each sample;
            perhaps ``data-test-csv`` beside it) and ``data-function`` (``module:function``, which
            is called with ``"train"`` and ``"test"`` and with ``source``, and returns inputs of
            shape (N, channels, height, width) and labels of shape (N,), or None).
        data: what all devices agree on.

    Raises:
        ValueError: naming what was expected and what is there.
        FileNotFoundError: if the folder or file is missing.
        ImportError: if the module cannot be imported.
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
        ImportError: if the module cannot be imported.
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
    return _pictures(root / part, data)


def _pictures(folder: Path, data: DeviceData) -> Samples | None:
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    if not folder.is_dir():
        return None
    unknown = sorted(f.name for f in folder.iterdir() if f.is_dir() and f.name not in data.classes)
    if unknown:
        raise ValueError(
            f"{folder}: expected folders named after data.classes ({', '.join(data.classes)}), "
            f"got {', '.join(unknown[:5])}"
        )
    found = make_dataset(
        str(folder), data.index_by_class, extensions=IMG_EXTENSIONS, allow_empty=True
    )
    if not found:
        return None
    pictures = [_picture(Path(file), data.shape) for file, _ in found]
    return data.standardised(torch.stack(pictures)), torch.tensor([label for _, label in found])


def _picture(file: Path, shape: tuple[int, int, int]) -> Tensor:
    """Return a picture of that shape, with pixels in [0, 1]."""
    from PIL import Image
    from torchvision.transforms.functional import to_tensor

    channels, height, width = shape
    if channels not in (1, 3):
        raise ValueError(f"data.shape: expected 1 or 3 channels for pictures, got {channels}")
    try:
        with Image.open(file) as image:
            converted = image.convert("L" if channels == 1 else "RGB")
    except OSError as error:
        raise ValueError(f"{file} cannot be read as a picture: {error}") from error
    pixels: Tensor = to_tensor(converted.resize((width, height), Image.Resampling.BILINEAR))
    return pixels


def _from_csv(source: Mapping[str, Any], part: str, data: DeviceData) -> Samples | None:
    file = source.get("data-csv" if part == "train" else "data-test-csv")
    return _rows(Path(str(file)), data) if file else None


def _rows(file: Path, data: DeviceData) -> Samples | None:
    numbers, labels = [], []
    indices = data.index_by_class
    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines, restval=None)
        columns = [name for name in reader.fieldnames or () if name != data.label]
        if data.label not in (reader.fieldnames or ()) or len(columns) != math.prod(data.shape):
            raise ValueError(
                f"{file}: expected a header with a column {data.label!r} and "
                f"{math.prod(data.shape)} others (data.shape), got {len(columns)} others"
            )
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if row[data.label] not in indices:
                raise ValueError(
                    f"{where}: expected one of data.classes ({', '.join(data.classes)}), got "
                    f"{row[data.label]!r}"
                )
            labels.append(indices[row[data.label]])
            numbers.append([_finite(row[name], f"{where}, {name}") for name in columns])
    if not labels:
        return None
    inputs = torch.tensor(numbers, dtype=torch.float32).reshape(-1, *data.shape)
    return data.standardised(inputs), torch.tensor(labels)


def _finite(text: str | None, where: str) -> float:
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: expected a finite number, got {text!r}")
    return number


def _from_function(source: Mapping[str, Any], part: str, data: DeviceData) -> Samples | None:
    name = str(source["data-function"])
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"data-function must be module:function, got {name!r}")
    load: Callable[[str, Mapping[str, Any]], Any] | None
    load = getattr(importlib.import_module(module), function, None)
    if load is None:
        raise ValueError(f"data-function={name}: {module} has no function {function!r}")
    return _checked(load(part, source), f"{name} for {part!r}", data)


def _checked(samples: Any, what: str, data: DeviceData) -> Samples | None:
    if samples is None:
        return None
    inputs, labels = samples
    if inputs.shape[1:] != data.shape or labels.shape != inputs.shape[:1]:
        raise ValueError(
            f"{what}: expected inputs (N, {', '.join(map(str, data.shape))}) and labels (N,), got "
            f"{tuple(inputs.shape)} and {tuple(labels.shape)}"
        )
    if not inputs.isfinite().all():
        raise ValueError(f"{what}: expected finite inputs, got NaN or inf")
    if labels.is_floating_point() or (
        len(labels) and not 0 <= labels.min() <= labels.max() < data.num_classes
    ):
        raise ValueError(f"{what}: expected integer labels from 0 to {data.num_classes - 1}")
    return (inputs.float(), labels.long()) if len(labels) else None


# from where the data are, "train" or "test", and what all devices agree on
_LOADERS: dict[str, Callable[[Mapping[str, Any], str, DeviceData], Samples | None]] = {
    "data-folder": _from_folder,
    "data-csv": _from_csv,
    "data-function": _from_function,
}
