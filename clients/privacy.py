"""The Fisher information of clients that train with differential privacy."""

import logging
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedcurv.batches import Forward, Targets
from fedcurv.fisher import fisher_diagonal
from fedcurv.likelihoods import FisherKind, Likelihood
from fedcurv.private_fisher import private_fisher_diagonal, trained_privately
from fedcurv.subset import Number

logger = logging.getLogger(__name__)


class Accountant(Protocol):
    """Counts what of a privacy budget is spent, as Opacus' accountants do."""

    def step(self, *, noise_multiplier: float, sample_rate: float) -> None:
        """Count one release."""


def estimated(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    private_fisher: tuple[float, float] | None,
    accountant: Accountant | None,
    forward: Forward | None,
    targets: Targets | None,
    kind: FisherKind,
    likelihood: Likelihood,
    generator: torch.Generator | None,
    samples: Number,
    server_round: int,
) -> dict[str, Tensor]:
    """Return a Fisher diagonal; see ``ClientCurvature.report``.

    Raises:
        ValueError: as ``fisher_diagonal`` does, or for a model that Opacus has prepared without
            ``private_fisher``.
    """
    if private_fisher is None:
        if trained_privately(model):
            raise ValueError(
                "this model is trained with differential privacy, which would not hold for its "
                "Fisher information: that is computed from the samples anew, without noise; give "
                "report(..., private_fisher=(clip, noise_multiplier), "
                "accountant=privacy_engine.accountant), or do not report: this client is pulled "
                "by the others all the same"
            )
        if generator is None:
            generator = _of_round(model, server_round)
        return fisher_diagonal(
            model,
            batches,
            forward=forward,
            targets=targets,
            kind=kind,
            likelihood=likelihood,
            generator=generator,
            samples=samples,
        )
    if samples != "all":
        raise ValueError(
            f"samples must be 'all' with private_fisher, in whose noise all samples take part, got "
            f"{samples!r}"
        )
    if not (isinstance(private_fisher, tuple | list) and len(private_fisher) == 2):
        raise ValueError(
            f"private_fisher must be a pair (clip, noise_multiplier), got {private_fisher!r}"
        )
    clip, noise_multiplier = private_fisher
    fisher = private_fisher_diagonal(
        model,
        batches,
        clip=clip,
        noise_multiplier=noise_multiplier,
        forward=forward,
        targets=targets,
        kind=kind,
        likelihood=likelihood,
        generator=generator,
    )
    if accountant is None:
        logger.warning(
            "this Fisher information is a release that no accountant counts; give report(..., "
            "accountant=privacy_engine.accountant), so that its epsilon holds for all that is sent"
        )
    else:
        accountant.step(noise_multiplier=noise_multiplier, sample_rate=1.0)
    return fisher


def _of_round(model: nn.Module, server_round: int) -> torch.Generator:
    """Return a generator that begins elsewhere in each round, though the client may not.

    The global random state decides with the round, and is left as it is.
    """
    with torch.random.fork_rng(devices=[]):
        seed = int(torch.randint(2**62, ()))
    device = next(model.parameters()).device
    return torch.Generator(device).manual_seed(seed + server_round)
