"""Tasks, each with its targets, loss, likelihood and metric; everything else follows from here."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedcurv.clients.scores import Score, sums_of_classes, sums_of_labels, sums_of_numbers
from fedcurv.likelihoods import Likelihood
from fedcurv.simulations.parts.metrics import ACCURACY, R2, Metric, own_metric

AUTO = "auto"


@dataclass(frozen=True)
class Task:
    """What is to be learned, and how it is judged.

    Attributes:
        name: in a configuration.
        outputs: what a model gives, in words, with {} for their shape.
        like_outputs: whether targets are numbers in the shape of the outputs, not classes.
        has_labels: whether each sample is of one class, by which partitions can deal.
        loss: that ``client.loss=auto`` stands for.
        likelihood: for the Fisher information.
        metric: that it is judged by unless the user names a function.
        sums: of a batch's outputs and targets, see ``fedcurv.clients.training.evaluate``.
        of_guessing: from targets and the number of outputs, the loss of who has learned nothing.
    """

    name: str
    outputs: str
    like_outputs: bool
    has_labels: bool
    loss: str
    likelihood: Likelihood
    metric: Metric
    sums: Score
    of_guessing: Callable[[Tensor, int], float]

    def shapes(
        self, number: int, outputs: int, positions: tuple[int, ...]
    ) -> tuple[tuple[int, ...], ...]:
        """Return the shapes that a model's outputs may have.

        Args:
            number: of samples.
            outputs: see ``DataSet.num_outputs``.
            positions: of a sample's targets, their shape.
        """
        if self.like_outputs or not positions:
            return ((number, outputs),)
        return tuple(dict.fromkeys(((number, outputs, *positions), (number, *positions, outputs))))

    def score(self, loss: float, share: float, spread: float) -> float:
        """Return the task's metric.

        Args:
            loss: mean over the test set.
            share: of the predictions that are right.
            spread: of the targets, see :func:`spread_of`.
        """
        return 1.0 - loss / spread if self.metric is R2 else share


def spread_of(targets: Tensor) -> float:
    """Return the mean squared distance of numbers (N, ...) from their mean over the samples."""
    targets = targets.double()
    return float((targets - targets.mean(0)).square().mean())


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "classification",
            outputs="logits of shape {}, one for each class",
            like_outputs=False,
            has_labels=True,
            loss="cross_entropy",
            likelihood="categorical",
            metric=ACCURACY,
            sums=sums_of_classes,
            of_guessing=lambda targets, number: math.log(number),
        ),
        Task(
            "regression",
            outputs="numbers of shape {}, one for each target",
            like_outputs=True,
            has_labels=False,
            loss="squared_error",
            likelihood="gaussian",
            metric=R2,
            sums=sums_of_numbers,
            of_guessing=lambda targets, number: float(targets.double().square().mean()),
        ),
        Task(
            "binary",
            outputs="logits of shape {}, one for each sample",
            like_outputs=True,
            has_labels=True,
            loss="binary_cross_entropy",
            likelihood="bernoulli",
            metric=ACCURACY,
            sums=sums_of_labels,
            of_guessing=lambda targets, number: math.log(2),
        ),
        Task(
            "multilabel",
            outputs="logits of shape {}, one for each label",
            like_outputs=True,
            has_labels=False,
            loss="binary_cross_entropy",
            likelihood="multilabel",
            metric=ACCURACY,
            sums=sums_of_labels,
            of_guessing=lambda targets, number: math.log(2),
        ),
        Task(
            "per_position",
            outputs="logits of shape {}, one for each class at each position",
            like_outputs=False,
            has_labels=False,
            loss="cross_entropy",
            likelihood="categorical",
            metric=ACCURACY,
            sums=sums_of_classes,
            of_guessing=lambda targets, number: math.log(number),
        ),
    )
}
CLASSIFICATION = TASKS["classification"]


def task_named(name: str) -> Task:
    """Return a task.

    Raises:
        ValueError: for a name that none has.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"task must be one of {', '.join((AUTO, *TASKS))}, got {name!r}")
    return TASKS[name]


def metric_of(config: Mapping[str, Any]) -> Metric:
    """Return what a resolved configuration judges by.

    Raises:
        ValueError: if the user's own cannot be meant.
    """
    name = config.get("task", AUTO)  # nothing, in what was written before there were tasks
    task = CLASSIFICATION if name == AUTO else task_named(name)
    return own_metric(config.get("metric")) or task.metric
