"""Diagonal Fisher information of a model over a data set.

For a classifier with parameters θ the diagonal is, with the mean over samples n outside the square,

    F_i = 1/N Σ_n E_y[(∂ log p(y | x_n, θ) / ∂θ_i)²]

where y is the given label (``empirical``), runs over all classes weighted by the model's own
probabilities (``exact``), or is drawn from them (``sampled``). The exact kind is a sum of squares,
Σ_k g_k²; with random signs s_k the square (Σ_k s_k g_k)² has that mean, too (``signed``). The
square is of one sample's gradient: the square of a batch's mean gradient is another quantity, and
shrinks as the batch grows.
"""

import logging
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedcurv.batches import Batches, Forward, Targets
from fedcurv.cotangents import cotangents
from fedcurv.criteria import likelihood_of
from fedcurv.estimate import Estimate
from fedcurv.global_state import require_generator
from fedcurv.likelihoods import (
    LIKELIHOODS_OF_LOGITS,
    Categorical,
    FisherKind,
    Likelihood,
)
from fedcurv.own_loss import check_of_labels
from fedcurv.parameters import listed, refuse_complex, trainable_parameters
from fedcurv.per_sample import undisturbed
from fedcurv.subset import Number, Subset, require_number

logger = logging.getLogger(__name__)

# whose outputs are probabilities
_SQUASHING = ("SigmoidBackward0", "SoftmaxBackward0", "HardsigmoidBackward0")


