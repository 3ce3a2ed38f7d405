"""Jobs of a site's workers: a round's local training, and how its results are put together."""

import logging
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fedcurv.clients.settings import TrainingSettings
from fedcurv.clients.site.pool import Outcome, Place, SitePool
from fedcurv.clients.terms import LocalTerm
from fedcurv.clients.training import InMemoryBatches, train_epoch
from fedcurv.fisher import fisher_diagonal
from fedcurv.lasgd import LASGD, Stats
from fedcurv.likelihoods import Likelihood
from fedcurv.subset import number_of

logger = logging.getLogger(__name__)

Samples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Share:
    """What every worker needs for a round.

    Attributes:
        model: with the server's weights.
        samples: inputs and targets of the whole site.
        settings: how to train.
        criterion: mean loss over a batch; None for cross-entropy.
        terms: of the objective beside the loss.
        seed: of the order of samples and of all random numbers.
        likelihood: that the Fisher information is of.
    """

    model: nn.Module
    samples: Samples
    settings: TrainingSettings
    criterion: nn.Module | None
    terms: Sequence[LocalTerm]
    seed: int
    likelihood: Likelihood = "categorical"


@dataclass(frozen=True)
class Trained:
    """What a worker brings back.

    Attributes:
        weights: the common model, on the host.
        loss_sum: over the samples of its last epoch.
        num_samples: how many these were; 0 if others had them all.
        stats: of LASGD.
    """

    weights: dict[str, Tensor]
    loss_sum: float
    num_samples: int
    stats: Stats

    @property
    def loss(self) -> float:
        """Mean over these samples; NaN if who had them has been lost."""
        return self.loss_sum / self.num_samples if self.num_samples else math.nan


class _Rows(Dataset[Samples]):
    """Samples in memory, fetched a batch at a time."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples[0])

    def __getitems__(self, indices: list[int]) -> Samples:
        inputs, targets = self._samples
        return inputs[indices], targets[indices]


def _as_it_is(batch: Samples) -> Samples:
    return batch


def train_share(place: Place, share: Share) -> Trained:
    """Train with the other workers; what each of them runs."""
    settings, device = share.settings, torch.device(place.device)
    torch.set_num_threads(settings.num_threads)
    torch.manual_seed(share.seed + place.rank)
    model = share.model.to(device)
    criterion = None if share.criterion is None else share.criterion.to(device)
    optimizer = settings.make_optimizer(model)
    for term in share.terms:
        term.attach(model, optimizer, settings)
    lasgd = LASGD(
        model,
        optimizer,
        sync_every=settings.sync_every,
        outer=settings.outer,
        outer_lr=settings.outer_lr,
        outer_momentum=settings.outer_momentum,
        compression=settings.compression,
        store=place.store(),
        rank=place.rank,
        world_size=place.size,
    )
    with lasgd:
        loader = lasgd.loader(
            _Rows(share.samples), settings.batch_size, seed=share.seed, collate_fn=_as_it_is
        )
        for epoch in range(settings.epochs):
            loss, num_samples = train_epoch(
                model, loader, optimizer, criterion, is_first=epoch == 0
            )
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    return Trained(weights, loss, num_samples, lasgd.stats)


def fisher_of_share(place: Place, share: Share) -> dict[str, Tensor]:
    """Return the Fisher diagonal over this worker's part of the samples, times their number."""
    torch.set_num_threads(share.settings.num_threads)
    torch.manual_seed(share.seed + place.rank)
    return _fisher_sum(share, place.rank, place.size, torch.device(place.device))


def _fisher_sum(share: Share, rank: int, size: int, device: torch.device) -> dict[str, Tensor]:
    inputs, targets = (part[rank::size] for part in share.samples)
    if len(inputs) == 0:
        return {}
    batches = InMemoryBatches(inputs, targets, share.settings.fisher_batch_size)
    number = number_of(share.settings.fisher_samples, len(share.samples[0]))
    fisher = fisher_diagonal(
        share.model.to(device),
        batches,
        kind=share.settings.fisher_kind,
        likelihood=share.likelihood,
        samples=-(-number // size),
    )
    return {name: (value * len(inputs)).cpu() for name, value in fisher.items()}


def train_on_site(pool: SitePool, share: Share) -> Trained:
    """Return the common model, and the loss over all workers' last epochs.

    Raises:
        SiteFailed: if no worker has come to the end.
    """
    done: list[Trained] = [o.value for o in _successes(pool.run(train_share, share))]
    loss_sum, num_samples = sum(t.loss_sum for t in done), sum(t.num_samples for t in done)
    return replace(done[0], loss_sum=loss_sum, num_samples=num_samples)


def fisher_on_site(pool: SitePool, share: Share) -> dict[str, Tensor]:
    """Return the Fisher diagonal over all samples; what a lost worker owes is estimated here."""
    outcomes = pool.run(fisher_of_share, share)
    sums = [o.value for o in _successes(outcomes)]
    sums += [
        _fisher_sum(share, o.rank, len(outcomes), torch.device("cpu")) for o in outcomes if o.error
    ]
    sums = [s for s in sums if s]
    return {name: sum(s[name] for s in sums) / len(share.samples[0]) for name in sums[0]}


def _successes(outcomes: list[Outcome]) -> list[Outcome]:
    for outcome in outcomes:
        if outcome.error:
            logger.warning("worker %d of the site: %s", outcome.rank, outcome.error)
    return [outcome for outcome in outcomes if not outcome.error]


def pool_for(settings: TrainingSettings) -> SitePool:
    """Return the site's workers, the same for every round of one user on this machine.

    Raises:
        PermissionError: if another user has made a folder in their folder's place.
    """
    kind = settings.make_device().type
    gpus = torch.cuda.device_count() if kind == "cuda" else 0
    devices = [f"cuda:{i % gpus}" if gpus else kind for i in range(settings.workers)]
    name = f"fedcurv-{os.geteuid()}-{'-'.join(devices)}".replace(":", "")
    return SitePool(Path(tempfile.gettempdir()) / name, devices)
