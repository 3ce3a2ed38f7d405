"""Logits of -inf: classes that cannot be. Every loss has the limits that cross-entropy has."""

import math

import pytest
import torch
from torch import nn

from fedcurv import losses
from fedcurv.losses import (
    PRESETS,
    ActivePassiveLoss,
    CrossEntropy,
    SymmetricCrossEntropy,
    functional,
    preset,
    symmetry_gap,
)
from tests.fedcurv.losses.test_losses import CASES, CLASSES, labels, logits

MAKES = {
    **{name: case[0] for name, case in CASES.items()},
    **{
        f"{loss}, {data_set}": lambda loss=loss, data_set=data_set: preset(loss, data_set)
        for loss in PRESETS
        for data_set in PRESETS[loss]
    },
}
# rows with no, one, several and all but one impossible class
IMPOSSIBLE = [[], [1], [0, 4], [0, 1, 3], [1, 2, 3, 4]]
# as good as impossible: what is of the order of its reciprocal has vanished, what is of its own
# order has grown without bound
ALMOST = -1e6


def with_impossible(value, dtype):
    z = logits(len(IMPOSSIBLE), CLASSES, dtype=dtype)
    for row, classes in enumerate(IMPOSSIBLE):
        z[row, classes] = value
    return z.requires_grad_()


def value_and_gradient(loss, value, dtype, targets):
    z = with_impossible(value, dtype)
    result = loss(z, targets)
    (gradient,) = torch.autograd.grad(result.sum(), z)
    return result.detach(), gradient


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MAKES)
def test_values_and_gradients_are_the_limits(name, dtype):
    """Of logits that fall: where the value grows without bound it is infinite."""
    loss = MAKES[name]()
    loss.reduction = "none"
    for label in range(CLASSES):
        targets = torch.full((len(IMPOSSIBLE),), label)
        limit, limit_gradient = value_and_gradient(loss, ALMOST, dtype, targets)
        got, gradient = value_and_gradient(loss, -math.inf, dtype, targets)
        bounded = limit < 1e3
        torch.testing.assert_close(got[bounded], limit[bounded], rtol=1e-4, atol=1e-4)
        assert bool((got[~bounded] == math.inf).all())
        assert bool(gradient.isfinite().all())
        if name == "logit":  # its gradient is the distance from the mean, and has no limit
            has_one = torch.tensor([not classes for classes in IMPOSSIBLE])
        else:
            has_one = torch.ones(len(IMPOSSIBLE), dtype=torch.bool)
        torch.testing.assert_close(gradient[has_one], limit_gradient[has_one], rtol=1e-4, atol=1e-4)


def test_what_is_finite_where_cross_entropy_is():
    """All but the two regularisers that a class without a chance makes infinite."""
    for name, make in MAKES.items():
        loss = make()
        loss.reduction = "none"
        z = with_impossible(-math.inf, torch.float64)
        value = loss(z, torch.tensor([0, 0, 2, 2, 0]))
        finite = [True] + [name not in ("label_smoothing", "logit")] * 4
        assert value.isfinite().tolist() == finite, name


@pytest.mark.parametrize(
    "name",
    ["ce", "mae", "gce", "truncated gce", "rce", "sce", "agce", "aul", "ael", "taylor", "js"],
)
def test_losses_of_the_labels_probability_are_those_of_the_possible_classes_alone(name):
    make = MAKES[name]
    z, y = logits(6, CLASSES), torch.tensor([0, 2, 4, 0, 2, 4])
    z[:, [1, 3]] = -math.inf
    few = z[:, [0, 2, 4]].clone().requires_grad_()
    z.requires_grad_()
    value, expected = make()(z, y), make()(few, y // 2)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    (gradient,), (expected,) = torch.autograd.grad(value, z), torch.autograd.grad(expected, few)
    torch.testing.assert_close(gradient[:, [0, 2, 4]], expected, rtol=1e-12, atol=1e-12)
    assert not gradient[:, [1, 3]].any()


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("label_smoothing", "logit")])
def test_gradients_with_respect_to_possible_logits_are_right(name):
    loss = CASES[name][0]()
    mask = torch.zeros(4, CLASSES, dtype=torch.bool)
    mask[0, 1] = mask[1, 0] = mask[1, 4] = mask[2, 3] = True

    def of_possible(z):
        return loss(z.masked_fill(mask, -math.inf), torch.tensor([0, 2, 1, 4]))

    assert torch.autograd.gradcheck(of_possible, logits(4, CLASSES).requires_grad_())


