"""A user's own data set, from a file of arrays or from what a function returns."""

import difflib
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from fedcurv.parameters import listed
from fedcurv.simulations.console.telling import tell_once
from fedcurv.simulations.data.samples import DataSet, mean_and_deviation
from fedcurv.simulations.data.targets import read_targets
from fedcurv.simulations.parts.models import seems_channels_last
from fedcurv.simulations.parts.tasks import AUTO, CLASSIFICATION, Task, task_named

_PARTS = ("train_inputs", "train_targets", "test_inputs", "test_targets")
_NAMES = (*_PARTS, "train_groups", "classes")
_GROUPS = ("group", "groups")
# begins the names of other labels of the training samples, which people gave them
_HUMAN = "human_"
# of classes without names, unless there are more samples: a model has a row of weights for each
_MOST_CLASSES = 1_000_000


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz file by name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no arrays.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data.file={path}: there is no such file")
    try:
        with path.open("rb") as opened:
            if not zipfile.is_zipfile(opened):  # numpy would advise to load it as a pickled object
                raise ValueError("it is another kind of file")
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            arrays = {name: file[name] for name in names if name in _NAMES or _is_human(name)}
    except Exception as error:  # whatever a damaged file makes of it
        raise ValueError(
            f"data.file={path}: expected arrays as numpy.savez writes them, without pickled "
            f"objects ({error})"
        ) from error
    _look_at_names(names, _NAMES, f"data.file={path}")
    return arrays


def data_set_of(
    arrays: Any,
    source: str,
    *,
    standardise: bool = False,
    channels_last: bool = False,
    task: str = AUTO,
) -> DataSet:
    """Return a data set of arrays.

    Args:
        arrays: a mapping of ``train_inputs``, ``train_targets``, ``test_inputs`` and
            ``test_targets``, arrays or tensors; or of ``train`` and ``test``, torch Datasets of
            pairs. Targets are what the task has; see ``read_targets``. Optionally
            ``train_groups``, shape (N,), who each training sample is of, ``classes``, the names of
            all classes, and ``human_NAME``, shape (N,), what people took the training samples for.
        source: what it came from, for messages.
        standardise: turn inputs into float32 less their mean, over their standard deviation.
        channels_last: inputs are pictures with the channels as their last axis.
        task: its name; ``auto`` for classification, if targets are classes.

    Raises:
        ValueError: naming what was expected and what came.
    """
    if not isinstance(arrays, Mapping):
        raise ValueError(f"{source}: expected a mapping of arrays, got {type(arrays).__name__}")
    known = {**arrays}
    _look_at_names(known, (*_NAMES, "train", "test"), source)
    for part in ("train", "test"):
        if isinstance(known.get(part), Dataset):
            known |= _stacked(known.pop(part), part, source, task)
    if missing := [name for name in _PARTS if name not in known]:
        raise ValueError(
            f"{source}: expected {', '.join(_PARTS)}, got "
            f"{', '.join(map(str, arrays)) or 'nothing'}, without {', '.join(missing)}"
        )
    inputs = {part: _inputs(known, part, source, channels_last) for part in ("train", "test")}
    if inputs["train"].shape[1:] != inputs["test"].shape[1:]:
        raise ValueError(
            f"{source}: expected inputs of one shape, got {tuple(inputs['train'].shape)} for "
            f"training and {tuple(inputs['test'].shape)} for testing"
        )
    names = known.get("classes")
    if names is not None and np.ndim(names) != 1:
        raise ValueError(f"{source}: classes: expected the names of all classes, got {names!r:.80}")
    highest = None if names is None else len(names)
    targets = {}
    for part in ("train", "test"):
        what = f"{source}: {part}_targets"
        given = _tensor(known[f"{part}_targets"], what)
        targets[part] = read_targets(given, len(inputs[part]), task, highest, what)
    if targets["train"].shape[1:] != targets["test"].shape[1:]:
        raise ValueError(
            f"{source}: expected targets of one shape, got {tuple(targets['train'].shape)} for "
            f"training and {tuple(targets['test'].shape)} for testing"
        )
    learned = CLASSIFICATION if task == AUTO else task_named(task)
    are_tokens = not (inputs["train"].is_floating_point() or standardise)
    if learned is CLASSIFICATION and names is None and not are_tokens:
        _tell_of_idle_output(targets.values(), source)
    if learned is CLASSIFICATION and not are_tokens:
        _tell_of_untaught_classes(targets["train"], targets["test"], source)
    num_classes = _num_classes(learned, targets.values(), highest, source)
    mean, deviation = mean_and_deviation(inputs["train"]) if standardise else (None, 1.0)
    return DataSet(
        inputs["train"],
        targets["train"],
        inputs["test"],
        targets["test"],
        num_classes=num_classes,
        mean=mean,
        deviation=deviation,
        train_groups=_groups(known.get("train_groups"), len(inputs["train"]), source),
        task=learned,
        human_labels=_human_labels(known, learned, len(inputs["train"]), num_classes, source),
    )


def _is_human(name: object) -> bool:
    return isinstance(name, str) and name.startswith(_HUMAN) and name != _HUMAN


def _human_labels(
    known: Mapping[Any, Any], task: Task, number: int, num_classes: int, source: str
) -> dict[str, Tensor]:
    labels = {}
    for name in filter(_is_human, known):
        what = f"{source}: {name}"
        if task is not CLASSIFICATION:
            raise ValueError(f"{what}: there are such labels for classes only, not for {task.name}")
        given = _tensor(known[name], what)
        labels[name.removeprefix(_HUMAN)] = read_targets(given, number, AUTO, num_classes, what)
    return labels


