"""Which parameters go by closed forms, which by replaying what, and that all ways are right."""

import logging

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedcurv import fisher_diagonal
from fedcurv.per_sample import check
from tests.oracles import fisher as oracle
from tests.zoo import CLASSES, FLAT, SEQUENCE, ZOO, LayerScale, inputs_for


@pytest.fixture(autouse=True)
def forget_checks(monkeypatch):
    monkeypatch.setattr(check, "_remembered", {})


def problem(make, shape):
    torch.manual_seed(0)
    inputs, labels = torch.randn(shape, dtype=torch.float64), torch.randint(0, CLASSES, shape[:1])
    return make().double(), inputs, labels


def assert_right(model, inputs, labels, **options):
    got = fisher_diagonal(model, [(inputs, labels)], **options)
    for name, expected in oracle.empirical(model, inputs, labels).items():
        torch.testing.assert_close(got[name], expected)


FUNCTIONAL = {("", "layer.weight"), ("", "layer.bias")}
EXPECTED = {
    "attention with more keys": {
        *(("attention", name) for name in ("in_proj_weight", "in_proj_bias", "bias_k", "bias_v")),
        # its module is never called: attention multiplies by the weight itself
        *(("", f"attention.out_proj.{name}") for name in ("weight", "bias")),
    },
    "weight norm": {("", f"0.parametrizations.weight.original{i}") for i in (0, 1)},
    "functional use and a raw parameter": FUNCTIONAL,
    "a value that is read": FUNCTIONAL,
}


@pytest.mark.parametrize("name", ZOO)
def test_only_what_has_no_closed_form_is_replayed(name, replayed, caplog):
    model, _, labels = problem(*ZOO[name])
    fisher_diagonal(model, [(inputs_for(name), labels)])
    replayed.clear()  # the check tries what it then remembers
    fisher_diagonal(model, [(inputs_for(name), labels)])
    assert replayed == EXPECTED.get(name, set())
    if name != "weight norm":  # which computes the weight in a module that sees no samples
        assert "disagree" not in caplog.text


@pytest.mark.parametrize("name", ZOO)
def test_all_is_right_without_the_self_check_too(name):
    model, _, labels = problem(*ZOO[name])
    assert_right(model, inputs_for(name), labels, self_check=False)


class Product(nn.Module):
    """Multiplies by a matrix of its own, without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(6))

    def forward(self, x):
        return x @ self.matrix


def test_slow_modules_are_named_once(caplog):
    caplog.set_level(logging.INFO, "fedcurv.per_sample")
    batch = torch.randn(9, 6), torch.arange(9) % CLASSES
    model = nn.Sequential(nn.Linear(6, 6), Product(), nn.Linear(6, CLASSES))
    fisher_diagonal(model, [batch, batch, batch])
    (record,) = caplog.records
    assert record.getMessage() == (
        "Fisher diagonal of Sequential: no closed form for 1; single samples are run through these "
        "modules"
    )


def test_what_vmap_cannot_run_is_tried_once(caplog):
    model, inputs, labels = problem(*ZOO["a value that is read"])
    for _ in range(3):
        assert_right(model, inputs, labels)
    warnings = [r.getMessage() for r in caplog.records if "vmap" in r.getMessage()]
    assert len(warnings) == 1
    assert "ReadsAValue: one backward pass per sample, since vmap cannot run it" in warnings[0]


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
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.block = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.head = nn.Linear(6, CLASSES)
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(checkpoint(self.block, self.first(x), use_reentrant=self.reentrant))


class CheckpointedTwice(Checkpointed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = checkpoint(self.block, self.first(x), use_reentrant=self.reentrant)
        return self.head(checkpoint(self.block, x, use_reentrant=self.reentrant))


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


class TiedAndFlattening(Flattening):
    """One use of a weight is as the closed form expects it, the other is not."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(6, 6)
        self.again.weight = self.layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.again(x))


class PartlyWithoutGradients(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self.layer(x)
        return self.head(torch.tanh(self.layer(x)))


class Gated(nn.Module):
    """A module of one's own with keywords, a shared tensor, a flag and a nest for its output."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.inner = nn.Parameter(torch.randn(6)), nn.Linear(6, 6)

    def forward(self, x, *, others, shift, strong=False):
        y = torch.sigmoid(self.gate * x) * self.inner(others["a"]) + shift
        return {"y": 2 * y if strong else y, "count": 3, "rest": (x * self.gate, [others["a"]])}


class WithGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gated, self.head = Gated(), nn.Linear(6, CLASSES)
        self.register_buffer("shift", torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.gated(x, others={"a": x.square()}, shift=self.shift, strong=True)
        return self.head(result["y"] + result["rest"][0])


class BatchStatistics(nn.Module):
    """Takes its statistics from the batch even in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(2, track_running_stats=False), nn.Linear(2, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x).relu().flatten(2).mean(2))


class InPlaceAfterTheFirstLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x.mul_(2)
        x += 1
        x.relu_()
        return self.head(self.norm(x).flatten(2).mean(2))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (AlsoUsedOutside, FLAT),
        (TimeFirst, SEQUENCE),
        (TimeFirst, (4, 4, 6)),  # as many positions as samples
        (TimeFirst, (2, 2, 6)),
        (lambda: Checkpointed(reentrant=False), FLAT),
        (lambda: CheckpointedTwice(reentrant=False), FLAT),
        (ByKeyword, FLAT),
        (Flattening, SEQUENCE),
        (TiedAndFlattening, SEQUENCE),
        (PartlyWithoutGradients, FLAT),
        (WithGate, FLAT),
        (InPlaceAfterTheFirstLayer, (4, 2, 5, 5)),
        (BatchStatistics, (4, 2, 5, 5)),
        (lambda: nn.Sequential(nn.Embedding(7, 6), nn.Flatten(), nn.Linear(24, 3)), None),
        (lambda: nn.Sequential(nn.PReLU(4), nn.Flatten(), nn.Linear(24, 3)), SEQUENCE),
        (lambda: nn.Sequential(LayerScale(6), nn.Linear(6, 3)), (1, 6)),
    ],
)
def test_unusual_uses_of_layers_are_right_too(make, shape):
    model, inputs, labels = problem(make, shape or (5, 4))
    inputs = inputs if shape else torch.randint(0, 7, (5, 4))
    assert_right(model, inputs, labels)


@pytest.mark.parametrize("make", [Checkpointed, CheckpointedTwice])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_checkpointed_blocks_are_right(make, reentrant, kind, replayed):
    model, inputs, labels = problem(lambda: make(reentrant), FLAT)
    got = fisher_diagonal(model, [(inputs, labels)], kind=kind)
    # a reentrant checkpoint hides from the graph what it computes
    assert bool(replayed) == reentrant
    with_plain_block = make(reentrant=False).double()
    with_plain_block.load_state_dict(model.state_dict())
    for name, expected in (
        oracle.exact(with_plain_block, inputs)
        if kind == "exact"
        else oracle.empirical(with_plain_block, inputs, labels)
    ).items():
        torch.testing.assert_close(got[name], expected)


@pytest.mark.parametrize("positions", [3, 5])
def test_samples_are_found_on_the_second_axis_whatever_its_length(positions, replayed):
    """The check saw (T, 2, F); five samples at five positions must not be taken the wrong way."""
    model, inputs, labels = problem(TimeFirst, (5, positions, 6))
    fisher_diagonal(model, [(inputs[:, :3], labels)])
    replayed.clear()
    assert_right(model, inputs, labels)
    assert not replayed


class Routed(nn.Module):
    """Experts that some samples need and others do not."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)])
        self.slopes = nn.ModuleList([nn.PReLU(), LayerScale(CLASSES)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x[:, 0] > 0).all()):
            return self.slopes[0](self.experts[0](x))
        return self.slopes[1](self.experts[1](x))


def test_parameters_that_the_first_samples_do_not_use_are_not_forgotten():
    model, inputs, labels = problem(Routed, (6, 6))
    inputs[:, 0] = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    batches = [(inputs[:3], labels[:3]), (inputs[3:], labels[3:])]
    got = fisher_diagonal(model, batches)
    for name, expected in oracle.empirical(model, inputs, labels).items():
        assert bool(expected.any())
        torch.testing.assert_close(got[name], expected)


def test_a_slope_that_the_first_samples_do_not_touch_is_not_forgotten():
    model, inputs, labels = problem(lambda: nn.Sequential(nn.PReLU(), nn.Linear(6, CLASSES)), FLAT)
    inputs[:2].abs_()
    assert_right(model, inputs, labels)
    assert fisher_diagonal(model, [(inputs, labels)])["0.weight"] > 0


@pytest.mark.parametrize("name", ["conv2d", "transformer layer", "group norm"])
def test_autocast_is_followed_and_sums_stay_in_float32(name, replayed):
    make, shape = ZOO[name]
    torch.manual_seed(0)
    model, inputs = make(), torch.randn(shape)
    labels = torch.randint(0, CLASSES, shape[:1])
    expected = fisher_diagonal(model, [(inputs, labels)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = fisher_diagonal(model, [(inputs, labels)])
    assert not replayed
    for parameter, tensor in got.items():
        assert tensor.dtype == torch.float32
        if expected[parameter].norm() > 1e-6 * max(t.norm() for t in expected.values()):
            # eight bits of every activation and gradient
            assert (tensor - expected[parameter]).norm() <= 0.3 * expected[parameter].norm()


def test_a_model_in_bfloat16_has_its_information_in_float32():
    model, inputs, labels = problem(*ZOO["linear"])
    expected = fisher_diagonal(model, [(inputs, labels)])
    got = fisher_diagonal(model.bfloat16(), [(inputs.bfloat16(), labels)])
    for name, tensor in got.items():
        assert tensor.dtype == torch.float32
        assert (tensor - expected[name]).norm() <= 0.1 * expected[name].norm()


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_models_are_run_as_they_are_written(whole, replayed):
    model, inputs, labels = problem(*ZOO["linear"])
    expected = fisher_diagonal(model, [(inputs, labels)])
    if whole:
        got = fisher_diagonal(torch.compile(model, backend="eager"), [(inputs, labels)])
        got = {name.removeprefix("_orig_mod."): tensor for name, tensor in got.items()}
    else:
        model[0].compile(backend="eager")
        got = fisher_diagonal(model, [(inputs, labels)])
    assert not replayed
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name])


def test_no_hook_and_no_replaced_method_stays_behind():
    make, shape = ZOO["transformer layer"]
    model = make()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    fisher_diagonal(model, [(torch.randn(shape), torch.randint(0, CLASSES, shape[:1]))])
    with pytest.raises(RuntimeError):
        fisher_diagonal(model, [(torch.randn(3, 4, 99), torch.zeros(3, dtype=torch.long))])
    for module in model.modules():
        assert not module._forward_hooks
        assert "forward" not in vars(module)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
