"""What goes by closed forms, what by vmap, and that the self-check tells them apart."""

import itertools
import logging

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedcurv import fisher_diagonal, layer_rules, per_sample
from fedcurv.single_samples import SingleSamples
from tests.oracles import fisher as oracle
from tests.zoo import CLASSES, FLAT, SEQUENCE, ZOO, embedding


@pytest.fixture(autouse=True)
def forget_checks(monkeypatch):
    monkeypatch.setattr(per_sample, "_findings", {})


@pytest.fixture
def by_vmap(monkeypatch):
    """The names of the parameters that took the slow way."""
    names = set()
    original = SingleSamples.squares

    def spy(self, inputs, labels, chosen):
        names.update(chosen)
        return original(self, inputs, labels, chosen)

    monkeypatch.setattr(SingleSamples, "squares", spy)
    return names


def everything(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


EXPECTED_SLOW = {
    "transposed convolution": {"0.weight", "0.bias"},
    "prelu": {"1.weight"},
    "attention": {
        "attention.in_proj_weight",
        "attention.in_proj_bias",
        "attention.out_proj.weight",
        "attention.out_proj.bias",
    },
    "transformer layer": {
        "0.self_attn.in_proj_weight",
        "0.self_attn.in_proj_bias",
        "0.self_attn.out_proj.weight",
        "0.self_attn.out_proj.bias",
    },
    "lstm": {f"lstm.{kind}_{part}_l0" for kind in ("weight", "bias") for part in ("ih", "hh")},
    "tied weights": {"first.weight"},
    "module used twice": {"layer.weight", "layer.bias"},
    "functional use and a raw parameter": {"scale", "layer.weight", "layer.bias"},
    "a value that is read": {"scale", "layer.weight", "layer.bias"},
}


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("self_check", [True, False])
def test_only_what_has_no_closed_form_takes_the_slow_way(name, self_check, by_vmap, caplog):
    make, shape = ZOO[name]
    torch.manual_seed(0)
    model = make().double()
    batch = torch.randn(shape, dtype=torch.float64), torch.randint(0, CLASSES, shape[:1])
    fisher_diagonal(model, [batch], self_check=self_check)
    # without the check nobody knows that a parameter is idle, and the slow way finds zeros
    idle = {"idle.weight", "idle.bias"} if name == "unused parameters" and not self_check else set()
    assert by_vmap == EXPECTED_SLOW.get(name, set()) | idle
    assert "disagree" not in caplog.text


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_embeddings_without_padding_have_a_closed_form(padding_idx, by_vmap):
    torch.manual_seed(0)
    model = embedding(padding_idx).double()
    fisher_diagonal(model, [(torch.randint(0, 7, (5, 4)), torch.randint(0, CLASSES, (5,)))])
    assert by_vmap == ({"0.weight"} if padding_idx else set())


def test_slow_modules_are_named_once(caplog):
    caplog.set_level(logging.INFO, "fedcurv.per_sample")
    make, shape = ZOO["attention"]
    batch = torch.randn(shape), torch.randint(0, CLASSES, shape[:1])
    fisher_diagonal(make(), [batch, batch, batch])
    (record,) = caplog.records
    assert record.getMessage() == (
        "Fisher diagonal of Attention: no closed form for attention, attention.out_proj; vmap is "
        "used for them"
    )


@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_a_wrong_rule_is_found_out_and_replaced(kind, by_vmap, monkeypatch, caplog):
    def forgets_the_square(module, x, g):
        return {"weight": (g.T @ x).square(), "bias": g.sum(0).square()}

    monkeypatch.setitem(layer_rules._RULES, nn.Linear, forgets_the_square)
    torch.manual_seed(0)
    model = ZOO["linear"][0]().double()
    inputs, labels = torch.randn(FLAT, dtype=torch.float64), torch.randint(0, CLASSES, FLAT[:1])
    got = fisher_diagonal(model, [(inputs, labels)], kind=kind)
    assert by_vmap == everything(model)
    assert "the rules for 0.bias, 0.weight, 2.bias, 2.weight disagree" in caplog.text
    expected = (
        oracle.empirical(model, inputs, labels)
        if kind == "empirical"
        else oracle.exact(model, inputs)
    )
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name])
    unchecked = fisher_diagonal(model, [(inputs, labels)], kind=kind, self_check=False)
    assert not torch.allclose(unchecked["0.weight"], expected["0.weight"])


