"""Diagonal Fisher information of a model over a data set.

For a classifier with parameters θ the diagonal is, with the mean over samples n outside the square,

    F_i = 1/N Σ_n E_y[(∂ log p(y | x_n, θ) / ∂θ_i)²]

where y is the given label (``empirical``), runs over all classes weighted by the model's own
probabilities (``exact``), or is drawn from them (``sampled``). The square is of one sample's
gradient: the square of a batch's mean gradient is another quantity, and shrinks as the batch grows.
"""

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from fedcurv.parameters import trainable_parameters

logger = logging.getLogger(__name__)

FisherKind = Literal["empirical", "exact", "sampled"]

# per-sample gradients of one chunk take at most this many numbers: small enough for caches
_NUMBERS_PER_CHUNK = 2**21

_SquaredGradients = Callable[[Tensor, Tensor, Tensor | None], dict[str, Tensor]]


def fisher_diagonal(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    kind: FisherKind = "empirical",
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> dict[str, Tensor]:
    """Return the diagonal Fisher information, one tensor per trainable parameter, in its shape.

    The model is evaluated in eval mode (no dropout, batch normalisation with its running
    statistics). Nothing is disturbed: parameters, buffers, ``.grad``, every module's train/eval
    mode and the random states of torch, NumPy and Python are afterwards as they were.

    Args:
        model: maps inputs to logits of shape (N, C), or (N, C, d1, ...) for ``empirical``, where a
            sample's log-likelihood is the sum over its positions.
        batches: pairs (inputs, targets), inputs of shape (N, ...), targets as
            ``torch.nn.functional.cross_entropy`` takes them; moved to the model's device.
        kind: ``empirical`` takes the given labels, ``exact`` the expectation over the model's own
            class probabilities (C backward passes), ``sampled`` one label drawn per sample.
        generator: draws the labels of ``sampled``, on the model's device; by default a copy of the
            global random state does, so that ``torch.manual_seed`` decides.
        chunk_size: how many per-sample gradients are held at once, >= 1; by default as many as
            fit into 8 MB, at least one.

    Returns:
        ``{name: tensor}`` with entries >= 0, in float32 (float64 for float64 parameters). A
        parameter that the output does not depend on has zeros.

    Raises:
        ValueError: for a model without trainable parameters, no samples, a batch that is no pair or
            whose lengths differ, or a loss or gradient that is not finite.

    Source: arXiv 1910.07796 needs the diagonal; the mean over per-sample squares, eval mode and the
    three kinds are this project's definition.
    """
    if kind not in get_args(FisherKind):
        raise ValueError(f"kind must be one of {', '.join(get_args(FisherKind))}, got {kind!r}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be >= 1, got {chunk_size}; leave it out for the default")
    parameters = trainable_parameters(model)
    device = next(iter(parameters.values())).device
    if chunk_size is None:
        numbers = sum(p.numel() for p in parameters.values())
        chunk_size = max(1, _NUMBERS_PER_CHUNK // numbers)

    totals = {
        name: torch.zeros_like(p, dtype=_accumulation_dtype(p), requires_grad=False)
        for name, p in parameters.items()
    }
    num_samples = 0
    with _undisturbed(model, device):
        model.eval()
        squared_gradients = _squared_gradients_of(model, parameters)
        for index, batch in enumerate(batches):
            inputs, targets = _pair(batch, index, device)
            num_samples += len(inputs)
            for x, y in zip(
                torch.split(inputs, chunk_size), torch.split(targets, chunk_size), strict=True
            ):
                for labels, weights in _labels(model, kind, generator, x, y):
                    for name, square in squared_gradients(x, labels, weights).items():
                        totals[name] += square
            _require_finite(totals, index)
    if num_samples == 0:
        raise ValueError(
            "expected at least one sample, got none: the batches are empty (a generator that was "
            "used up before?)"
        )
    return {name: total.div_(num_samples) for name, total in totals.items()}


def _accumulation_dtype(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


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


def _labels(
    model: nn.Module,
    kind: FisherKind,
    generator: torch.Generator | None,
    inputs: Tensor,
    targets: Tensor,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield label tensors with the weight that each sample's squared gradient gets under them."""
    if kind == "empirical":
        yield targets, None
        return
    with torch.no_grad():
        logits = model(inputs)
    if logits.ndim != 2:
        raise ValueError(
            f"kind={kind!r} needs logits of shape (N, C), got {tuple(logits.shape)}; "
            "use 'empirical'"
        )
    probabilities = logits.softmax(dim=1, dtype=_accumulation_dtype(logits))
    if kind == "sampled":
        yield torch.multinomial(probabilities, 1, generator=generator).squeeze(1), None
        return
    for label, weights in enumerate(probabilities.unbind(dim=1)):
        yield torch.full((len(inputs),), label, device=inputs.device), weights


def _squared_gradients_of(
    model: nn.Module, parameters: dict[str, nn.Parameter]
) -> _SquaredGradients:
    """Return the function that sums the samples' squared gradients: by vmap, else one by one."""
    detached = {name: p.detach() for name, p in parameters.items()}
    frozen = {name: p.detach() for name, p in model.named_parameters() if name not in parameters}
    buffers = {name: b.clone() for name, b in model.named_buffers()}

    def negative_log_likelihood(trained: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(model, (trained, frozen, buffers), (x.unsqueeze(0),))
        return nn.functional.cross_entropy(logits, y.unsqueeze(0), reduction="sum")

    gradient_and_loss = grad_and_value(negative_log_likelihood)
    batched = vmap(gradient_and_loss, in_dims=(None, 0, 0), randomness="different")

    def one_by_one(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        gradients = [gradient_and_loss(detached, *sample)[0] for sample in zip(x, y, strict=True)]
        return {name: torch.stack([g[name] for g in gradients]) for name in detached}

    vectorises = True

    def squared_gradients(x: Tensor, y: Tensor, weights: Tensor | None) -> dict[str, Tensor]:
        nonlocal vectorises
        if vectorises:
            try:
                gradients = batched(detached, x, y)[0]
            except (RuntimeError, NotImplementedError) as error:
                vectorises = False
                gradients = one_by_one(x, y)  # a model that is broken, not just slow, raises here
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                logger.warning(
                    "Fisher diagonal of %s: one backward pass per sample, since vmap cannot run "
                    "the model: %s",
                    type(model).__name__,
                    reason,
                )
        else:
            gradients = one_by_one(x, y)
        return {name: _sum_of_squares(g, weights) for name, g in gradients.items()}

    return squared_gradients


def _sum_of_squares(gradients: Tensor, weights: Tensor | None) -> Tensor:
    squares = gradients.to(_accumulation_dtype(gradients)).square()
    return squares.sum(0) if weights is None else torch.tensordot(weights.to(squares), squares, 1)


def _require_finite(totals: dict[str, Tensor], batch_index: int) -> None:
    sums = torch.stack([total.sum() for total in totals.values()])
    if not bool(sums.isfinite().all()):
        bad = [n for n, total in totals.items() if not bool(total.isfinite().all())]
        raise ValueError(
            f"batch {batch_index}: expected finite gradients, got NaN or inf in "
            f"{', '.join(bad[:3])}{' and others' if len(bad) > 3 else ''}; has the training "
            "diverged, or do the inputs hold NaN?"
        )


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore every module's train/eval mode and the random states, which data loaders use too."""
    modes = {module: module.training for module in model.modules()}
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for module, training in modes.items():
            module.training = training
