"""Rule for linear layers."""

from collections.abc import Mapping

from torch import Tensor, nn

from fedcurv.per_sample.rules.products import add_squared_products
from fedcurv.per_sample.rules.registry import LayerRule, register_rule


@register_rule(nn.Linear)
class Linear(LayerRule):
    """Positions between the samples' axis and the features are summed within a sample."""

    any_axis = True

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return one outer product per sample, or the sum of those of its positions."""
        x, g = _with_one_axis_of_positions(x), _with_one_axis_of_positions(g)
        return {"weight": g.mT @ x, "bias": g.sum(1)}

    def add_squares(
        self, module: nn.Module, x: Tensor, g: Tensor, totals: Mapping[str, Tensor]
    ) -> None:
        """Form the products of the positions, unless there is one alone."""
        if (summand := self.summand(x, g)) is not None:
            self.add_summed(x, summand, totals)
            return
        x, g = _with_one_axis_of_positions(x), _with_one_axis_of_positions(g)
        if "weight" in totals:
            add_squared_products(totals["weight"], g.mT, x)
        if "bias" in totals:
            totals["bias"].add_(g.sum(1).square_().sum(0))

    def summand(self, x: Tensor, g: Tensor) -> Tensor | None:
        """Return g², shape (N, features), if samples have one position."""
        one_position = x.ndim == 2 or x.shape[1:-1].numel() == 1
        return _without_positions(g).square() if one_position else None

    def add_summed(self, x: Tensor, summed: Tensor, totals: Mapping[str, Tensor]) -> None:
        """Add the outer products of squares, which are the squares of the outer products."""
        if "weight" in totals:
            totals["weight"].addmm_(summed.T, _without_positions(x).square())
        if "bias" in totals:
            totals["bias"].add_(summed.sum(0))


def _without_positions(t: Tensor) -> Tensor:
    return t if t.ndim == 2 else t.flatten(1)


def _with_one_axis_of_positions(t: Tensor) -> Tensor:
    return t.flatten(1, -2) if t.ndim > 2 else t.unsqueeze(1)
