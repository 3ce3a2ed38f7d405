"""The likelihood that a criterion of torch stands for."""

import math
from collections.abc import Callable
from typing import get_args

from torch import Tensor, nn

from fedcurv.curvature import extremes
from fedcurv.likelihoods import (
    LIKELIHOODS,
    Categorical,
    FisherKind,
    Likelihood,
    NegativeLogLikelihood,
    binary,
    by_sample,
    gaussian,
)
from fedcurv.losses import CrossEntropy
from fedcurv.parameters import described


def likelihood_of(given: Likelihood, kind: FisherKind) -> NegativeLogLikelihood:
    """Return the likelihood that is meant.

    Args:
        given: a name, a criterion, or a function of one's own; see ``fedcurv.fisher_diagonal``.
        kind: of Fisher information that is wanted of it.

    Raises:
        ValueError: for another name or kind, a criterion that is no likelihood, or not of logits,
            or a kind that takes an expectation which is not known.
    """
    if kind not in get_args(FisherKind):
        raise ValueError(f"kind must be one of {', '.join(get_args(FisherKind))}, got {kind!r}")
    likelihood, has_kinds = _meant(given)
    if kind != "empirical" and not has_kinds:
        raise ValueError(
            f"kind={kind!r} needs one of the likelihoods {', '.join(LIKELIHOODS)}, of which the "
            "expectation is known, got a function; use kind='empirical'"
        )
    return likelihood


def _meant(given: Likelihood) -> tuple[NegativeLogLikelihood, bool]:
    """Return the likelihood, and whether its expectation over targets is known."""
    if isinstance(given, type):
        raise ValueError(
            f"likelihood must be a criterion, got its class; give {given.__name__}() instead"
        )
    if isinstance(given, nn.Module):
        return _of_module(given)
    if isinstance(given, str):
        if given in LIKELIHOODS:
            return LIKELIHOODS[given], True
    elif callable(given):
        return (given, True) if given in LIKELIHOODS.values() else (by_sample(given), False)
    raise ValueError(
        f"likelihood must be one of {', '.join(LIKELIHOODS)}, a criterion of torch, or a function, "
        f"got {given!r}"
    )


def _of_module(criterion: nn.Module) -> tuple[NegativeLogLikelihood, bool]:
    for kind, read in _CRITERIA.items():
        if isinstance(criterion, kind) and type(criterion).forward is kind.forward:
            return read(criterion), True
    if getattr(criterion, "reduction", "none") == "none":
        return by_sample(criterion), False
    raise ValueError(
        f"expected a criterion that is a likelihood ({', '.join(k.__name__ for k in _CRITERIA)}), "
        f"got {type(criterion).__name__}; give that of the task (likelihood='categorical' for "
        "classes, 'gaussian' for numbers), or a function with one negative log-likelihood per "
        "sample"
    )


def _cross_entropy(criterion: nn.Module) -> NegativeLogLikelihood:
    smoothing = float(getattr(criterion, "label_smoothing", 0.0))
    weight: Tensor | None = getattr(criterion, "weight", None)
    if weight is not None:
        low, high = extremes(weight)
        if not (weight.ndim == 1 and low >= 0 and high < math.inf):
            raise ValueError(
                f"expected a finite weight >= 0 for each class, got {described(weight)} from "
                f"{low:g} to {high:g}"
            )
    return Categorical(weight, int(getattr(criterion, "ignore_index", -100)), smoothing)


def _binary_cross_entropy(criterion: nn.Module) -> NegativeLogLikelihood:
    weights = [n for n in ("weight", "pos_weight") if getattr(criterion, n, None) is not None]
    if weights:
        raise ValueError(
            f"BCEWithLogitsLoss with {' and '.join(weights)} is no likelihood of the targets; "
            "leave the weights out of the Fisher information by likelihood='bernoulli' or "
            "'multilabel'"
        )
    return binary


def _of_probabilities(criterion: nn.Module) -> NegativeLogLikelihood:
    raise ValueError(
        "BCELoss takes probabilities, expected logits; let the model return what comes before its "
        "sigmoid, or forward=lambda model, batch: model(batch[0]).logit(), and give "
        "BCEWithLogitsLoss()"
    )


def _squares(criterion: nn.Module) -> NegativeLogLikelihood:
    return gaussian


_CRITERIA: dict[type[nn.Module], Callable[[nn.Module], NegativeLogLikelihood]] = {
    nn.CrossEntropyLoss: _cross_entropy,
    nn.NLLLoss: _cross_entropy,  # log-probabilities are logits, too
    nn.BCEWithLogitsLoss: _binary_cross_entropy,
    nn.BCELoss: _of_probabilities,
    nn.MSELoss: _squares,
    CrossEntropy: _cross_entropy,
}