class AlsoUsedOutside(nn.Module):
    """The module is called, and its weight is used once more: no count of calls shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.layer(x)) @ self.layer.weight)


class TimeFirst(nn.Module):
    """Works on (T, N, F) inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.layer(x.transpose(0, 1))).mean(0))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(checkpoint(self.block, x, use_reentrant=False))


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.layer(input=x)))


class Flattening(nn.Module):
    """Mixes samples and positions into one axis for a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.layer(x.flatten(0, 1)))
        return self.head(hidden.view(*x.shape[:2], 6).mean(1))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (AlsoUsedOutside, FLAT),
        (TimeFirst, SEQUENCE),
        (TimeFirst, (4, 4, 6)),  # as many positions as samples
        (TimeFirst, (2, 2, 6)),
        (Checkpointed, FLAT),
        (ByKeyword, FLAT),
        (Flattening, SEQUENCE),
    ],
)
def test_unusual_uses_of_layers_are_right_too(make, shape):
    torch.manual_seed(0)
    model = make().double()
    inputs, labels = torch.randn(shape, dtype=torch.float64), torch.randint(0, CLASSES, shape[:1])
    got = fisher_diagonal(model, [(inputs, labels)])
    for name, expected in oracle.empirical(model, inputs, labels).items():
        torch.testing.assert_close(got[name], expected)


class Routed(nn.Module):
    """Experts that some samples need and others do not."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)])
        self.slopes = nn.ModuleList([nn.PReLU(), nn.PReLU()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x[:, 0] > 0).all()):
            return self.slopes[0](self.experts[0](x))
        return self.slopes[1](self.experts[1](x))


def test_parameters_that_the_first_samples_do_not_use_are_not_forgotten():
    torch.manual_seed(0)
    model = Routed().double()
    inputs, labels = torch.randn(6, 6, dtype=torch.float64), torch.randint(0, CLASSES, (6,))
    inputs[:, 0] = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    batches = [(inputs[:3], labels[:3]), (inputs[3:], labels[3:])]
    got = fisher_diagonal(model, batches)
    for name, expected in oracle.empirical(model, inputs, labels).items():
        assert bool(expected.any())
        torch.testing.assert_close(got[name], expected)


def test_a_slope_that_the_first_samples_do_not_touch_is_not_forgotten():
    torch.manual_seed(0)
    model = nn.Sequential(nn.PReLU(), nn.Linear(6, CLASSES)).double()
    inputs, labels = torch.randn(6, 6, dtype=torch.float64), torch.randint(0, CLASSES, (6,))
    inputs[:2].abs_()
    got = fisher_diagonal(model, [(inputs, labels)])
    expected = oracle.empirical(model, inputs, labels)
    assert bool(expected["0.weight"] > 0)
    torch.testing.assert_close(got["0.weight"], expected["0.weight"])


def test_a_check_on_nan_is_not_remembered(by_vmap):
    make, shape = ZOO["linear"]
    labels = torch.randint(0, CLASSES, shape[:1])
    with pytest.raises(ValueError, match="batch 0: expected finite losses"):
        fisher_diagonal(make(), [(torch.full(shape, torch.nan), labels)])
    by_vmap.clear()
    fisher_diagonal(make(), [(torch.randn(shape), labels)])
    assert not by_vmap


