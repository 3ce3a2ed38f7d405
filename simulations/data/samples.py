"""A data set in memory: what partitions deal out, clients train on and servers evaluate on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcurv.simulations.parts.tasks import CLASSIFICATION, Task

# decides which samples are held out for validation, and which of the test samples are taken
_SPLIT_SEED = 20_240_229


@dataclass(frozen=True)
class DataSet:
    """Raw inputs in memory; ``train_samples`` turns a selection into what a model takes.

    Attributes:
        train_inputs: shape (N, ...), of any real type.
        train_targets: as the task has them; classes 0..num_classes-1 of shape (N,), if it is
            classification.
        test_inputs: as ``train_inputs``.
        test_targets: as ``train_targets``.
        num_classes: number of classes; 0 where targets are no classes.
        mean: of the training inputs, which are standardised with it; None leaves inputs as they
            are: floating-point numbers as float32, integers (such as tokens) as int64.
        deviation: standard deviation of the training inputs.
        train_groups: shape (N,), who each training sample is of; None where nobody says.
        task: what is to be learned.
        human_labels: other labels of the training samples, which people gave them, by name; each of
            shape (N,).
    """

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    num_classes: int
    mean: float | None = None
    deviation: float = 1.0
    train_groups: NDArray[np.int64] | None = None
    task: Task = CLASSIFICATION
    human_labels: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input; of a picture channels, height and width."""
        return tuple(self.train_inputs.shape[1:])

    @property
    def num_outputs(self) -> int:
        """How many numbers a model gives for an input, or for each of its positions."""
        return self.train_targets.shape[1] if self.task.like_outputs else self.num_classes

    @property
    def labels(self) -> NDArray[Any]:
        """The training labels, for partitions; the targets as they are where there are none."""
        return self._labels_of(self.train_targets)

    def _labels_of(self, targets: Tensor) -> NDArray[Any]:
        if self.task.has_labels and targets.ndim == 2:  # zeros and ones
            targets = targets[:, 0].long()
        labels: NDArray[Any] = targets.numpy()
        return labels

    def some(self, number: int, *, seed: int) -> "DataSet":
        """Return the same data set with so many of its training samples, chosen at random.

        Raises:
            ValueError: if there are fewer, or ``number`` < 1.
        """
        if not isinstance(number, int) or not 1 <= number <= len(self.train_targets):
            raise ValueError(
                f"data.train_samples must be an integer from 1 to {len(self.train_targets)}, got "
                f"{number!r}"
            )
        generator = torch.Generator().manual_seed(seed)
        return self._with(torch.randperm(len(self.train_targets), generator=generator)[:number])

    def with_some_tests(self, number: int) -> "DataSet":
        """Return the same data set with so many of its test samples, the same ones for every seed.

        Of each class there are as many as its share of all, to one sample; of targets that are no
        classes they are chosen at random.

        Raises:
            ValueError: if there are fewer, or ``number`` < 1.
        """
        total = len(self.test_targets)
        if not isinstance(number, int) or not 1 <= number <= total:
            raise ValueError(
                f"data.test_samples must be an integer from 1 to {total}, got {number!r}"
            )
        order = np.random.default_rng(_SPLIT_SEED).permutation(total)
        if self.task.has_labels:
            labels = self._labels_of(self.test_targets)
            order = order[np.argsort(labels[order], kind="stable")]
        # at equal distances in an order by class
        places = (2 * np.arange(number) + 1) * total // (2 * number)
        chosen = torch.from_numpy(np.sort(order[places]))
        return replace(
            self, test_inputs=self.test_inputs[chosen], test_targets=self.test_targets[chosen]
        )

    def split(self, number: int) -> tuple["DataSet", "DataSet"]:
        """Return this data set without so many of its training samples, and with these alone.

        They are chosen at random, the same ones for every seed: what was tuned on must never be
        trained on.

        Raises:
            ValueError: if none would be left, or ``number`` < 1.
        """
        if not isinstance(number, int) or not 1 <= number < len(self.train_targets):
            raise ValueError(
                f"data.validation_samples must be an integer from 0 to "
                f"{len(self.train_targets) - 1}, got {number!r}"
            )
        order = torch.randperm(
            len(self.train_targets), generator=torch.Generator().manual_seed(_SPLIT_SEED)
        )
        return self._with(order[number:].sort().values), self._with(order[:number])

    def tested_on(self, inputs: Tensor, targets: Tensor) -> "DataSet":
        """Return the same training samples beside another test set."""
        return replace(self, test_inputs=inputs, test_targets=targets)

    def train_samples(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of some training samples, as a model takes them."""
        chosen = torch.from_numpy(indices)
        return self._prepared(self.train_inputs[chosen]), self.train_targets[chosen]

    def human_labels_of(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return what people took some training samples for, by name."""
        chosen = torch.from_numpy(indices)
        return {name: one[chosen] for name, one in self.human_labels.items()}

    def telling_inputs(self) -> Tensor:
        """Return a few inputs as a model takes them, to try it.

        They are the first two of training, and of integers those with the least and with the
        greatest number in training and in testing: a model may have no place for a token.
        """
        first = self.train_inputs[:2]
        if self.mean is not None or first.is_floating_point():
            return self._prepared(first)
        rows = [first]
        for part in (self.train_inputs, self.test_inputs):
            numbers = part.reshape(len(part), -1).long()
            ends = torch.stack([numbers.amin(1).argmin(), numbers.amax(1).argmax()])
            rows.append(part[ends])
        return self._prepared(torch.cat(rows))

    def test_samples(self) -> tuple[Tensor, Tensor]:
        """Return all test inputs and targets, as a model takes them."""
        return self._prepared(self.test_inputs), self.test_targets

    def _with(self, chosen: Tensor) -> "DataSet":
        groups = self.train_groups
        return replace(
            self,
            train_inputs=self.train_inputs[chosen],
            train_targets=self.train_targets[chosen],
            train_groups=None if groups is None else groups[chosen.numpy()],
            human_labels={name: one[chosen] for name, one in self.human_labels.items()},
        )

    def _prepared(self, inputs: Tensor) -> Tensor:
        if self.mean is not None:
            return (inputs.float() - self.mean) / self.deviation
        return inputs.float() if inputs.is_floating_point() else inputs.long()


def mean_and_deviation(inputs: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation of all numbers, 1 for those that are all equal.

    Sums of integers are exact, whatever the number of threads; others are formed in float64.
    """
    count, parts = inputs.numel(), torch.split(inputs, 4096)
    if inputs.is_floating_point():
        mean = sum(float(part.double().sum()) for part in parts) / count
        variance = sum(float((part.double() - mean).square().sum()) for part in parts) / count
    else:
        mean = int(inputs.sum(dtype=torch.int64)) / count
        squares = sum([int(part.long().square().sum()) for part in parts])
        variance = max(0.0, squares / count - mean**2)
    return mean, variance**0.5 or 1.0
