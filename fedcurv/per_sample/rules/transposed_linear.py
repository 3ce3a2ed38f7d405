"""Rule for linear layers whose weight is (inputs, outputs), as transformers' ``Conv1D``."""

from collections.abc import Mapping

from torch import Tensor, nn

from fedcurv.per_sample.rules.linear import Linear
from fedcurv.per_sample.rules.registry import register_rule_by_name


@register_rule_by_name("transformers.pytorch_utils.Conv1D")
class TransposedLinear(Linear):
    """The rule of linear layers with the weight's total seen from the other side."""

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return those of a linear layer, transposed."""
        gradients = super().gradients(module, x, g)
        return {**gradients, "weight": gradients["weight"].mT}

    def add_squares(
        self, module: nn.Module, x: Tensor, g: Tensor, totals: Mapping[str, Tensor]
    ) -> None:
        """Add as a linear layer does."""
        super().add_squares(module, x, g, _transposed(totals))

    def add_summed(self, x: Tensor, summed: Tensor, totals: Mapping[str, Tensor]) -> None:
        """Add as a linear layer does."""
        super().add_summed(x, summed, _transposed(totals))

    def new_total(self, parameter: Tensor) -> Tensor:
        """Return zeros that lie in memory as a linear layer's weight does."""
        total = super().new_total(parameter.mT if parameter.ndim == 2 else parameter)
        return total.mT if parameter.ndim == 2 else total


def _transposed(totals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: total.mT if name == "weight" else total for name, total in totals.items()}
