"""Gradients of single samples by running a module once more, for what has no closed form."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedcurv.errors import first_line
from fedcurv.parameters import fresh_gradients, plain
from fedcurv.per_sample.draws import Draws, DrawsError
from fedcurv.per_sample.nests import Nest, mapped, tensors_of
from fedcurv.per_sample.rounding import close
from fedcurv.per_sample.surroundings import same_buffers

logger = logging.getLogger(__name__)

# per-sample gradients of one call of vmap take at most this many numbers: small enough for caches
_NUMBERS_AT_ONCE = 2**21


@dataclass
class Call:
    """One call of a module, and what the loss makes of it.

    Attributes:
        args: nests of tensors and other values.
        kwargs: likewise.
        cotangents: the gradient of the summed loss by each tensor of ``tensors_of`` the outputs;
            None for one that the loss does not depend on.
        axes: built like (args, kwargs, cotangents): where the samples lie in a tensor; None for
            what all samples share.
        expected: the output, where it is one tensor with the samples first, to be met again.
        draws: what the call drew, to be given to it again; None if it did not draw.
        first: the number of its first sample among those of the draws.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    cotangents: list[Tensor | None]
    axes: tuple[Nest, Nest, list[int | None]]
    expected: Tensor | None = None
    draws: Draws | None = None
    first: int = 0

    def __len__(self) -> int:
        """Return the number of samples."""
        outputs = zip(self.cotangents, self.axes[2], strict=True)
        return next(v.shape[axis] for v, axis in outputs if v is not None and axis is not None)

    def split(self, size: int) -> Iterator["Call"]:
        """Yield calls with at most ``size`` samples each."""
        number = len(self)
        for first in range(0, number, size):
            part = partial(_narrowed, first, min(size, number - first))
            args, kwargs, cotangents = mapped(
                part, (self.args, self.kwargs, self.cotangents), self.axes
            )
            expected = None if self.expected is None else self.expected[first : first + size]
            of_draws = self.draws, self.first + first
            yield Call(args, kwargs, cotangents, self.axes, expected, *of_draws)


def _narrowed(first: int, length: int, value: Any, axis: int | None) -> Any:
    return value if axis is None else value.narrow(axis, first, length)


def _as_batch_of_one(value: Any, axis: int | None) -> Any:
    return value if axis is None else value.unsqueeze(axis)


