"""What all workers of a training must have in common, and what one gives to a round."""

from dataclasses import dataclass

from fedcurv.lasgd.coding import Compression, require_few
from fedcurv.lasgd.data import Claim
from fedcurv.lasgd.header import Report
from fedcurv.lasgd.plane import Backend
from fedcurv.lasgd.weights import Weights


@dataclass(frozen=True)
class Plan:
    """What all workers must have in common.

    Attributes:
        world_size: how many workers begin.
        sync_every: steps of all workers between rounds.
        weights: of their progress.
        backend: of the All-Reduce.
        compression: of what goes through it.
    """

    world_size: int
    sync_every: int
    weights: Weights
    backend: Backend
    compression: Compression | None = None

    def __post_init__(self) -> None:
        """Refuse more workers than codes can be summed of.

        Raises:
            ValueError: as said.
        """
        require_few(self.compression, self.world_size)


@dataclass(frozen=True)
class Contribution:
    """What a worker gives to a round, beside its progress.

    Attributes:
        report: its lines in the header.
        claims: which batches its progress was trained on.
    """

    report: Report
    claims: list[Claim]
