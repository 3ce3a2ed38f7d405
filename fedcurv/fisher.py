"""Diagonal Fisher information of a model over a data set.

For a classifier with parameters θ the diagonal is, with the mean over samples n outside the square,

    F_i = 1/N Σ_n E_y[(∂ log p(y | x_n, θ) / ∂θ_i)²]

where y is the given label (``empirical``), runs over all classes weighted by the model's own
probabilities (``exact``), or is drawn from them (``sampled``). The square is of one sample's
gradient: the square of a batch's mean gradient is another quantity, and shrinks as the batch grows.
"""

import math
import random
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn

from fedcurv.curvature import extremes
from fedcurv.global_state import cudnn, random_states_kept
from fedcurv.likelihoods import LIKELIHOODS, FisherKind, Likelihood, cotangents
from fedcurv.parameters import listed, trainable_parameters
from fedcurv.per_sample import PerSampleSquares, findings_of, samples_at_once, unchecked


def fisher_diagonal(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    kind: FisherKind = "empirical",
    likelihood: Likelihood = "categorical",
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
    self_check: bool = True,
) -> dict[str, Tensor]:
    """Return the diagonal Fisher information, one tensor per trainable parameter, in its shape.

    The model is evaluated in eval mode (no dropout, batch normalisation with its running
    statistics). Nothing is disturbed: parameters, buffers, ``.grad``, every module's train/eval
    mode and the random states of torch, NumPy and Python are afterwards as they were.

    Args:
        model: maps inputs to what the likelihood takes.
        batches: pairs (inputs, targets) of shapes (N, ...); moved to the model's device.
        kind: ``empirical`` takes the given labels, ``exact`` the expectation over the model's own
            class probabilities (C − 1 backward passes), ``sampled`` one label drawn per sample.
        likelihood: ``categorical`` takes logits (N, C) and targets as
            ``torch.nn.functional.cross_entropy`` does, or (N, C, d1, ...), where a sample's
            log-likelihood is the sum over its positions; ``gaussian`` is regression with unit
            variance, outputs and targets of one shape. Or a function of outputs and targets that
            returns one negative log-likelihood per sample, shape (N,). The kinds ``exact`` and
            ``sampled`` exist for categories, with logits (N, C), only.
        generator: draws the labels of ``sampled``, on the model's device; by default a copy of the
            global random state does, so that ``torch.manual_seed`` decides.
        chunk_size: how many samples of a batch are taken at once, >= 1; None takes as many as are
            fast, and fewer if memory is short.
        self_check: compare the fast rules with single samples the first time that a model of this
            structure is seen, and leave to slower ways what disagrees.

    Returns:
        ``{name: tensor}`` with entries >= 0, in float32 (float64 for float64 parameters). A
        parameter that the output does not depend on has zeros.

    Raises:
        ValueError: for a model without trainable parameters or that returns anything but a tensor,
            no samples, a batch that is no pair or whose lengths differ, a likelihood without one
            value per sample, or a loss or gradient that is not finite.

    Source: arXiv 1910.07796 needs the diagonal; the mean over per-sample squares, eval mode and the
    three kinds are this project's definition.
    """
    if kind not in get_args(FisherKind):
        raise ValueError(f"kind must be one of {', '.join(get_args(FisherKind))}, got {kind!r}")
    if isinstance(likelihood, str) and likelihood not in LIKELIHOODS:
        raise ValueError(
            f"likelihood must be one of {', '.join(LIKELIHOODS)}, or a function, got {likelihood!r}"
        )
    if kind != "empirical" and likelihood != "categorical":
        raise ValueError(f"kind={kind!r} needs likelihood='categorical'; use kind='empirical'")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be >= 1, got {chunk_size}")
    parameters = trainable_parameters(model)
    device = next(iter(parameters.values())).device

    losses_of = LIKELIHOODS[likelihood] if isinstance(likelihood, str) else likelihood
    num_samples = 0
    probes: list[tuple[int, Tensor]] = []
    squares: PerSampleSquares | None = None
    with _undisturbed(model, device), ExitStack() as stack:
        model.eval()
        for index, batch in enumerate(batches):
            inputs, targets = _pair(batch, index, device)
            samples = inputs.shape[0]
            if samples == 0:
                continue
            if squares is None:
                findings = (
                    findings_of(model, parameters, inputs) if self_check else unchecked(model)
                )
                squares = stack.enter_context(PerSampleSquares(model, parameters, findings))
            num_samples += samples
            size = chunk_size or samples_at_once(findings.graph_bytes(inputs), samples, device)
            parts = samples if findings.alone else -(-samples // size)
            for x, y in _in_parts(inputs, targets, parts):
                vs = squares.add(
                    x, partial(cotangents, kind, losses_of, targets=y, generator=generator)
                )
                probes += [(index, v.sum()) for v in vs]
    if squares is None:
        raise ValueError(
            "expected at least one sample, got none: the batches are empty (a generator that was "
            "used up before?)"
        )
    _require_finite(squares.totals, probes)
    return {name: total.div_(num_samples).contiguous() for name, total in squares.totals.items()}


def _in_parts(inputs: Tensor, targets: Tensor, number: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Return at most so many parts, of about equal length."""
    if number == 1:
        return [(inputs, targets)]
    return zip(inputs.chunk(number), targets.chunk(number), strict=True)


def _pair(batch: object, index: int, device: torch.device) -> tuple[Tensor, Tensor]:
    if not (
        isinstance(batch, tuple | list)
        and len(batch) == 2
        and isinstance(batch[0], Tensor)
        and isinstance(batch[1], Tensor)
    ):
        shape = f" of {len(batch)} items" if isinstance(batch, tuple | list) else ""
        raise ValueError(
            f"batch {index}: expected a pair (inputs, targets) of tensors, got "
            f"{type(batch).__name__}{shape}"
        )
    inputs, targets = batch
    if len(inputs) != len(targets):
        raise ValueError(
            f"batch {index}: expected as many targets as inputs, got {len(targets)} targets for "
            f"{len(inputs)} inputs"
        )
    return inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)


def _require_finite(totals: dict[str, Tensor], probes: list[tuple[int, Tensor]]) -> None:
    """Refuse what is not finite, naming the first batch with such outputs, or the parameters."""
    finite = torch.stack([probe for _, probe in probes]).isfinite().tolist() if probes else []
    bad_batches = [index for (index, _), good in zip(probes, finite, strict=True) if not good]
    bad = [name for name, total in totals.items() if not math.isfinite(extremes(total)[1])]
    if not bad_batches and not bad:
        return
    batch = f"batch {bad_batches[0]}: " if bad_batches else ""
    where = f" in {listed(bad)}" if bad else ""
    raise ValueError(
        f"{batch}expected finite losses and gradients, got NaN or inf{where}; has the training "
        "diverged, or do the inputs hold NaN?"
    )


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore modes and buffers of the model, and the random states, which data loaders use too."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = {module: module.training for module in model.modules()}
    python_state, numpy_state = random.getstate(), np.random.get_state(legacy=False)
    kept = random_states_kept(device)
    try:
        with kept, torch.inference_mode(False), _backward_in_eval(model):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for module, training in modes.items():
            module.training = training
        for name, buffer in model.named_buffers():
            if name in buffers and not torch.equal(buffer, buffers[name]):
                buffer.copy_(buffers[name])


def _backward_in_eval(model: nn.Module) -> AbstractContextManager[None]:
    """Leave recurrent layers to torch: cuDNN's can go backward in train mode only."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    return cudnn(enabled=False) if recurrent else nullcontext()
