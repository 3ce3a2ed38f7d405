"""Negative log-likelihoods, one value per sample: what the Fisher information is taken of."""

from collections.abc import Callable

from torch import Tensor, nn

# maps outputs (N, ...) and targets (N, ...) to N values
NegativeLogLikelihood = Callable[[Tensor, Tensor], Tensor]


def categorical(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each sample's cross-entropy, summed over its positions if it has several."""
    losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
    return losses.flatten(1).sum(1) if losses.ndim > 1 else losses


def gaussian(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return ½‖y − f(x)‖² of each sample: regression with unit variance, less a constant."""
    if outputs.shape != targets.shape:
        raise ValueError(
            f"expected targets in the shape of the outputs, {tuple(outputs.shape)}, got "
            f"{tuple(targets.shape)}"
        )
    squares = 0.5 * (outputs - targets).square()
    return squares.flatten(1).sum(1) if squares.ndim > 1 else squares


def per_sample(likelihood: NegativeLogLikelihood) -> NegativeLogLikelihood:
    """Return the same function, which refuses to return anything but one value per sample."""

    def checked(outputs: Tensor, targets: Tensor) -> Tensor:
        losses = likelihood(outputs, targets)
        if losses.shape != targets.shape[:1]:
            raise ValueError(
                f"expected a loss with one value per sample, shape {tuple(targets.shape[:1])}, got "
                f"shape {tuple(losses.shape)}; set reduction='none' and sum over the other axes"
            )
        return losses

    return checked


LIKELIHOODS: dict[str, NegativeLogLikelihood] = {"categorical": categorical, "gaussian": gaussian}
