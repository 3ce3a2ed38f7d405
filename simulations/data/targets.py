"""A data set's targets, as its task has them."""

from collections.abc import Callable

import torch
from torch import Tensor

from fedcurv.likelihoods import IGNORED
from fedcurv.simulations.parts.tasks import AUTO, CLASSIFICATION, TASKS

_OTHERS = ", ".join(f"task={name}" for name in TASKS if name != CLASSIFICATION.name)


def read_targets(targets: Tensor, number: int, task: str, classes: int | None, what: str) -> Tensor:
    """Return targets in the type and the shape that a task has them in.

    Args:
        targets: as they came.
        number: of samples.
        task: its name, or ``auto``, which takes classes only.
        classes: how many names there are; None where there are none.
        what: they are, for messages.

    Returns:
        for classification int64 (N,); per position int64 (N, d1, ...); for regression float32
        (N, D), for binary (N, 1) and for multilabel (N, L), of 0 and 1.

    Raises:
        ValueError: naming what was expected and what came.
    """
    if targets.is_complex():
        raise ValueError(f"{what}: expected real numbers, got {targets.dtype}")
    hint = f"; other targets need a task by name: {_OTHERS}" if task == AUTO else ""
    reader = _READERS[CLASSIFICATION.name if task == AUTO else task]
    return reader(targets, number, classes, what, hint)


def _classes(targets: Tensor, number: int, classes: int | None, what: str, hint: str) -> Tensor:
    if targets.shape != (number,):
        raise ValueError(
            f"{what}: expected a class for each of {number} samples, shape ({number},), got "
            f"{tuple(targets.shape)}{hint if len(targets) == number else ''}"
        )
    _require_integers(targets, what, hint)
    targets = targets.long()
    _require_range(targets, classes, what)
    return targets


def _positions(targets: Tensor, number: int, classes: int | None, what: str, hint: str) -> Tensor:
    if targets.ndim < 2 or len(targets) != number:
        raise ValueError(
            f"{what}: expected a class for each position of {number} samples, shape "
            f"({number}, d1, ...), got {tuple(targets.shape)}"
        )
    _require_integers(targets, what, hint)
    targets = targets.long()
    known = targets[targets != IGNORED]
    if not known.numel():
        raise ValueError(
            f"{what}: expected classes, got none, or {IGNORED} everywhere, which does not count"
        )
    _require_range(known, classes, what)
    return targets


def _numbers(targets: Tensor, number: int, classes: int | None, what: str, hint: str) -> Tensor:
    if classes is not None:
        raise ValueError(f"{what}: expected no classes for task=regression, got names of {classes}")
    if targets.dtype == torch.bool:
        raise ValueError(f"{what}: expected numbers, got {targets.dtype}; use task=binary")
    targets = _columns(targets, number, what, "one or more numbers").float()
    if not targets.isfinite().all():
        raise ValueError(f"{what}: expected finite numbers, got NaN, inf or too large ones")
    return targets


def _one_label(targets: Tensor, number: int, classes: int | None, what: str, hint: str) -> Tensor:
    if classes not in (None, 2):
        raise ValueError(f"{what}: expected two classes for task=binary, got names of {classes}")
    return _zeros_and_ones(targets, number, 1, what)


def _labels(targets: Tensor, number: int, classes: int | None, what: str, hint: str) -> Tensor:
    if targets.ndim != 2:
        raise ValueError(
            f"{what}: expected 0 or 1 for each label of {number} samples, shape ({number}, L), got "
            f"{tuple(targets.shape)}"
        )
    return _zeros_and_ones(targets, number, classes, what)


def _zeros_and_ones(targets: Tensor, number: int, columns: int | None, what: str) -> Tensor:
    shape = tuple(targets.shape)
    targets = _columns(targets, number, what, "0 or 1")
    if columns not in (None, targets.shape[1]):
        raise ValueError(f"{what}: expected 0 or 1 for each of {columns} labels, got {shape}")
    if not ((targets == 0) | (targets == 1)).all():
        raise ValueError(
            f"{what}: expected 0 or 1, got numbers from {float(targets.min()):g} to "
            f"{float(targets.max()):g}"
        )
    return targets.float()


def _columns(targets: Tensor, number: int, what: str, wanted: str) -> Tensor:
    """Return targets (N,) or (N, D) as (N, D)."""
    if targets.ndim not in (1, 2) or len(targets) != number or not targets.numel():
        raise ValueError(
            f"{what}: expected {wanted} for each of {number} samples, got {tuple(targets.shape)}"
        )
    return targets.reshape(number, -1)


def _require_integers(targets: Tensor, what: str, hint: str) -> None:
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(f"{what}: expected integer classes from 0 on, got {targets.dtype}{hint}")


def _require_range(targets: Tensor, classes: int | None, what: str) -> None:
    limit = "from 0 on" if classes is None else f"from 0 to {classes - 1}, as classes has them"
    if int(targets.min()) < 0 or (classes is not None and int(targets.max()) >= classes):
        raise ValueError(
            f"{what}: expected classes {limit}, got {int(targets.min())} to {int(targets.max())}"
        )


_READERS: dict[str, Callable[[Tensor, int, int | None, str, str], Tensor]] = {
    "classification": _classes,
    "regression": _numbers,
    "binary": _one_label,
    "multilabel": _labels,
    "per_position": _positions,
}
