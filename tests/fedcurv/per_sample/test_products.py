import pytest
import torch

from fedcurv import onednn
from fedcurv.per_sample.rules import products
from fedcurv.per_sample.rules.products import add_squared_products


def expected(total, left, right):
    return total + sum((a @ b) ** 2 for a, b in zip(left.double(), right.double(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("large", [0, 2**20])
@pytest.mark.parametrize("cached", [1, 50, 2**20])
@pytest.mark.parametrize("sizes", [(5, 4, 7, 3), (3, 9, 1, 8), (1, 6, 5, 6)])
@pytest.mark.parametrize("transposed", [False, True])
def test_squared_products_are_summed(dtype, large, cached, sizes, transposed, monkeypatch):
    """Whether products are formed one by one, in parts, or in batches."""
    monkeypatch.setattr(products, "_LARGE_PRODUCT", large)
    monkeypatch.setattr(products, "_NUMBERS_IN_CACHE", cached)
    monkeypatch.setattr(products, "_NUMBERS_AT_ONCE", cached)
    torch.manual_seed(0)
    n, rows, inner, columns = sizes
    left, right = torch.randn(n, rows, inner, dtype=dtype), torch.randn(n, inner, columns).to(dtype)
    if transposed:
        left, right = left.mT.contiguous().mT, right.mT.contiguous().mT
    total = torch.rand(rows, columns, dtype=dtype)
    want = expected(total.double(), left, right)
    add_squared_products(total, left, right)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    assert (total.double() - want).norm() <= tolerance * want.norm()


def test_views_of_totals_and_of_matrices_are_fine(monkeypatch):
    monkeypatch.setattr(products, "_LARGE_PRODUCT", 0)
    monkeypatch.setattr(products, "_NUMBERS_IN_CACHE", 12)
    torch.manual_seed(0)
    whole, left, right = torch.zeros(4, 12), torch.randn(3, 5, 8)[:, ::2], torch.randn(3, 8, 12)
    part, right = whole[1:4, ::2], right[:, :, 1::2]
    want = expected(part.double(), left, right)
    add_squared_products(part, left, right)
    torch.testing.assert_close(part, want.float())
    assert not whole[0].any() and not whole[:, 1::2].any()


def test_matrices_with_gaps_are_copied_before_onednn_sees_them():
    full = torch.randn(3, 8, 12)
    for dense in (full, full.mT, full[1:]):
        assert products._dense(dense) is dense
    for gaps in (full[:, :, :5], full[:, ::2], full.mT[:, :5]):
        copied = products._dense(gaps)
        assert copied.is_contiguous()
        assert torch.equal(copied, gaps)


def test_without_onednn_torchs_own_product_serves(monkeypatch):
    onednn.works.cache_clear()
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    try:
        assert products._linear_for(torch.float32) is torch.nn.functional.linear
    finally:
        onednn.works.cache_clear()
