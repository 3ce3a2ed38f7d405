"""Multi-head attention as calls of linear layers, for which there is a closed form.

``torch.nn.MultiheadAttention`` multiplies by its weights without calling a module, so that no hook
can see it. While the squares are formed its ``forward`` is replaced by the same computation with
its four projections as modules.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
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
        weight, bias = self._rows("weight"), self._rows("bias")
        assert weight is not None
        return nn.functional.linear(x, weight, bias)

    def _rows(self, local: str) -> Tensor | None:
        name, rows = self.sources[local]
        parameter = getattr(self._owner[0], name)
        return None if parameter is None else parameter[rows]


register_rule(Projection)(Linear)


class AttentionByProjections:
    """Stands in for a module's ``forward``.

    Args:
        module: see :meth:`fits`.

    Attributes:
        query, key, value: the projections of the inputs; that of the output is the module's own.
    """

    def __init__(self, module: nn.MultiheadAttention) -> None:
        self._module = module
        size, packed = module.embed_dim, module.in_proj_weight is not None
        self.query, self.key, self.value = (
            Projection(
                module,
                {
                    "weight": ("in_proj_weight", rows)
                    if packed
                    else (f"{name}_proj_weight", slice(None)),
                    "bias": ("in_proj_bias", rows),
                },
            )
            for name, rows in zip(
                "qkv", (slice(i * size, (i + 1) * size) for i in range(3)), strict=True
            )
        )

    def projections(self) -> dict[str, Projection]:
        """Return those that are not the module's own, by name."""
        return {"query": self.query, "key": self.key, "value": self.value}

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Return whether this computes what the module does, as it is configured."""
        return (
            type(module) is nn.MultiheadAttention
            and module.bias_k is None
            and not module.add_zero_attn
            and "forward" not in vars(module)
        )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Replace the module's ``forward``."""
        self._module.forward = self  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self._module.forward

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the module would; ``is_causal`` only says what ``attn_mask`` holds."""
        module = self._module
        if query.ndim != 3 or query.is_nested:
            return type(module).forward(
                module,
                query,
                key,
                value,
                key_padding_mask,
                need_weights,
                attn_mask,
                average_attn_weights,
                is_causal,
            )
        if not module.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = (
            projection(x).view(*x.shape[:2], module.num_heads, module.head_dim).transpose(1, 2)
            for projection, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        mask = self._mask(q, attn_mask, key_padding_mask)
        weights = None
        if need_weights:
            scores = q @ k.mT * module.head_dim**-0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            heads = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            heads = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        output = module.out_proj(heads.transpose(1, 2).flatten(2))
        return output if module.batch_first else output.transpose(0, 1), weights

    def _mask(
        self, q: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None
    ) -> Tensor | None:
        """Return what is added to the scores (N, heads, L, S), or None."""
        mask = None
        if attn_mask is not None:
            per_head = attn_mask.ndim == 3
            mask = _added(attn_mask, q.dtype)
            mask = mask.view(len(q), self._module.num_heads, *mask.shape[1:]) if per_head else mask
        if key_padding_mask is not None:
            padding = _added(key_padding_mask, q.dtype)[:, None, None]
            mask = padding if mask is None else mask + padding
        return mask


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers to add: -inf where a mask of truth values excludes."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)
