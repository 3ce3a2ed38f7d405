"""Gradients of single samples, for the parts of a model that have no closed form."""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedcurv.likelihoods import NegativeLogLikelihood
from fedcurv.parameters import accumulation_dtype

logger = logging.getLogger(__name__)

Squares = dict[str, Tensor]

# labels, and the weight that each sample's squared gradient gets under them; None stands for ones
WeightedLabels = tuple[Tensor, Tensor | None]

# per-sample gradients of one call of vmap take at most this many numbers: small enough for caches
_NUMBERS_AT_ONCE = 2**21


class SingleSamples:
    """Computes gradients of the losses of one sample at a time, vectorised where possible.

    Args:
        model: in eval mode.
        parameters: the trainable ones, by name.
        losses_of: one value per sample.

    Attributes:
        reached: names of the parameters that some sample's loss depended on in ``one_by_one``.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        losses_of: NegativeLogLikelihood,
    ) -> None:
        self._model = model
        self._losses_of = losses_of
        self._parameters = {name: p.detach() for name, p in parameters.items()}
        self._vectorises = True
        self.reached: set[str] = set()

    def squares(self, inputs: Tensor, labels: Sequence[WeightedLabels], names: set[str]) -> Squares:
        """Return Σ_n w_n (∂ℓ_n/∂p)² of some parameters, by vmap if that can run the model."""
        chosen, rest = self._divided(names)

        def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            outputs = self._call({**parameters, **rest}, x.unsqueeze(0))
            return self._losses_of(outputs, y.unsqueeze(0)).squeeze(0)

        per_sample = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
        size = max(1, _NUMBERS_AT_ONCE // sum(p.numel() for p in chosen.values()))
        total = {
            name: torch.zeros_like(p, dtype=accumulation_dtype(p)) for name, p in chosen.items()
        }
        for y, weights in labels:
            for start in range(0, len(inputs), size):
                part = slice(start, start + size)
                x_part, y_part = inputs[part], y[part]
                gradients = None
                if self._vectorises:
                    try:
                        gradients = per_sample(chosen, x_part, y_part)
                    except (RuntimeError, NotImplementedError) as error:
                        self._give_up_vmap(error)
                if gradients is None:
                    gradients = self.one_by_one(x_part, y_part, names)
                for name, gradient in gradients.items():
                    square = gradient.to(total[name].dtype).square()
                    total[name] += (
                        square.sum(0)
                        if weights is None
                        else torch.tensordot(weights[part].to(square), square, 1)
                    )
        return total

    def _give_up_vmap(self, error: Exception) -> None:
        self._vectorises = False
        logger.warning(
            "Fisher diagonal of %s: one backward pass per sample, since vmap cannot run the model: "
            "%s",
            type(self._model).__name__,
            (str(error).splitlines() or [type(error).__name__])[0],
        )

    def one_by_one(self, inputs: Tensor, labels: Tensor, names: set[str]) -> dict[str, Tensor]:
        """Return per-sample gradients of some parameters by plain autograd, a sample at a time."""
        chosen, rest = self._divided(names)
        leaves = {name: p.clone().requires_grad_() for name, p in chosen.items()}
        rows = []
        for x, y in zip(inputs, labels, strict=True):
            with torch.enable_grad():
                outputs = self._call({**leaves, **rest}, x.unsqueeze(0))
                loss = self._losses_of(outputs, y.unsqueeze(0)).squeeze(0)
            gradients: Sequence[Tensor | None] = [None] * len(leaves)
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            row = []
            for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
                if gradient is not None:
                    self.reached.add(name)
                row.append(torch.zeros_like(leaf) if gradient is None else gradient)
            rows.append(row)
        return {
            name: torch.stack(column)
            for name, column in zip(leaves, zip(*rows, strict=True), strict=True)
        }

    def _call(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        outputs: Tensor = functional_call(self._model, dict(parameters), (inputs,))
        return outputs

    def _divided(self, names: set[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the parameters of these names, and the others."""
        chosen = {name: p for name, p in self._parameters.items() if name in names}
        return chosen, {name: p for name, p in self._parameters.items() if name not in names}