def fisher_diagonal(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    targets: Targets | None = None,
    kind: FisherKind = "empirical",
    likelihood: Likelihood = "categorical",
    generator: torch.Generator | None = None,
    samples: Number = "all",
    chunk_size: int | None = None,
    self_check: bool = True,
) -> dict[str, Tensor]:
    """Return the diagonal Fisher information, one tensor per trainable parameter, in its shape.

    The model is evaluated in eval mode (no dropout, batch normalisation with its running
    statistics). Of a model that draws random numbers even so the information is that of one draw
    for each batch, which ``torch.manual_seed`` decides. Nothing is disturbed: parameters, buffers,
    ``.grad``, every module's train/eval mode and the random states of torch, NumPy and Python are
    afterwards as they were; what a model's own forward does to its parameters is told. Hooks on
    parameters' gradients are not called, which is told too where they may change gradients.

    Args:
        model: maps inputs to what the likelihood takes.
        batches: pairs (inputs, targets), or mappings with ``labels``; moved to the model's device.
            Inputs are a tensor (N, ...), or a nest of mappings, lists and dataclasses: the samples
            are along the first axis of every tensor whose length is that of the targets, and what
            else is there is shared by all of them.
        forward: from the model and a batch to outputs (N, ...), where the model is not simply
            called on the inputs. Without it a mapping's values are given by name, a list's by
            place; of an object with ``.logits`` these are the outputs.
        targets: from a batch to its targets, or their name in it.
        kind: ``empirical`` takes the given targets, ``exact`` the expectation over the model's own
            distribution (C − 1 backward passes for C classes, as many for each position that a
            sample has; one for each output of the other likelihoods), ``sampled`` targets that are
            drawn from it. ``signed`` adds up the cotangents of ``exact``, each times 1 or −1 at
            random, for one backward pass: its expectation is the exact kind, from which one
            sample's squares deviate by at most √2 times their size.
        likelihood: ``categorical`` takes logits (N, C) and targets as
            ``torch.nn.functional.cross_entropy`` does, or (N, C, d1, ...), or (N, d1, ..., C) with
            labels where no other reading fits; a sample's log-likelihood is the sum over its
            positions, and a label that is ignored (−100) counts nothing. ``bernoulli`` takes one
            logit, (N,) or (N, 1), before any sigmoid, and targets in [0, 1] of either shape;
            ``multilabel`` a logit for each of several labels and targets in [0, 1], of one shape;
            ``gaussian`` is regression with unit variance, outputs and targets of one shape. Or the
            criterion of torch that the model is trained with: ``CrossEntropyLoss`` (with its
            ignored label, its smoothing, and its weights as how many times a sample counts),
            ``NLLLoss``, ``BCEWithLogitsLoss``, ``MSELoss`` (taken as ``gaussian``); its reduction
            is of no account. Or a function of outputs and targets that returns one negative
            log-likelihood per sample, shape (N,), for which there is no kind but ``empirical``.
        generator: draws what is random (samples, labels, signs), on the model's device; by default
            a copy of the global random state does, so that ``torch.manual_seed`` decides.
        samples: how many to estimate with, >= 1: so many at random, of each class in proportion
            and one at least, with which the mean is estimated without bias, see
            ``fedcurv.subset``; ``auto`` is a tenth of them, but from 24 to 64. All batches are
            read once before the model sees any, and at most so many samples of each class are
            held in memory. Data that are in memory are best given as one batch.
        chunk_size: how many samples of a batch are taken at once, >= 1; None takes as many as are
            fast, and fewer if memory is short; of a small network those of several batches, unless
            these come from a generator, which may change the model as it goes.
        self_check: compare the fast rules with single samples the first time that a model of this
            structure is seen, and leave to slower ways what disagrees.

    Returns:
        ``{name: tensor}`` with entries >= 0, in float32 (float64 for float64 parameters). A
        parameter that the output does not depend on has zeros.

    Raises:
        ValueError: for a model without trainable parameters, with complex ones, or that returns
            anything but a tensor of real numbers, no samples, a batch that is no pair or whose
            lengths or types do not fit, targets that are not what the likelihood takes, a
            likelihood without one value per sample, or a loss or gradient that is not finite.
        RuntimeError: what the model raises, with the batch, its shapes and types.

    Source: arXiv 1910.07796 needs the diagonal; the mean over per-sample squares, eval mode, the
    kinds and the choice of samples are this project's definition.
    """
    losses_of = likelihood_of(likelihood, kind)
    require_number(samples)
    if chunk_size is not None and not (isinstance(chunk_size, int) and chunk_size >= 1):
        raise ValueError(f"chunk_size must be an integer >= 1, got {chunk_size!r}")
    parameters = trainable_parameters(model)
    refuse_complex(parameters.items(), "fisher_diagonal")
    device = next(iter(parameters.values())).device
    require_generator("generator", generator, device)

    if hooked := [name for name, p in parameters.items() if p._backward_hooks]:
        logger.warning(
            "Fisher diagonal of %s: hooks on the gradients of %s are not called, as the "
            "information is that of the likelihood; mask it afterwards if they mask",
            type(model).__name__,
            listed(hooked),
        )
    reader = Batches(forward, targets, device, check_of_labels(model, losses_of))
    # a generator may change the model between batches, but not once all of them are read
    changes = isinstance(batches, Iterator) and samples == "all"
    with undisturbed(model, device):
        model.eval()
        estimate = Estimate(
            model,
            parameters,
            partial(cotangents, kind, losses_of, generator=generator),
            chunk_size=chunk_size,
            self_check=self_check,
            several_at_once=chunk_size is None and self_check and not changes,
        )
        read = reader.read_all(batches)
        if samples == "all":
            estimate.add(read)
            num_samples = estimate.num_samples
        else:
            subset = Subset(samples, generator, copies=not isinstance(batches, list | tuple))
            estimate.add(subset.read(read))
            num_samples = subset.num_samples
    if not num_samples:
        raise ValueError(
            "expected at least one sample, got none: the batches are empty (a generator that was "
            "used up before?)"
        )
    estimate.require_finite()
    of_logits = isinstance(losses_of, Categorical) or losses_of in LIKELIHOODS_OF_LOGITS
    if of_logits and estimate.last_operation in _SQUASHING:
        logger.warning(
            "Fisher diagonal of %s: expected logits for likelihood=%r, got what a sigmoid or "
            "softmax makes of them, which is taken for logits; leave it out of the model",
            type(model).__name__,
            likelihood,
        )
    if not any(bool(total.any()) for total in estimate.totals.values()):
        logger.warning(
            "Fisher diagonal of %s: zero for every parameter, so that FedCurv's penalty does "
            "nothing: the outputs do not depend on the parameters, the model is certain of every "
            "sample, or every label is one that is ignored",
            type(model).__name__,
        )
    return {name: total.div_(num_samples).contiguous() for name, total in estimate.totals.items()}