def test_a_check_is_remembered_for_models_of_one_structure(monkeypatch):
    checks = []
    original = SingleSamples.one_by_one

    def spy(self, inputs, *more):
        checks.append(len(inputs))
        return original(self, inputs, *more)

    monkeypatch.setattr(SingleSamples, "one_by_one", spy)
    batch = torch.randn(FLAT), torch.randint(0, CLASSES, FLAT[:1])
    for _ in range(3):
        fisher_diagonal(ZOO["linear"][0](), [batch, batch])
    assert checks == [2]
    fisher_diagonal(ZOO["residual"][0](), [batch])
    assert checks == [2, 2]


def test_no_hook_stays_behind():
    model = ZOO["conv2d"][0]()
    shape = ZOO["conv2d"][1]
    fisher_diagonal(model, [(torch.randn(shape), torch.randint(0, CLASSES, shape[:1]))])
    with pytest.raises(RuntimeError):
        fisher_diagonal(model, [(torch.randn(3, 99), torch.zeros(3, dtype=torch.long))])
    for module in model.modules():
        assert not module._forward_hooks
    assert all(p.grad is None for p in model.parameters())


CONVOLUTIONS = [
    (dims, mode, padding, dilation, stride, groups)
    for dims, mode, padding, dilation, stride, groups in itertools.product(
        (1, 2, 3), ("zeros", "reflect", "circular"), (0, 1, "valid", "same"), (1, 2), (1, 2), (1, 2)
    )
    if not (padding == "same" and stride == 2)  # torch has no such convolution
]


@pytest.mark.parametrize(("dims", "mode", "padding", "dilation", "stride", "groups"), CONVOLUTIONS)
def test_convolutions_of_all_settings(dims, mode, padding, dilation, stride, groups, by_vmap):
    torch.manual_seed(0)
    make = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    settings = {"padding": padding, "padding_mode": mode, "dilation": dilation}
    layer = make(2, 4, 2, stride=stride, groups=groups, **settings).double()
    inputs = torch.randn(3, 2, *[5] * dims, dtype=torch.float64)
    features = layer(inputs).flatten(1).shape[1]
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(features, CLASSES).double())
    labels = torch.randint(0, CLASSES, (3,))
    got = fisher_diagonal(model, [(inputs, labels)], self_check=False)
    for name, expected in oracle.empirical(model, inputs, labels).items():
        torch.testing.assert_close(got[name], expected)
    assert not by_vmap


@pytest.mark.parametrize("way", ["_all_at_once", "_one_by_one", "_by_grouping"])
@pytest.mark.parametrize("cache", [1, 100, 2**18])
@pytest.mark.parametrize("padding", [(0, 0), (2, 1)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("dilation", [(1, 1), (1, 2)])
def test_all_ways_for_convolutions_agree(way, cache, padding, stride, dilation, monkeypatch):
    """Which of them is taken depends on shapes and device."""
    monkeypatch.setattr(layer_rules, "_NUMBERS_IN_CACHE", cache)
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, (3, 2), padding=padding, stride=stride, dilation=dilation).double()
    x = torch.randn(4, 3, 7, 8, dtype=torch.float64)
    output = layer(x)
    g = torch.randn_like(output)
    total = torch.ones_like(layer.weight)
    getattr(layer_rules, way)(layer, x, g, padding, total)
    expected = torch.ones_like(total)
    for n in range(4):
        (gradient,) = torch.autograd.grad(layer(x[n]), layer.weight, g[n])
        expected += gradient**2
    torch.testing.assert_close(total, expected)


def test_torchvisions_resnet18_with_and_without_batch_norm(by_vmap):
    import torchvision

    torch.manual_seed(0)
    inputs, labels = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.tensor([1, 4])
    for norm in (nn.BatchNorm2d, lambda channels: nn.GroupNorm(8, channels)):
        model = torchvision.models.resnet18(num_classes=5, norm_layer=norm).double()
        got = fisher_diagonal(model, [(inputs, labels)])
        expected = oracle.empirical(model, inputs, labels)
        for name, tensor in got.items():
            error = (tensor - expected[name]).norm() / expected[name].norm()
            assert error <= 1e-9, name
    assert not by_vmap
