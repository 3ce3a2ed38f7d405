"""Attention by its projections against torch's own forward pass."""

import pytest
import torch
from torch import nn

from fedcurv.per_sample.attention import AttentionByProjections

N, L, S, E, HEADS = 3, 4, 5, 6, 2
FORBIDDEN = torch.rand(L, S, generator=torch.Generator().manual_seed(0)) > 0.7
PADDING = torch.zeros(N, S, dtype=torch.bool).index_fill_(1, torch.tensor([4]), True)

MASKS = {
    "none": {},
    "truth values": {"attn_mask": FORBIDDEN},
    "numbers": {"attn_mask": torch.randn(L, S).double()},
    "for each head": {"attn_mask": torch.randn(N * HEADS, L, S).double()},
    "padding": {"key_padding_mask": PADDING},
    "padding in numbers": {"key_padding_mask": torch.randn(N, S).double()},
    "both": {"attn_mask": FORBIDDEN, "key_padding_mask": PADDING},
    "causal": {"attn_mask": torch.ones(L, S).tril().log().double(), "is_causal": True},
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 3, "vdim": 7}, {"bias": False}])
def test_it_computes_what_the_module_computes(mask, need_weights, average, batch_first, sizes):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(E, HEADS, batch_first=batch_first, dropout=0.5, **sizes)
    module = module.double().eval()
    if module.in_proj_bias is not None:
        module.in_proj_bias.data.normal_()
    query = torch.randn(N, L, E).double()
    key = torch.randn(N, S, sizes.get("kdim", E)).double()
    value = torch.randn(N, S, sizes.get("vdim", E)).double()
    if not batch_first:
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    options = {"need_weights": need_weights, "average_attn_weights": average, **MASKS[mask]}
    expected = module(query, key, value, **options)
    with AttentionByProjections(module).in_place():
        got = module(query, key, value, **options)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_dropout_that_a_forward_turns_on_is_drawn_as_the_module_draws_it(need_weights, batch_first):
    module = nn.MultiheadAttention(E, HEADS, batch_first=batch_first, dropout=0.5).double()
    x = torch.randn(N, L, E).double()
    torch.manual_seed(0)
    expected = module(x, x, x, need_weights=need_weights)
    torch.manual_seed(0)
    with AttentionByProjections(module).in_place():
        got = module(x, x, x, need_weights=need_weights)
    torch.testing.assert_close(got, expected)


def test_a_sequence_without_an_axis_of_samples_is_left_to_the_module():
    module = nn.MultiheadAttention(E, HEADS).eval()
    x = torch.randn(L, E)
    expected = module(x, x, x)
    with AttentionByProjections(module).in_place():
        torch.testing.assert_close(module(x, x, x), expected)


def test_what_it_does_not_compute_is_not_replaced():
    class Subclass(nn.MultiheadAttention):
        pass

    patched = nn.MultiheadAttention(E, HEADS)
    patched.forward = lambda *_: None
    for module in (
        nn.MultiheadAttention(E, HEADS, add_bias_kv=True),
        nn.MultiheadAttention(E, HEADS, add_zero_attn=True),
        Subclass(E, HEADS),
        patched,
        nn.Linear(2, 2),
    ):
        assert not AttentionByProjections.fits(module)
    assert AttentionByProjections.fits(nn.MultiheadAttention(E, HEADS))
