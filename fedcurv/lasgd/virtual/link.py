"""How long an All-Reduce takes."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """The workers' network: every All-Reduce takes as long, or as its bytes need in a ring.

    Attributes:
        seconds: of one All-Reduce beside its bytes, >= 0.
        bandwidth: bytes a second that a worker can send while it receives as many.
    """

    seconds: float = 0.0
    bandwidth: float = math.inf

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"seconds must be finite and >= 0, got {self.seconds!r}")
        if not self.bandwidth > 0:
            raise ValueError(f"bandwidth must be > 0 bytes a second, got {self.bandwidth!r}")

    def all_reduce(self, num_bytes: int, workers: int) -> float:
        """Return the seconds: in a ring each worker sends 2 (N − 1)/N of the bytes."""
        return self.seconds + 2 * (workers - 1) / workers * num_bytes / self.bandwidth
