"""Rule for tables of embeddings."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedcurv.per_sample.rules.registry import LayerRule, register_rule


@register_rule(nn.Embedding)
class Embedding(LayerRule):
    """What a sample does to a row is summed over the positions that look the row up."""

    any_axis = True

    def fits(self, module: nn.Module) -> bool:
        """Return whether nothing but the rows that are looked up decides."""
        assert isinstance(module, nn.Embedding)
        return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return tables that are zero but for the rows that a sample uses."""
        rows, dimensions = _table(module)
        table = g.new_zeros(len(x) * rows, dimensions)
        first_row = rows * torch.arange(len(x), device=x.device).view(-1, *[1] * (x.ndim - 1))
        table.index_add_(0, (x + first_row).flatten(), _without_padding(module, x, g))
        return {"weight": table.view(len(x), rows, dimensions)}

    def add_squares(
        self, module: nn.Module, x: Tensor, g: Tensor, totals: Mapping[str, Tensor]
    ) -> None:
        """Number the distinct rows of each sample, in shapes that do not depend on values."""
        _, dimensions = _table(module)
        g = _without_padding(module, x, g)
        tokens, order = x.reshape(len(x), -1).sort(dim=1)  # one index a sample has no further axis
        first = torch.arange(len(x), device=x.device).unsqueeze(1) * tokens.shape[1]
        is_new = tokens[:, 1:] != tokens[:, :-1]
        place = (first + nn.functional.pad(is_new.cumsum(1), (1, 0))).flatten()
        per_sample = g.new_zeros(len(place), dimensions)
        per_sample.index_add_(0, place, g[(first + order).flatten()])
        row_of_place = torch.zeros_like(place).scatter_(0, place, tokens.flatten())
        totals["weight"].index_add_(0, row_of_place, per_sample.square_())


def _table(module: nn.Module) -> tuple[int, int]:
    assert isinstance(module, nn.Embedding)
    return module.num_embeddings, module.embedding_dim


def _without_padding(module: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """Return g by position, zero where the table's row for padding was looked up."""
    assert isinstance(module, nn.Embedding)
    if module.padding_idx is not None:
        g = g.masked_fill((x == module.padding_idx).unsqueeze(-1), 0)
    return g.flatten(0, -2)
