"""Header of every All-Reduce: what the workers tell each other beside the model."""

from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Report:
    """One worker's lines in a round's header.

    Attributes:
        steps: n_i, optimizer steps that its contribution holds.
        active: it has work, or has done some since the last round.
        finished: it will make no further step.
        leaving: it wants out after this round.
        broken: its progress was not finite, and is left out.
        claims: how many of the loader's batches it was trained on.
        newcomers: how many workers it knows to have asked to join; the first member's counts.
        speed: steps per second of the time that it did not wait.
        pace: steps per second of all its time.
    """

    steps: float = 0.0
    active: float = 0.0
    finished: float = 0.0
    leaving: float = 0.0
    broken: float = 0.0
    claims: float = 0.0
    newcomers: float = 0.0
    speed: float = 0.0
    pace: float = 0.0


LINES = len(fields(Report))


def write(header: Tensor, position: int, report: Report) -> None:
    """Fill a header so that its sum over the members holds every member's report.

    Args:
        header: shape (members * LINES,).
        position: of this worker among the members.
        report: its own.
    """
    header.zero_()
    lines = torch.tensor(astuple(report), dtype=header.dtype)
    header[position * LINES : (position + 1) * LINES] = lines.to(header.device)


def read(header: Tensor) -> list[Report]:
    """Return the members' reports from the sum of their headers."""
    return [Report(*lines) for lines in header.view(-1, LINES).tolist()]