def test_impossible_labels_are_to_cross_entropy_what_they_are_to_torchs():
    """An infinite loss, and the finite gradient p - e_y."""
    z = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    y = torch.tensor([2])
    results = []
    for loss in (CrossEntropy(), nn.functional.cross_entropy):
        value = loss(z, y)
        results.append(torch.autograd.grad(value, z)[0])
        assert value == math.inf
    torch.testing.assert_close(*results)
    torch.testing.assert_close(results[0], z.detach().softmax(1) - torch.tensor([[0, 0, 1.0]]))


@pytest.mark.parametrize("name", MAKES)
def test_a_label_of_no_probability_costs_nothing(name):
    """Where torch's own cross-entropy is NaN: the limit of 0 times what grows."""
    loss = MAKES[name]()
    q = logits(len(IMPOSSIBLE), CLASSES, scale=1.0).softmax(1)
    for row, classes in enumerate(IMPOSSIBLE):
        q[row, classes] = 0.0
    limit, limit_gradient = value_and_gradient(loss, ALMOST, torch.float64, q)
    got, gradient = value_and_gradient(loss, -math.inf, torch.float64, q)
    assert bool(gradient.isfinite().all())
    if name in ("label_smoothing", "logit"):
        assert got == math.inf
        return
    torch.testing.assert_close(got, limit, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, limit_gradient, rtol=1e-4, atol=1e-4)


def test_what_counts_zero_times_adds_nothing_even_if_it_is_infinite():
    z, y = torch.tensor([[0.0, 1.0, -math.inf]]), torch.tensor([2])
    rce = losses.ReverseCrossEntropy()(z, y)
    assert SymmetricCrossEntropy(0.0, 1.0)(z, y) == rce
    both = ActivePassiveLoss(CrossEntropy(), losses.ReverseCrossEntropy(), alpha=0.0)
    assert both(z, y) == rce
    for name in CASES:
        if name in losses.regularizers.REGULARIZERS:
            for strength in (0.0, torch.zeros(())):
                for normalize in (True, False):
                    value = functional.regularized_cross_entropy(
                        z, torch.tensor([1]), name, strength, normalize=normalize
                    )
                    torch.testing.assert_close(value, CrossEntropy()(z, torch.tensor([1])))
    weight = torch.tensor([1.0, 2.0, 0.0])
    possible = torch.tensor([0, 1])
    expected = CrossEntropy(weight=weight)(z.expand(2, 3), possible)
    got = CrossEntropy(weight=weight)(z.expand(3, 3), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(got, expected)


def test_the_gap_of_a_loss_with_an_infinite_sum_is_infinite():
    z = with_impossible(-math.inf, torch.float64).detach()
    assert symmetry_gap(CrossEntropy(), z) == math.inf
    assert symmetry_gap(CrossEntropy(), z[1:]) == math.inf
    assert symmetry_gap(CrossEntropy(reduction="none"), z[1:]) == math.inf
    assert symmetry_gap(nn.CrossEntropyLoss(reduction="none"), z[1:]) == math.inf
    assert symmetry_gap(losses.NormalizedCrossEntropy(), z) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["nce", "js", "entropy"])
def test_half_precision_knows_impossible_classes_too(name, dtype):
    loss, y = MAKES[name](), torch.tensor([0, 0, 2, 2, 0])
    z = with_impossible(-math.inf, torch.float64).detach().to(dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(z, y), z)
    full = z.detach().double().requires_grad_()
    expected = loss(full, y)
    torch.testing.assert_close(loss(z, y).double(), expected, rtol=1e-5, atol=1e-6)
    (wanted,) = torch.autograd.grad(expected, full)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["nce", "js", "entropy", "logit", "label_smoothing"])
def test_impossible_classes_do_not_hinder_compilation(name):
    loss = MAKES[name]()
    z, y = with_impossible(-math.inf, torch.float32), torch.tensor([0, 0, 2, 2, 0])
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(z, y), loss(z, y))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_labels_of_any_integer_type_are_taken(dtype):
    z, y = logits(6, CLASSES), labels(6)
    if dtype != torch.uint8:
        y[0] = -100
    assert CrossEntropy()(z, y.to(dtype)) == CrossEntropy()(z, y)
    assert CrossEntropy(weight=torch.ones(CLASSES))(z, y.to(dtype)) == CrossEntropy()(z, y)
