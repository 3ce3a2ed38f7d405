"""Findings about one computation."""

from dataclasses import dataclass, field

from fedcurv.per_sample.samples import Samples


@dataclass
class Findings:
    """What the self-check found out about a computation.

    Attributes:
        slow: parameters that only the whole model shows rightly.
        alone: whether each sample must be a batch of its own, since samples of one interact.
        by_loop: modules that vmap cannot run, "" for the model itself.
        bytes_per_number: what a graph keeps for its backward pass, for each number of the inputs;
            0 if that is not known.
    """

    slow: set[str] = field(default_factory=set)
    alone: bool = False
    by_loop: set[str] = field(default_factory=set)
    bytes_per_number: float = 0.0

    def graph_bytes(self, inputs: Samples) -> float:
        """Return about how much a graph over these inputs keeps; 0 if that is not known."""
        return self.bytes_per_number * inputs.numel()
