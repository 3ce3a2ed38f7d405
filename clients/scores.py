"""Scores of a batch by its likelihood: summed losses, and right predictions."""

from collections.abc import Callable

from torch import Tensor, nn

from fedcurv.likelihoods import IGNORED, Likelihood, with_classes_second

# of a batch: the sum of its losses, how many predictions are right, and how many there are
Sums = tuple[Tensor, Tensor, int]
Score = Callable[[Tensor, Tensor], Sums]


def sums_of_classes(logits: Tensor, targets: Tensor) -> Sums:
    """Return the sum of cross-entropies, how many classes are right, and how many there are.

    Args:
        logits: see :func:`known_positions`, where targets have positions.
        targets: (N,), or (N, d1, ...), of which those that do not count are left out.
    """
    if targets.ndim > 1:
        logits, targets = known_positions(logits, targets)
    loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
    return loss, (logits.argmax(dim=1) == targets).sum(), len(targets)


def sums_of_labels(outputs: Tensor, targets: Tensor) -> Sums:
    """Return the same of zeros and ones, each label by itself."""
    loss = nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="sum")
    return loss, ((outputs > 0) == (targets > 0.5)).sum(), targets.numel()


def sums_of_numbers(outputs: Tensor, targets: Tensor) -> Sums:
    """Return the sum of squared errors, 0, and how many numbers there are: none is right."""
    squares = (outputs.double() - targets.double()).square()
    return squares.sum(), squares.new_zeros(()), targets.numel()


def known_positions(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits (K, C) and the classes (K,) of all positions that count.

    Args:
        outputs: (N, C, d1, ...) or (N, d1, ..., C).
        targets: (N, d1, ...), of classes, or -100 where a position does not count.
    """
    logits = with_classes_second(outputs, targets).movedim(1, -1)
    known = targets != IGNORED
    return logits[known], targets[known]


_BY_LIKELIHOOD: dict[str, Score] = {
    "categorical": sums_of_classes,
    "bernoulli": sums_of_labels,
    "multilabel": sums_of_labels,
    "gaussian": sums_of_numbers,
}


def score_of(likelihood: Likelihood, targets: Tensor) -> Score:
    """Return how outputs are judged.

    Args:
        likelihood: of the task.
        targets: of its test samples.

    Raises:
        ValueError: for a likelihood of the user's own whose targets are no classes.
    """
    if isinstance(likelihood, str):
        return _BY_LIKELIHOOD[likelihood]
    if targets.is_floating_point():
        raise ValueError(
            "expected a likelihood by its name for evaluation on clients of targets that are no "
            f"classes, got {type(likelihood).__name__}; use fraction_evaluate=0, or an evaluation "
            "of your own"
        )
    return sums_of_classes
