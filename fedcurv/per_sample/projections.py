"""Modules whose weights are multiplied by without calling a module, and what stands in for them.

No hook can see such products. While the squares are formed the module's ``forward`` is replaced by
the same computation with its linear maps as modules, for which there is a closed form.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fedcurv.per_sample.rules.linear import Linear
from fedcurv.per_sample.rules.registry import register_rule

# the name of another module's parameter, and which of its rows
Source = tuple[str, slice]


class Projection(nn.Module):
    """A linear map whose weight and bias are rows of another module's parameters.

    Args:
        owner: the other module.
        sources: of ``weight`` and ``bias``; the latter may be None there.
    """

    def __init__(self, owner: nn.Module, sources: dict[str, Source]) -> None:
        super().__init__()
        self._owner = [owner]  # in a list it is no sub-module
        self.sources = sources

    def forward(self, x: Tensor) -> Tensor:
        """Return x·Wᵀ + b."""
        weight, bias = self.rows("weight"), self.rows("bias")
        assert weight is not None
        return nn.functional.linear(x, weight, bias)

    def rows(self, local: str) -> Tensor | None:
        """Return the weight or the bias; None for a bias that there is not."""
        name, rows = self.sources[local]
        parameter = getattr(self._owner[0], name, None)
        return None if parameter is None else parameter[rows]


register_rule(Projection)(Linear)


class StandIn:
    """Stands in for a module's ``forward``.

    Args:
        module: whose.
        projections: of the module's own parameters, by a name for the log.

    Attributes:
        under_vmap: whether ``torch.func.vmap`` can run it.
    """

    under_vmap = True

    def __init__(self, module: nn.Module, projections: Mapping[str, Projection]) -> None:
        self._module = module
        self.projections = projections

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Replace the module's ``forward``."""
        self._module.forward = self
        try:
            yield
        finally:
            del self._module.forward

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let the module's own ``forward`` be called, inside of :meth:`in_place`."""
        del self._module.forward
        try:
            yield
        finally:
            self._module.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module would."""
        raise NotImplementedError
