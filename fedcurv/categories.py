"""Cotangents of logits of classes, for one prediction per sample or one for each of its positions.

Predictions of one sample are independent given its logits. So in the expectation of the squared
gradient of their summed losses the products of two positions vanish, and what is left is the sum
over the positions of what each has alone.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedcurv.lazy import LazyTensors
from fedcurv.likelihoods import (
    Categorical,
    require_classes,
    require_in_range,
    require_labels,
    require_probabilities,
    with_classes_second,
)

logger = logging.getLogger(__name__)

# backward passes for one batch, above which their number is told
_MANY = 1000


class _Positions(NamedTuple):
    """Logits by position.

    Attributes:
        logits: shape (N, P, C).
        counts: shape (N, P, 1): the root of how many times each counts, 0 where the label is
            ignored; None if all count once.
        restored: from such a tensor to the shape of the model's outputs.
    """

    logits: Tensor
    counts: Tensor | None
    restored: Callable[[Tensor], Tensor]


def of_labels(likelihood: Categorical, outputs: Tensor, labels: Tensor) -> Tensor | None:
    """Return cross-entropy's gradient for one integer label per sample; None for other cases."""
    plain = likelihood.weight is None and not likelihood.smoothing
    if not plain or outputs.ndim != 2 or labels.ndim != 1 or labels.is_floating_point():
        return None
    require_classes(outputs)
    return _softmax_less_labels(outputs, labels, likelihood.ignored)


def weighted(likelihood: Categorical, gradient: Tensor, targets: Tensor) -> Tensor:
    """Return a gradient of unweighted losses, times the root of how many times each counts."""
    if likelihood.weight is None:
        return gradient
    by_position = _positions(likelihood, gradient, targets)
    assert by_position.counts is not None  # there are weights
    return by_position.restored(by_position.logits * by_position.counts)


