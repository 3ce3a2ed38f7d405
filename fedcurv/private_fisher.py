"""Diagonal Fisher information under differential privacy.

Training by DP-SGD protects nothing of what a Fisher information tells: it is computed from the
samples anew, and is a release of its own. Here each sample's squared gradients s_n, over all
parameters together, are clipped to a norm c, and their sum gets Gaussian noise:

    F_i = 1/N max(0, Σ_n s_n,i · min(1, c / ‖s_n‖) + σ c z_i),   z_i ~ N(0, 1)

One sample more or less moves the sum by at most c, so that this is the Gaussian mechanism with
noise multiplier σ, in which all samples take part. The number N is not protected.
"""

import math
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedcurv.batches import Batches, Forward, Targets
from fedcurv.cotangents import cotangents
from fedcurv.criteria import likelihood_of
from fedcurv.estimate import CotangentsOf, Estimate
from fedcurv.gathering import Batch
from fedcurv.global_state import require_generator
from fedcurv.likelihoods import FisherKind, Likelihood
from fedcurv.own_loss import check_of_labels
from fedcurv.parameters import refuse_complex, trainable_parameters
from fedcurv.per_sample import undisturbed


def private_fisher_diagonal(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    clip: float,
    noise_multiplier: float,
    forward: Forward | None = None,
    targets: Targets | None = None,
    kind: FisherKind = "empirical",
    likelihood: Likelihood = "categorical",
    generator: torch.Generator | None = None,
    noise: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Return a diagonal Fisher information that is (ε, δ)-differentially private.

    Two sets of samples are neighbours if one has a sample more. What ε and δ are an accountant
    tells: one step with this noise multiplier at a sample rate of 1. One pass is made for each
    sample. A number that is not finite is refused, which tells that there is one.

    Args:
        model: see ``fedcurv.fisher_diagonal``; one that Opacus has prepared is taken without its
            hooks. What it holds must itself be private, as DP-SGD makes it.
        batches: likewise.
        clip: the greatest norm of a sample's squared gradients, over all parameters, > 0.
        noise_multiplier: the noise's standard deviation in units of ``clip``, > 0.
        forward: see ``fedcurv.fisher_diagonal``.
        targets: likewise.
        kind: likewise.
        likelihood: likewise.
        generator: likewise; it draws no noise.
        noise: draws the noise, on the model's device; by default it begins at a number of the
            operating system's, since noise that a known seed gives protects nothing.

    Returns:
        as ``fedcurv.fisher_diagonal``, entries >= 0.

    Raises:
        ValueError: as ``fedcurv.fisher_diagonal``, or for a clip or multiplier that is not > 0.

    Source: this project's; the Gaussian mechanism is the field's.
    """
    for name, value in (("clip", clip), ("noise_multiplier", noise_multiplier)):
        if not (isinstance(value, int | float) and 0 < value < math.inf):
            raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
    losses_of = likelihood_of(likelihood, kind)
    parameters = trainable_parameters(model)
    refuse_complex(parameters.items(), "private_fisher_diagonal")
    device = next(iter(parameters.values())).device
    require_generator("generator", generator, device)
    require_generator("noise", noise, device)
    with undisturbed(model, device), without_opacus(model):
        model.eval()
        estimate = ClippedEstimate(
            model,
            parameters,
            partial(cotangents, kind, losses_of, generator=generator),
            clip=clip,
        )
        reader = Batches(forward, targets, device, check_of_labels(model, losses_of))
        estimate.add(reader.read_all(batches))
    if not estimate.num_samples:
        raise ValueError("expected at least one sample, got none: the batches are empty")
    estimate.require_finite()
    noise = noise or torch.Generator(device).manual_seed(secrets.randbits(63))
    result = {}
    for name, total in estimate.totals.items():
        drawn = torch.empty_like(total, memory_format=torch.contiguous_format)
        drawn.normal_(generator=noise).mul_(clip * noise_multiplier)
        result[name] = drawn.add_(total).clamp_min_(0).div_(estimate.num_samples)
    return result


class ClippedEstimate(Estimate):
    """Sums over samples whose squared gradients have at most the norm ``clip``."""

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        cotangents_of: CotangentsOf,
        *,
        clip: float,
    ) -> None:
        super().__init__(
            model, parameters, cotangents_of, chunk_size=1, self_check=True, several_at_once=False
        )
        self._clip = clip
        self._sums = {name: torch.zeros_like(total) for name, total in super().totals.items()}

    @property
    def totals(self) -> dict[str, Tensor]:
        """The sums, by name."""
        return self._sums

    def _add(self, batch: Batch) -> None:
        ((index, _),) = batch.sizes
        for inputs, targets, _ in batch.in_parts(len(batch)):
            super()._add(Batch(inputs, targets, [(index, 1)]))
            self._take_clipped(super().totals)

    @torch.no_grad()
    def _take_clipped(self, squares: dict[str, Tensor]) -> None:
        """Move one sample's squares into the sums."""
        norms = [
            torch.linalg.vector_norm(square, dtype=torch.float64) for square in squares.values()
        ]
        norm = float(torch.linalg.vector_norm(torch.stack(norms)))
        share = self._clip / max(norm, self._clip)
        for name, square in squares.items():
            self._sums[name].add_(square, alpha=share)
            square.zero_()


def trained_privately(model: nn.Module) -> bool:
    """Return whether Opacus has prepared a model for DP-SGD."""
    return any(hasattr(parameter, "grad_sample") for parameter in model.parameters())


@contextmanager
def without_opacus(model: nn.Module) -> Iterator[None]:
    """Take Opacus' hooks off a model, which want a training step around each backward pass."""
    kept = [
        (hooks, dict(hooks))
        for module in model.modules()
        for hooks in (module._forward_hooks, module._backward_hooks)
    ]
    for hooks, before in kept:
        for number, hook in before.items():
            if _origin(hook).startswith("opacus."):
                del hooks[number]
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)


def _origin(hook: Any) -> str:
    while isinstance(hook, partial):
        hook = hook.func
    return str(getattr(hook, "__module__", ""))