class Replay:
    """Runs a module on one sample at a time, vectorised where possible.

    Args:
        name: of the module in its model.
        module: in eval mode.
        parameters: those whose gradients may be wanted, by name within the module.
        by_loop: names of modules that cannot be vectorised; gets this one's if it is found out.
        kind: the name of its class, for the log; None for the module's own.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        by_loop: set[str],
        *,
        kind: str | None = None,
    ) -> None:
        self._kind = kind or type(module).__name__
        self._name = name
        self._module = module
        self._parameters = parameters
        self._by_loop = by_loop

    def add_squares(self, call: Call, totals: Mapping[str, Tensor]) -> bool:
        """Add Σ_n (∂ℓ_n/∂p)² to the totals of those parameters that have one.

        Args:
            call: to be run once more.
            totals: where to add.

        Returns:
            whether the call's ``expected`` outputs were met; else the totals are worth nothing.
        """
        size = max(1, _NUMBERS_AT_ONCE // sum(total.numel() for total in totals.values()))
        for part in call.split(size):
            gradients = self._gradients(part, list(totals))
            if gradients is None:
                return False
            for name, gradient in gradients.items():
                totals[name].add_(gradient.detach().to(totals[name].dtype).square().sum(0))
        return True

    def _gradients(self, call: Call, names: Sequence[str]) -> dict[str, Tensor] | None:
        if self._name not in self._by_loop:
            try:
                gradients, outputs = self._at_once(call, names)
            except DrawsError:
                pass  # another order of samples and features than it has one by one
            except (RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
                self._tell(f"since vmap cannot run it: {first_line(error)}")
            else:
                if any(gradient.requires_grad for gradient in gradients.values()):
                    self._tell("since it uses parameters that vmap cannot see")
                elif self._meets(call, [outputs]):
                    return gradients
                elif call.draws is None:
                    return None
        try:
            return self._one_by_one(call, names)
        except DrawsError:
            return None

    def _tell(self, reason: str) -> None:
        self._by_loop.add(self._name)
        logger.warning(
            "Fisher diagonal of %s: one backward pass per sample, %s",
            self._kind,
            reason,
        )

    def _meets(self, call: Call, outputs: Sequence[Tensor]) -> bool:
        return call.expected is None or close(torch.cat(list(outputs)), call.expected)

    def _at_once(self, call: Call, names: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the gradients, and the outputs if they are one tensor to be met again.

        Gradients with a graph would show that the module reaches for a parameter itself, beside
        those that it is given.
        """

        def loss(
            parameters: dict[str, Tensor], *of_one_sample: Nest
        ) -> tuple[Tensor, Tensor | None]:
            args, kwargs, cotangents = mapped(_as_batch_of_one, of_one_sample, call.axes)
            values = {**fixed, **parameters}
            replaced = {full: values[name] for full, name in name_of.items()}
            outputs = functional_call(self._module, replaced, args, kwargs, tie_weights=False)
            weighted = _weighted(outputs, cotangents)
            met = weighted.detach() if call.expected is None else plain(outputs).detach()[0]
            return weighted, met

        first = {p: name for name, p in self._module.named_parameters()}
        fixed = {name: p.detach() for p, name in first.items()}
        # each place once: a module under two names would get back what it was lent, not its own
        name_of = {
            f"{prefix}.{local}" if prefix else local: first[p]
            for prefix, module in self._module.named_modules()
            for local, p in module._parameters.items()
            if p is not None
        }
        chosen = {name: self._parameters[name].detach() for name in names}
        per_sample = vmap(
            grad(loss, has_aux=True), in_dims=(None, *call.axes), randomness="different"
        )
        drawing = nullcontext() if call.draws is None else call.draws.of_each(call.first, len(call))
        # vmap would take the fused kernels sample by sample
        kernels = sdpa_kernel(SDPBackend.MATH)
        with kernels, drawing, torch.enable_grad(), same_buffers(self._module):
            gradients, outputs = per_sample(chosen, call.args, call.kwargs, call.cotangents)
        return gradients, outputs

    def _one_by_one(self, call: Call, names: Sequence[str]) -> dict[str, Tensor] | None:
        """Take a sample at a time, with the module's own parameters and plain autograd."""
        chosen = {name: self._parameters[name] for name in names}
        rows, met = [], []
        for one in call.split(1):
            drawing = nullcontext() if one.draws is None else one.draws.of_one(one.first)
            # a checkpoint runs its part once more in the backward pass
            with fresh_gradients(self._parameters.values()), torch.enable_grad(), drawing:
                outputs = self._module(*one.args, **one.kwargs)
                loss = _weighted(outputs, one.cotangents)
                if loss.requires_grad:
                    torch.autograd.backward(loss)
                rows.append([p.grad for p in chosen.values()])
            if call.expected is not None:
                met.append(plain(outputs).detach())
        if met and not self._meets(call, met):
            return None
        return {
            name: torch.stack([torch.zeros_like(p) if g is None else g for g in column])
            for (name, p), column in zip(chosen.items(), zip(*rows, strict=True), strict=True)
        }


def _weighted(outputs: Nest, cotangents: Sequence[Tensor | None]) -> Tensor:
    """Return ⟨f(x), v⟩, whose gradient by the parameters is the loss's."""
    pairs = zip(tensors_of(outputs), cotangents, strict=True)
    return torch.stack([(output * v).sum() for output, v in pairs if v is not None]).sum()