def drawn(
    likelihood: Categorical,
    outputs: Tensor,
    targets: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Return the cotangent of labels that are drawn from the model's own distribution."""
    logits, counts, restored = _positions(likelihood, outputs, targets)
    p = logits.softmax(-1)
    labels = torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(*p.shape[:2], 1)
    v = p.scatter_add_(2, labels, p.new_full(labels.shape, -1.0))
    return restored(v if counts is None else v * counts)


def expected(likelihood: Categorical, outputs: Tensor, targets: Tensor) -> Sequence[Tensor]:
    """Return the cotangents over whose squares the expectation over all labels sums."""
    logits, counts, restored = _positions(likelihood, outputs, targets)
    factors = _factors_of_exact(logits.log_softmax(-1))
    if counts is not None:
        factors = [factor * counts for factor in factors]
    return _OnePositionEach(factors, restored)


def signed(
    likelihood: Categorical,
    outputs: Tensor,
    targets: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Return the sum of the cotangents of :func:`expected`, each times 1 or −1 at random.

    The classes are taken from the most probable down, so that the first factor holds nearly all
    where the model is sure of a class, or between two: it is squared as it is.
    """
    logits, counts, restored = _positions(likelihood, outputs, targets)
    log_p, order = logits.log_softmax(-1).sort(-1, descending=True)
    log_tail = log_p.flip(-1).logcumsumexp(-1).flip(-1)
    sizes, shares, tails = _choices(log_p, log_tail)
    signs = torch.empty_like(sizes).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
    of_choices = (sizes * signs).unbind(-1)
    # what the choices before leave at the classes from this one on, all together
    v, left = [], torch.zeros_like(of_choices[0])
    for share, tail, one in zip(shares.unbind(-1), tails.unbind(-1), of_choices, strict=False):
        v.append(one - share * left)
        left = tail * left + one
    v.append(-left)
    gradient = torch.empty_like(log_p).scatter_(-1, order, torch.stack(v, -1))
    return restored(gradient if counts is None else gradient * counts)


def _choices(log_p: Tensor, log_tail: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return √(p_j t_{j+1} / t_j), p_j / t_j and t_{j+1} / t_j of all classes but the last."""
    # a class of probability zero leaves no choice, and 0/0 after it; but logits of NaN stay NaN
    nothing = torch.where(log_p[..., :1].isnan(), torch.nan, 0.0).to(log_p.dtype)
    p, tail, after = log_p[..., :-1], log_tail[..., :-1], log_tail[..., 1:]
    choice = torch.stack([0.5 * (p + after - tail), p - tail, after - tail]).exp()
    sizes, shares, tails = torch.where(tail.isfinite(), choice, nothing)
    return sizes, shares, tails


class _OnePositionEach(LazyTensors):
    """A cotangent for each factor and position, made when it is asked for.

    Args:
        factors: shape (N, P, C).
        restored: see ``_Positions``.
    """

    def __init__(self, factors: Sequence[Tensor], restored: Callable[[Tensor], Tensor]) -> None:
        self._factors = factors
        self._restored = restored
        self._positions = factors[0].shape[1]
        if len(self) > _MANY:
            logger.warning(
                "kind='exact' takes %d backward passes for a batch, %d for each of %d positions; "
                "kind='signed' takes one",
                len(self),
                len(factors),
                self._positions,
            )

    def __len__(self) -> int:
        return len(self._factors) * self._positions

    def made(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(index)
        position, number = divmod(index, len(self._factors))
        factor = self._factors[number]
        if self._positions == 1:
            return self._restored(factor)
        one = torch.zeros_like(factor)
        one[:, position] = factor[:, position]
        return self._restored(one)


def _positions(likelihood: Categorical, outputs: Tensor, targets: Tensor) -> _Positions:
    if targets.is_floating_point():
        require_classes(outputs)
        require_probabilities(outputs, targets)
        second = outputs
    else:
        second = with_classes_second(outputs, targets)
        require_in_range(targets.long(), second.shape[1], likelihood.ignored)
    axis = 1 if second is outputs else -1
    last = second.movedim(1, -1)
    logits = last.reshape(len(last), -1, last.shape[-1])
    counts = _counts(likelihood, targets, logits)
    return _Positions(logits, counts, lambda v: v.view(last.shape).movedim(-1, axis))


def _counts(likelihood: Categorical, targets: Tensor, logits: Tensor) -> Tensor | None:
    if targets.is_floating_point():
        if likelihood.weight is not None:
            raise ValueError(
                "expected integer labels for a cross-entropy with weights, got class "
                "probabilities, of which no class says how many times a sample counts"
            )
        return None
    labels = targets.long().reshape(logits.shape[0], -1)  # -100 is 156 in 8 bits
    known = labels != likelihood.ignored
    if likelihood.weight is None:
        return None if bool(known.all()) else known.unsqueeze(-1).to(logits.dtype)
    classes = logits.shape[-1]
    if len(likelihood.weight) != classes:
        raise ValueError(
            f"expected a weight for each of {classes} classes, got {len(likelihood.weight)}"
        )
    roots = likelihood.weight.to(logits).sqrt()
    return (roots[labels * known] * known).unsqueeze(-1)


def _softmax_less_labels(logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
    """Return p − e_y, cross-entropy's gradient; zero where the label is ignored."""
    classes = logits.shape[1]
    if labels.dtype != torch.long:
        require_labels(labels)
        labels = labels.long()
    if labels.device.type != "cpu" or ignored >= 0:
        require_in_range(labels, classes, ignored)  # on a GPU a wrong one would end the process
    else:
        try:
            return logits.softmax(1).scatter_(1, labels.unsqueeze(1), -1.0, reduce="add")
        except RuntimeError:  # some label is ignored, or wrong
            require_in_range(labels, classes, ignored)
    known = (labels != ignored).unsqueeze(1)
    gradient = logits.softmax(1)
    places, ones = labels.unsqueeze(1) * known, gradient.new_full((len(labels), 1), -1.0)
    return gradient.scatter_add_(1, places, ones).mul_(known)


def _factors_of_exact(log_p: Tensor) -> list[Tensor]:
    """Return v_1 … v_{C−1} with Σ_j v_j v_jᵀ = diag(p) − p pᵀ, the Fisher matrix of the logits.

    C classes need C − 1 backward passes, not C. The factors are those of the choice of a class in
    steps, "this class or a later one": v_j = √(p_j t_{j+1} / t_j) (e_j − r_j), where t_j is the
    probability of class j or later and r_j are the classes' probabilities given one after j.

    Args:
        log_p: shape (..., C).
    """
    log_tail = log_p.flip(-1).logcumsumexp(-1).flip(-1)
    # a class of probability zero leaves no choice, and 0/0 after it; but logits of NaN stay NaN
    nothing = torch.where(log_p[..., :1].isnan(), torch.nan, 0.0).to(log_p.dtype)
    factors = []
    for j in range(log_p.shape[-1] - 1):
        tail = log_tail[..., j + 1, None]
        size = (0.5 * (log_p[..., j, None] + tail - log_tail[..., j, None])).exp()
        factor = torch.zeros_like(log_p)
        factor[..., j] = 1
        factor[..., j + 1 :] = -(log_p[..., j + 1 :] - tail).exp()
        factors.append(torch.where(size > 0, size * factor, nothing))
    return factors
