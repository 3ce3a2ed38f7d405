"""Multi-head attention as four linear maps, and the attention between them."""

import torch
from torch import Tensor, nn

from fedcurv.per_sample.projections import Projection, StandIn


class AttentionByProjections(StandIn):
    """Stands in for an attention module's ``forward``.

    Args:
        module: see :meth:`fits`.

    Attributes:
        query, key, value: the projections of the inputs; that of the output is the module's own.
    """

    def __init__(self, module: nn.MultiheadAttention) -> None:
        self._attention = module
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
        super().__init__(module, {"query": self.query, "key": self.key, "value": self.value})

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Return whether this computes what the module does, as it is configured."""
        return (
            type(module) is nn.MultiheadAttention
            and module.bias_k is None
            and not module.add_zero_attn
            and "forward" not in vars(module)
        )

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
        module = self._attention
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
        dropout = module.dropout if module.training else 0.0  # where a forward turns it on
        weights = None
        if need_weights:
            scores = q @ k.mT * module.head_dim**-0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = nn.functional.dropout(weights, dropout, training=dropout > 0)
            heads = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            heads = nn.functional.scaled_dot_product_attention(q, k, v, mask, dropout)
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
            heads = self._attention.num_heads
            mask = mask.view(len(q), heads, *mask.shape[1:]) if per_head else mask
        if key_padding_mask is not None:
            padding = _added(key_padding_mask, q.dtype)[:, None, None]
            mask = padding if mask is None else mask + padding
        return mask


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers to add: -inf where a mask of truth values excludes."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)
