"""Parameters of the model itself that are added to what is by sample, or repeated for each sample.

Class tokens and positions are such. What belongs to a sample of the gradient of the sum is the
sample's gradient of the parameter, summed over where it was repeated within the sample.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fedcurv.parameters import accumulation_dtype
from fedcurv.per_sample.watched import WHOLE

# a node of the graph, by its place in the walk, and which of its operands
Operand = tuple[int, int]

# nodes whose gradient is, but for a factor, that of each operand for every sample
ADDING = ("ExpandBackward0", "AddBackward0", "SubBackward0")


class Addition(NamedTuple):
    """One use of a parameter in a sum.

    Attributes:
        place: of the sum's node in the walk.
        operand: which the parameter is.
        axis: of the samples in the sum, or ``WHOLE``.
    """

    place: int
    operand: int
    axis: int


def additions_of(
    uses: Mapping[str, Sequence[Operand]],
    shapes: Mapping[int, Sequence[int]],
    alone: Mapping[int, Sequence[int]] | None,
    parameters: Mapping[str, Tensor],
    samples: int,
) -> dict[str, list[Addition]]:
    """Return the additions of those parameters in all of whose sums the samples are found.

    Args:
        uses: by name, the operands that a parameter is.
        shapes: of the sums, by place.
        alone: likewise, for one sample; None if there was no look at one, so that nothing tells
            where several samples are.
        parameters: by name.
        samples: how many there are.
    """
    found: dict[str, list[Addition]] = {}
    for name, operands in uses.items():
        additions = []
        for place, operand in operands:
            axis = _axis(
                shapes.get(place),
                None if alone is None else alone.get(place, ()),
                parameters[name].shape,
                samples,
            )
            if axis is not None:
                additions.append(Addition(place, operand, axis))
        if len(additions) == len(operands):
            found[name] = additions
    return found


def _axis(
    shape: Sequence[int] | None, alone: Sequence[int] | None, own: Sequence[int], samples: int
) -> int | None:
    """Return along which axis the samples are, if the parameter is repeated along it."""
    if shape is None:
        return None
    if samples == 1:
        return WHOLE
    if alone is None or len(alone) != len(shape):
        return None
    differing = [a for a, (n, one) in enumerate(zip(shape, alone, strict=True)) if n != one]
    if len(differing) != 1:
        return None
    (axis,) = differing
    is_theirs = (shape[axis], alone[axis]) == (samples, 1)
    return axis if is_theirs and _aligned(own, len(shape))[axis] == 1 else None


def _aligned(shape: Sequence[int], axes: int) -> list[int]:
    return [1] * (axes - len(shape)) + list(shape)


def factor(node: Any, operand: int) -> float:
    """Return what an operand is multiplied by in a node's sum."""
    if operand == 0:
        return 1.0
    alpha = float(node._saved_alpha)
    return -alpha if type(node).__name__ == "SubBackward0" else alpha


def add_squares(total: Tensor, sums: Sequence[tuple[Addition, float, Tensor | None]]) -> None:
    """Add the squares of a parameter's gradients, given the gradients of all sums that it is in."""
    by_sample: Tensor | None = None
    for addition, times, gradient in sums:
        if gradient is not None:
            one = times * _of_samples(gradient, addition.axis, total.shape)
            by_sample = one if by_sample is None else by_sample + one
    if by_sample is not None:
        total.add_(by_sample.square().sum(0))


def _of_samples(gradient: Tensor, axis: int, own: Sequence[int]) -> Tensor:
    """Return each sample's gradient of the parameter, shape (N, *own)."""
    own = tuple(own)
    within = _aligned(own, gradient.ndim)
    if axis == WHOLE:
        gradient = gradient.unsqueeze(0)
    else:
        gradient = gradient.movedim(axis, 0)
        del within[axis]
    gradient = gradient.to(accumulation_dtype(gradient))
    repeated = [d for d, size in enumerate(within, 1) if size == 1 and gradient.shape[d] > 1]
    if repeated:
        gradient = gradient.sum(repeated)
    return gradient.reshape(len(gradient), *own)
