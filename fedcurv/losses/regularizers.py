"""Output regularisers R(z): how far a prediction is from saying nothing. Each is >= 0, and 0 there.

Source: arXiv 2104.12477 has label smoothing and entropy; squared output and logit squeezing stand
beside them here. p = softmax(z), u is uniform, K the number of classes.
"""

import math
from collections.abc import Callable

from torch import Tensor

# from logits (N, C, ...) to shape (N, ...)
Regularizer = Callable[[Tensor], Tensor]


def label_smoothing(logits: Tensor) -> Tensor:
    """Return KL(u‖p) = −(1/K) Σ_k log p_k − log K; infinite beside an impossible class."""
    return -logits.log_softmax(1).mean(1) - math.log(logits.shape[1])


def entropy(logits: Tensor) -> Tensor:
    """Return KL(p‖u) = log K − H(p), the confidence penalty."""
    log_p = logits.log_softmax(1)
    finite = log_p.masked_fill(log_p.isneginf(), 0.0)  # p log p is 0 there
    return (log_p.exp() * finite).sum(1) + math.log(logits.shape[1])


def squared_output(logits: Tensor) -> Tensor:
    """Return ½‖p − u‖²."""
    return 0.5 * (logits.softmax(1) - 1 / logits.shape[1]).square().sum(1)


def logit(logits: Tensor) -> Tensor:
    """Return ½‖z − z̄‖², logit squeezing.

    Infinite beside an impossible class, and without a gradient there.
    """
    impossible = logits.isneginf().any(1, keepdim=True)
    distance = (logits - logits.mean(1, keepdim=True)).masked_fill(impossible, 0.0)
    return (0.5 * distance.square().sum(1)).masked_fill(impossible.squeeze(1), math.inf)


REGULARIZERS: dict[str, Regularizer] = {
    "label_smoothing": label_smoothing,
    "entropy": entropy,
    "squared_output": squared_output,
    "logit": logit,
}


def regularizer_of(regularizer: str | Regularizer) -> Regularizer:
    """Return a regulariser by name, or the function that was given.

    Raises:
        ValueError: for an unknown name.
    """
    if not isinstance(regularizer, str):
        return regularizer
    if regularizer not in REGULARIZERS:
        raise ValueError(
            f"regularizer must be one of {', '.join(REGULARIZERS)}, or a function from logits "
            f"(N, C, ...) to shape (N, ...), got {regularizer!r}"
        )
    return REGULARIZERS[regularizer]