def _num_classes(task: Task, targets: Collection[Tensor], highest: int | None, source: str) -> int:
    if task.like_outputs:
        return 2 if task.has_labels else 0
    if highest is not None:
        if highest < 2:
            raise ValueError(f"{source}: expected two classes at least, got names of {highest}")
        return highest
    largest = max(int(one.max()) for one in targets)
    if largest < 1:
        raise ValueError(f"{source}: expected two classes at least, got none but class 0")
    if largest >= max(_MOST_CLASSES, sum(one.numel() for one in targets)):
        raise ValueError(
            f"{source}: expected classes numbered from 0 on without large gaps, got {largest}; "
            "number them anew, or give the names of all as classes"
        )
    return 1 + largest


def _look_at_names(names: Iterable[object], known: Sequence[str], source: str) -> None:
    """Raise a ValueError for a name that is nearly one of ours; say that others are not read."""
    others = [str(name) for name in names if name not in known and not _is_human(name)]
    for name in others:
        near = difflib.get_close_matches(name, _NAMES, n=1, cutoff=0.9)
        if near or name in _GROUPS:
            raise ValueError(f"{source}: expected {(*near, 'train_groups')[0]}, got {name}")
    if others:
        tell_once(
            f"{source}: {listed(others)}: not used; what is known: {', '.join(known)}, {_HUMAN}NAME"
        )


def _tell_of_idle_output(targets: Collection[Tensor], source: str) -> None:
    lowest = min(int(one.min()) for one in targets)
    if lowest > 0:
        tell_once(
            f"{source}: classes are numbered from {lowest} on, so that the model's outputs before "
            "it are idle; number them from 0 on, or give the names of all as classes"
        )


def _tell_of_untaught_classes(train: Tensor, test: Tensor, source: str) -> None:
    untaught = [str(label) for label in sorted(set(test.tolist()) - set(train.tolist()))]
    if untaught:
        tell_once(
            f"{source}: no training sample has the class {listed(untaught)} of the test set; are "
            "both numbered alike?"
        )


def _stacked(data: Any, part: str, source: str, task: str) -> dict[str, Tensor]:
    try:
        pairs = [data[i] for i in range(len(data))]
        inputs = torch.stack([torch.as_tensor(one) for one, _ in pairs])
        targets = torch.stack([torch.as_tensor(target) for _, target in pairs])
        if task in (AUTO, CLASSIFICATION.name) and targets.shape == (len(pairs), 1):
            targets = targets.squeeze(1)  # a class in an array of its own
    except Exception as error:  # whatever the data set's code raises
        raise ValueError(
            f"{source}: {part} must be a data set of pairs, an input and a target, such as a "
            f"class, each of one shape ({type(error).__name__}: {error})"
        ) from error
    return {f"{part}_inputs": inputs, f"{part}_targets": targets}


def _tensor(value: Any, what: str) -> Tensor:
    try:
        tensor = torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: expected an array of numbers ({error})") from error
    if tensor.layout is not torch.strided:
        raise ValueError(f"{what}: expected a dense array, got one of layout {tensor.layout}")
    return tensor


def _inputs(known: Mapping[str, Any], part: str, source: str, channels_last: bool) -> Tensor:
    what = f"{source}: {part}_inputs"
    inputs = _tensor(known[f"{part}_inputs"], what)
    if inputs.ndim < 2 or inputs.shape[0] < 1 or inputs.numel() < 1:
        raise ValueError(
            f"{what}: expected shape (N, ...) and a sample at least, got {tuple(inputs.shape)}"
        )
    if inputs.is_complex():
        raise ValueError(f"{what}: expected real numbers, got {inputs.dtype}")
    if inputs.is_floating_point():
        inputs = inputs.float()
        if not inputs.isfinite().all():
            raise ValueError(f"{what}: expected finite numbers, got NaN, inf or too large ones")
    if channels_last:
        if inputs.ndim != 4:
            raise ValueError(
                f"{what}: data.channels_last is for pictures (N, height, width, channels), got "
                f"{tuple(inputs.shape)}"
            )
        if seems_channels_last(tuple(reversed(inputs.shape[1:]))):
            raise ValueError(
                f"{what}: data.channels_last=true is for pictures (N, height, width, channels), "
                f"got {tuple(inputs.shape)}, whose channels seem to be the first axis; leave it out"
            )
        inputs = inputs.permute(0, 3, 1, 2).contiguous()
    return inputs


def _groups(value: Any, number: int, source: str) -> NDArray[np.int64] | None:
    if value is None:
        return None
    groups = np.asarray(value)
    if groups.dtype.kind == "f" and np.isnan(groups).any():
        raise ValueError(f"{source}: train_groups: expected a group for each sample, got NaN")
    if groups.dtype.kind == "O":  # names beside something else
        raise ValueError(f"{source}: train_groups: expected names or numbers, got objects of both")
    if groups.shape != (number,):
        raise ValueError(
            f"{source}: train_groups: expected a group for each of {number} training samples, got "
            f"shape {groups.shape}"
        )
    _, numbers = np.unique(groups, return_inverse=True)
    return numbers.astype(np.int64)
