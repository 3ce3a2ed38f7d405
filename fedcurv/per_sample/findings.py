"""What is known of models of one structure."""

from dataclasses import dataclass, field

from torch import Tensor

from fedcurv.per_sample.replay import Nest


@dataclass
class Findings:
    """What the self-check found out about models of one structure.

    Attributes:
        slow: parameters that only the whole model shows rightly.
        idle: parameters that nothing depended on; a later call of their module is noticed.
        axes: by layer, where the samples lie in its input, or a nest of such axes.
        alone: whether each sample must be a batch of its own, since samples of one interact.
        infer: whether ``axes`` is being found out, by batches whose size is telling.
        by_loop: modules that vmap cannot run, "" for the model itself.
        bytes_per_number: what a graph keeps for its backward pass, for each number of the inputs;
            0 if that is not known.
    """

    slow: set[str] = field(default_factory=set)
    idle: set[str] = field(default_factory=set)
    axes: dict[str, Nest] = field(default_factory=dict)
    alone: bool = False
    infer: bool = False
    by_loop: set[str] = field(default_factory=set)
    bytes_per_number: float = 0.0

    def graph_bytes(self, inputs: Tensor) -> float:
        """Return about how much a graph over these inputs keeps; 0 if that is not known."""
        return self.bytes_per_number * inputs.numel()

    def axis_of(self, layer: str, tensor: Tensor, samples: int) -> int:
        """Return where the samples lie in a layer's input: first, unless found out otherwise."""
        if self.infer:
            second = tensor.ndim > 1 and tensor.shape[0] != samples == tensor.shape[1]
            self.axes[layer] = int(second)
        axis: int = self.axes.get(layer, 0)
        return axis
