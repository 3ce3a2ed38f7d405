import copy
import io
import itertools
import math
import pickle
import warnings

import pytest
import torch
from torch import nn

from fedcurv import losses
from fedcurv.losses import (
    LOSSES,
    PRESETS,
    ActivePassiveLoss,
    AsymmetricSquaredError,
    CrossEntropy,
    GeneralizedCrossEntropy,
    JensenShannon,
    LogitClip,
    MeanAbsoluteError,
    NormalizedCrossEntropy,
    NormalizedNegativeCrossEntropy,
    PartiallyHuberisedCrossEntropy,
    RegularizedCrossEntropy,
    SharpenedCrossEntropy,
    SymmetricCrossEntropy,
    TaylorCrossEntropy,
    functional,
    preset,
)
from tests.oracles import losses as oracle

CLASSES = 5
REGULARIZERS = list(oracle.REGULARIZERS)

# the loss, the functional form with the same settings, and the oracle for one sample
CASES = {
    "ce": (CrossEntropy, nn.functional.cross_entropy, lambda z, y: of(oracle.ce, z, y)),
    "mae": (MeanAbsoluteError, functional.mean_absolute_error, lambda z, y: of(oracle.mae, z, y)),
    "gce": (
        GeneralizedCrossEntropy,
        functional.generalized_cross_entropy,
        lambda z, y: of(oracle.gce, z, y),
    ),
    "truncated gce": (
        lambda **o: GeneralizedCrossEntropy(0.4, 0.2, **o),
        lambda z, y, **o: functional.generalized_cross_entropy(z, y, 0.4, 0.2, **o),
        lambda z, y: of(oracle.gce, z, y, 0.4, 0.2),
    ),
    "rce": (
        losses.ReverseCrossEntropy,
        functional.reverse_cross_entropy,
        lambda z, y: of(oracle.rce, z, y),
    ),
    "sce": (
        SymmetricCrossEntropy,
        functional.symmetric_cross_entropy,
        lambda z, y: of(oracle.sce, z, y),
    ),
    "nce": (
        NormalizedCrossEntropy,
        functional.normalized_cross_entropy,
        lambda z, y: of(oracle.nce, z, y),
    ),
    "agce": (
        losses.AsymmetricGeneralizedCrossEntropy,
        lambda z, y, **o: functional.asymmetric_generalized_cross_entropy(z, y, 0.6, 0.6, **o),
        lambda z, y: of(oracle.agce, z, y),
    ),
    "aul": (
        losses.AsymmetricUnhinged,
        lambda z, y, **o: functional.asymmetric_unhinged(z, y, 5.5, 3.0, **o),
        lambda z, y: of(oracle.aul, z, y),
    ),
    "ael": (
        losses.AsymmetricExponential,
        lambda z, y, **o: functional.asymmetric_exponential(z, y, 2.5, **o),
        lambda z, y: of(oracle.ael, z, y),
    ),
    "taylor": (
        lambda **o: TaylorCrossEntropy(3, **o),
        lambda z, y, **o: functional.taylor_cross_entropy(z, y, 3, **o),
        lambda z, y: of(oracle.taylor, z, y, 3),
    ),
    "js": (
        lambda **o: JensenShannon(0.3, **o),
        lambda z, y, **o: functional.jensen_shannon(z, y, 0.3, **o),
        lambda z, y: of(oracle.js, z, y, 0.3),
    ),
    "nnce": (
        lambda **o: NormalizedNegativeCrossEntropy(0.05, **o),
        lambda z, y, **o: functional.normalized_negative_cross_entropy(z, y, 0.05, **o),
        lambda z, y: of(oracle.nnce, z, y, 0.05),
    ),
    "amse": (
        lambda **o: AsymmetricSquaredError(3.0, **o),
        lambda z, y, **o: functional.asymmetric_squared_error(z, y, 3.0, **o),
        lambda z, y: of(oracle.amse, z, y, 3.0),
    ),
    "ce_eps": (
        lambda **o: SharpenedCrossEntropy(7.0, 0.01, **o),
        lambda z, y, **o: functional.sharpened_cross_entropy(z, y, 7.0, 0.01, **o),
        lambda z, y: of(oracle.sharpened, z, y, 7.0, 0.01),
    ),
    "phuber": (
        lambda **o: PartiallyHuberisedCrossEntropy(4.0, **o),
        lambda z, y, **o: functional.partially_huberised_cross_entropy(z, y, 4.0, **o),
        lambda z, y: of(oracle.phuber, z, y, 4.0),
    ),
    "logit_clip": (
        lambda **o: LogitClip(GeneralizedCrossEntropy(), 1.5, **o),
        None,
        lambda z, y: of(oracle.gce, oracle.clipped(z, 1.5), y),
    ),
    "nce+rce": (
        lambda **o: ActivePassiveLoss(alpha=2.0, beta=0.5, **o),
        None,
        lambda z, y: 2 * of(oracle.nce, z, y) + 0.5 * of(oracle.rce, z, y),
    ),
    **{
        name: (
            lambda name=name, **o: RegularizedCrossEntropy(name, 3.0, **o),
            lambda z, y, name=name, **o: functional.regularized_cross_entropy(z, y, name, 3.0, **o),
            lambda z, y, name=name: oracle.regularized(z, y, name, 3.0),
        )
        for name in REGULARIZERS
    },
}


def of(formula, z, y, *settings):
    return formula(oracle.probabilities(z), y, *settings)


def logits(*shape, dtype=torch.float64, scale=2.0):
    generator = torch.Generator().manual_seed(0)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def labels(*shape):
    return torch.randint(0, CLASSES, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CASES)
def test_each_loss_is_its_formula_written_out(name):
    make, _, expected = CASES[name]
    z, y = logits(7, CLASSES), labels(7)
    by_hand = torch.tensor([expected(row, int(k)) for row, k in zip(z, y, strict=True)])
    torch.testing.assert_close(make(reduction="none")(z, y), by_hand.double())
    every = torch.tensor([[expected(row, k) for k in range(CLASSES)] for row in z]).double()
    torch.testing.assert_close(make().of_labels(z), every)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[1]])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_the_functional_form_is_the_same(name, reduction):
    make, function, _ = CASES[name]
    z, y = logits(7, CLASSES, 3), labels(7, 3)
    options = {"weight": torch.rand(CLASSES).double(), "ignore_index": 2, "reduction": reduction}
    torch.testing.assert_close(function(z, y, **options), make(**options)(z, y))


def test_values_worked_out_by_hand():
    z, y = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([0])  # p = (3/4, 1/4)
    for loss, value in [
        (MeanAbsoluteError(), 0.25),
        (GeneralizedCrossEntropy(q=0.5), 2 * (1 - math.sqrt(0.75))),
        (losses.ReverseCrossEntropy(), 0.25 * 4 * math.log(10)),
        (SymmetricCrossEntropy(6.0, 0.1), 6 * math.log(4 / 3) + 0.1 * math.log(10)),
        (NormalizedCrossEntropy(), math.log(4 / 3) / math.log(16 / 3)),
        (losses.AsymmetricGeneralizedCrossEntropy(a=1.0, q=2.0), (4 - 1.75**2) / 2),
        (losses.AsymmetricUnhinged(a=2.0, q=2.0), (1.25**2 - 1) / 2),
        (losses.AsymmetricExponential(a=0.5), math.exp(-1.5)),
        (TaylorCrossEntropy(order=2), 0.25 + 0.25**2 / 2),
        (NormalizedNegativeCrossEntropy(0.1), 1 - math.log(7.5) / math.log(7.5 * 2.5)),
        (AsymmetricSquaredError(2.0), (1.25**2 + 0.25**2) / 2),
        (SharpenedCrossEntropy(3.0), -math.log(3.75 / 4)),
        (PartiallyHuberisedCrossEntropy(1.2), 1 + math.log(1.2) - 1.2 * 0.75),
        (LogitClip(delta=math.log(2.0)), math.log(1.5)),
        (LOSSES["anl-ce"](clip=0.1, beta=0.0), 5 * math.log(4 / 3) / math.log(16 / 3)),
        (LOSSES["jal-ce"](alpha=0.0, a=2.0), (1.25**2 + 0.25**2) / 2),
        (LOSSES["ce_eps+mae"](m=3.0), -0.01 * math.log(3.75 / 4) + 5 * 0.25),
        (LOSSES["nce+agce"](alpha=0.0, a=1.0, q=2.0), 4 * (4 - 1.75**2) / 2),
        (LOSSES["nce+aul"](alpha=0.0, a=2.0, q=2.0), 4 * (1.25**2 - 1) / 2),
        (LOSSES["nce+ael"](alpha=0.0, a=0.5), 4 * math.exp(-1.5)),
        (LOSSES["logit_clip"]("mae", delta=math.log(2.0)), 1 / 3),
        (RegularizedCrossEntropy("squared_output", 1.0), (math.log(4 / 3) + 1 / 16) / 2),
        (RegularizedCrossEntropy("logit", 3.0), (math.log(4 / 3) + 3 * math.log(3) ** 2 / 4) / 4),
    ]:
        assert float(loss(z, y)) == pytest.approx(value, rel=1e-6), loss


@pytest.mark.parametrize("shape", [(CLASSES,), (6, CLASSES), (6, CLASSES, 3), (6, CLASSES, 3, 2)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["labels", "some ignored", "probabilities"])
def test_shapes_weights_and_reductions_are_those_of_torchs_cross_entropy(
    shape, reduction, weighted, kind
):
    z = logits(*shape)
    without_classes = shape[:1] + shape[2:] if len(shape) > 1 else ()
    if kind == "probabilities":
        targets = logits(*shape, scale=1.0).softmax(1 if len(shape) > 1 else 0)
    else:
        targets = labels(*without_classes)
        if kind == "some ignored" and targets.ndim:
            targets.view(-1)[::2] = -100
    weight = torch.rand(CLASSES).double() if weighted else None
    options = {"weight": weight, "reduction": reduction}
    expected = nn.functional.cross_entropy(z, targets, **options)
    torch.testing.assert_close(CrossEntropy(**options)(z, targets), expected)


@pytest.mark.parametrize("name", CASES)
def test_a_loss_for_probabilities_is_the_expectation_over_labels(name):
    loss = CASES[name][0](reduction="none")
    z, q = logits(6, CLASSES, 2), logits(6, CLASSES, 2, scale=1.0).softmax(1)
    under_each = torch.stack([loss(z, torch.full((6, 2), k)) for k in range(CLASSES)], 1)
    torch.testing.assert_close(loss(z, q), (q * under_each).sum(1))


@pytest.mark.parametrize("name", CASES)
def test_ignored_positions_and_others_ones_change_nothing(name):
    loss = CASES[name][0]()
    z, y = logits(6, CLASSES), labels(6)
    y[2:] = -100
    z.requires_grad_()
    value = loss(z, y)
    torch.testing.assert_close(value, loss(z[:2], y[:2]))
    (gradient,) = torch.autograd.grad(value, z)
    assert not gradient[2:].any()


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_right(name):
    loss = CASES[name][0]()
    z, y = logits(4, CLASSES).requires_grad_(), labels(4)
    assert torch.autograd.gradcheck(lambda z: loss(z, y), z)
    q = logits(4, CLASSES, scale=1.0).softmax(1)
    assert torch.autograd.gradcheck(lambda z: loss(z, q), z)


EXTREMES = torch.tensor(
    [[1e4, -1e4, 0, 0, 0], [-1e4, 1e4, 1e4, 0, 0], [1e4] * 5, [0.0] * 5, [-1e4, 0, 0, 0, 0]]
)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_there_is_no_nan_and_no_infinity_where_probabilities_vanish(name, dtype):
    loss = CASES[name][0](reduction="none")
    for y in range(CLASSES):
        z = EXTREMES.to(dtype).requires_grad_()
        value = loss(z, torch.full((5,), y))
        assert value.dtype == torch.float32
        assert bool(value.isfinite().all())
        (gradient,) = torch.autograd.grad(value.sum(), z)
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("name", CASES)
def test_half_precision_is_left_before_anything_is_computed(name):
    loss = CASES[name][0]()
    z, y = logits(50, CLASSES, dtype=torch.bfloat16), labels(50)
    expected = loss(z.double(), y)
    torch.testing.assert_close(loss(z, y).double(), expected, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(z, y).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["gce", "agce", "aul", "taylor", "js"])
def test_small_settings_lose_nothing_in_float32(name):
    """Where 1 − p^q is written as it stands, float32 loses the gradient altogether."""
    make = {
        "gce": lambda: GeneralizedCrossEntropy(q=1e-3),
        "agce": lambda: losses.AsymmetricGeneralizedCrossEntropy(a=1e-3, q=1e-3),
        "aul": lambda: losses.AsymmetricUnhinged(a=1.001, q=1e-3),
        "taylor": lambda: TaylorCrossEntropy(order=50),
        "js": lambda: JensenShannon(1e-3),
    }[name]
    z, y = logits(20, CLASSES), labels(20)
    results = []
    for dtype in (torch.float64, torch.float32):
        leaf = z.to(dtype).requires_grad_()
        value = make()(leaf, y)
        (gradient,) = torch.autograd.grad(value, leaf)
        results.append((value.double(), gradient.double()))
    (value, gradient), (got_value, got_gradient) = results
    assert abs(got_value - value) <= 2e-4 * abs(value)
    assert (got_gradient - gradient).norm() <= 2e-4 * gradient.norm()


@pytest.mark.parametrize("name", CASES)
def test_losses_are_compiled_as_one_graph(name):
    loss = CASES[name][0](weight=torch.rand(CLASSES))
    z, y = logits(6, CLASSES, 2, dtype=torch.float32), labels(6, 2)
    y[0] = -100
    torch._dynamo.reset()  # it counts compilations of one method over all modules
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(z, y), loss(z, y))


@pytest.mark.parametrize("scale", [1e3, 1e19, 1e37])
def test_clipped_logits_do_not_depend_on_how_large_they_were(scale):
    z, y = logits(6, CLASSES, dtype=torch.float32), labels(6)
    z[0] = 0.0
    large = (scale * z).requires_grad_()
    value = LogitClip()(large, y)
    torch.testing.assert_close(value, LogitClip()(100 * z, y))
    (gradient,) = torch.autograd.grad(value, large)
    assert bool(gradient.isfinite().all())


def test_a_new_strength_does_not_compile_anew():
    loss = RegularizedCrossEntropy("entropy", strength=lambda epoch: float(epoch))
    z, y = logits(6, CLASSES), labels(6)
    torch._dynamo.reset()
    counted = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(loss, backend=counted, fullgraph=True)
    for epoch in range(5):
        assert loss.strength == epoch
        torch.testing.assert_close(compiled(z, y), loss(z, y))
        loss.advance()
    assert counted.frame_count == 1


def test_limits_are_the_losses_that_they_are_said_to_be():
    z, y = logits(20, CLASSES), labels(20)
    ce, mae = CrossEntropy()(z, y), MeanAbsoluteError()(z, y)
    for loss, limit in [
        (RegularizedCrossEntropy("entropy", 0.0), ce),
        (GeneralizedCrossEntropy(q=1e-7), ce),
        (GeneralizedCrossEntropy(q=1.0), mae),
        (TaylorCrossEntropy(1), mae),
        (TaylorCrossEntropy(3000), ce),
        (JensenShannon(1e-6), ce),
        (SymmetricCrossEntropy(1.0, 0.0), ce),
        (losses.ReverseCrossEntropy(-1.0), mae),
        (losses.AsymmetricGeneralizedCrossEntropy(a=0.3, q=1.0), mae),
        (losses.AsymmetricUnhinged(a=3.0, q=1.0), mae),
        (SharpenedCrossEntropy(0.0), ce),
        (PartiallyHuberisedCrossEntropy(1e9), ce),
        (LogitClip(delta=1e9), ce),
    ]:
        torch.testing.assert_close(loss(z, y), limit, rtol=2e-3, atol=1e-5)
    # slowly: the distance goes as 1/log(1 − π)
    torch.testing.assert_close(JensenShannon(1 - 1e-12)(z, y), mae, rtol=0.05, atol=0)


@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_label_smoothing_is_torchs_own(epsilon):
    z, y = logits(20, CLASSES), labels(20)
    strength = epsilon / (1 - epsilon)
    got = RegularizedCrossEntropy("label_smoothing", strength)(z, y)
    # torch's has the entropy of the smoothed label in it, and the penalty's constant
    expected = nn.functional.cross_entropy(z, y, label_smoothing=epsilon)
    expected = expected - epsilon * math.log(CLASSES)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_regularizers_are_not_negative_and_zero_for_a_uniform_prediction(name):
    regularizer = losses.regularizers.REGULARIZERS[name]
    assert bool((regularizer(logits(100, CLASSES, 2)) > 0).all())
    uniform = torch.full((2, CLASSES), 7.0, dtype=torch.float64)
    torch.testing.assert_close(regularizer(uniform), torch.zeros(2).double(), atol=1e-12, rtol=0)


def test_ones_own_regularizer():
    def margin(z):
        return z.max(1).values - z.min(1).values

    z, y = logits(6, CLASSES, 2), labels(6, 2)
    got = RegularizedCrossEntropy(margin, 0.5, normalize=False, reduction="none")(z, y)
    expected = nn.functional.cross_entropy(z, y, reduction="none") + 0.5 * margin(z)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("strength", [1e6, 1e30])
@pytest.mark.parametrize("name", REGULARIZERS)
def test_huge_strengths_stay_finite_and_of_one_scale(name, strength):
    z = logits(50, CLASSES, dtype=torch.float32).requires_grad_()
    value = RegularizedCrossEntropy(name, strength)(z, labels(50))
    (gradient,) = torch.autograd.grad(value, z)
    penalty = losses.regularizers.REGULARIZERS[name](z).mean()
    torch.testing.assert_close(value, penalty, rtol=1e-4, atol=1e-4)
    assert bool(gradient.isfinite().all()) and gradient.norm() < 10


def test_a_schedule_is_followed_step_by_step():
    loss = RegularizedCrossEntropy(strength=lambda epoch: 2.0**epoch)
    seen = [loss.strength]
    for _ in range(3):
        loss.advance()
        seen.append(loss.strength)
    assert seen == [1, 2, 4, 8]
    loss.strength = 3.0
    assert loss.strength == 3
    with pytest.raises(RuntimeError, match="expected a schedule"):
        RegularizedCrossEntropy(strength=1.0).advance()


def by_state_dict(loss, make):
    other = make()
    other.load_state_dict(loss.state_dict())
    return other


def by_file(loss, make):
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    other = make()
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    return other


RESTORED = {
    "state_dict": by_state_dict,
    "file": by_file,
    "deepcopy": lambda loss, _: copy.deepcopy(loss),
    "pickle": lambda loss, _: pickle.loads(pickle.dumps(loss)),
}


def tens(epoch):
    return 10.0 * (epoch + 1)


@pytest.mark.parametrize("way", RESTORED)
@pytest.mark.parametrize("nested", [False, True])
def test_a_schedule_goes_on_where_it_was(way, nested):
    def make():
        loss = RegularizedCrossEntropy("entropy", strength=tens)
        return ActivePassiveLoss(active=loss) if nested else loss

    def scheduled(loss):
        return loss.active if nested else loss

    loss = make()
    for _ in range(3):
        scheduled(loss).advance()
    other = RESTORED[way](loss, make)
    assert scheduled(other).strength == 40
    scheduled(other).advance()
    assert scheduled(other).strength == 50
    # each has a position of its own
    assert scheduled(loss).strength == 40


@pytest.mark.parametrize("way", RESTORED)
@pytest.mark.parametrize("name", CASES)
def test_what_is_restored_gives_the_same_loss(name, way):
    def make():
        return CASES[name][0](weight=torch.ones(CLASSES))

    loss = CASES[name][0](weight=torch.arange(1.0, 1 + CLASSES))
    if name in REGULARIZERS:
        loss.strength = 7.0
    z, y = logits(7, CLASSES), labels(7)
    assert RESTORED[way](loss, make)(z, y) == loss(z, y)


def test_a_set_strength_is_restored_too():
    loss = RegularizedCrossEntropy("entropy", strength=tens)
    loss.advance()
    loss.strength = 7.0
    other = by_state_dict(loss, lambda: RegularizedCrossEntropy("entropy", strength=tens))
    assert other.strength == 7
    other.advance()
    assert other.strength == 30


def test_a_state_without_the_position_keeps_ones_own_and_says_so(caplog):
    loss = RegularizedCrossEntropy("entropy", strength=tens)
    loss.strength = 40.0
    old = loss.state_dict()
    del old["_steps"]
    other = RegularizedCrossEntropy("entropy", strength=tens)
    other.advance()
    other.load_state_dict(old)
    assert other.strength == 40
    assert "λ = 40, but not the position in its schedule, which stays at 1" in caplog.text
    assert "_steps" not in old
    other.advance()
    assert other.strength == 30
    caplog.clear()
    number = RegularizedCrossEntropy("entropy", 1.0)
    number.load_state_dict(old)
    assert number.strength == 40 and not caplog.records
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})


def test_weights_move_with_the_module():
    loss = CrossEntropy(weight=torch.rand(CLASSES))
    assert loss.to(torch.float64).weight.dtype == torch.float64
    assert "weight" in loss.state_dict()


@pytest.mark.parametrize(
    ("loss", "data_set"), [(loss, data_set) for loss in PRESETS for data_set in PRESETS[loss]]
)
def test_presets_train(loss, data_set):
    z = logits(6, CLASSES).requires_grad_()
    preset(loss, data_set)(z, labels(6)).backward()
    assert z.grad.norm() > 0


def test_presets_hold_the_published_settings():
    sce = preset("sce", "cifar100")
    assert (sce.alpha, sce.beta) == (6.0, 0.1)
    both = preset("nce+mae", "cifar10")
    assert (both.alpha, both.beta) == (1.0, 1.0)
    assert isinstance(both.active, NormalizedCrossEntropy)
    assert isinstance(both.passive, MeanAbsoluteError)
    assert preset("gce", "cifar10").q == preset("GCE", "CIFAR10").q == 0.7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GeneralizedCrossEntropy(q=0.0), r"q must be finite and in \(0, 1\], got 0"),
        (lambda: GeneralizedCrossEntropy(truncation=1.0), r"truncation must be .* in \(0, 1\)"),
        (lambda: losses.ReverseCrossEntropy(0.0), "log_of_zero must be finite and < 0"),
        (lambda: SymmetricCrossEntropy(alpha=-1.0), "alpha must be finite and >= 0"),
        (lambda: SymmetricCrossEntropy(beta=math.nan), "beta must be finite and >= 0"),
        (lambda: ActivePassiveLoss(beta=-1.0), "beta must be finite and >= 0"),
        (lambda: losses.AsymmetricGeneralizedCrossEntropy(a=0.0), "a must be finite and > 0"),
        (lambda: losses.AsymmetricUnhinged(a=1.0), "a must be finite and > 1"),
        (lambda: losses.AsymmetricExponential(a=math.inf), "a must be finite and > 0"),
        (lambda: NormalizedNegativeCrossEntropy(0.0), r"clip must be finite and in \(0, 1\)"),
        (lambda: AsymmetricSquaredError(0.0), "a must be finite and > 0"),
        (lambda: SharpenedCrossEntropy(-1.0), "m must be finite and >= 0"),
        (lambda: SharpenedCrossEntropy(clip=1.0), r"clip must be finite and in \(0, 1\)"),
        (lambda: PartiallyHuberisedCrossEntropy(1.0), "tau must be finite and > 1"),
        (lambda: LogitClip(delta=math.inf), "delta must be finite and > 0"),
        (lambda: LOSSES["logit_clip"]("gcee"), "loss must be one of .*gce.* got 'gcee'"),
        (lambda: LogitClip(2.0), r"loss must be a loss of fedcurv.losses, such as Cross.* got 2.0"),
        (lambda: ActivePassiveLoss("gce"), "active must be a loss of fedcurv.losses.* got 'gce'"),
        (lambda: ActivePassiveLoss(passive=CrossEntropy), "passive must be a loss of fedcurv.loss"),
        (lambda: GeneralizedCrossEntropy("0.7"), r"q must be finite and in \(0, 1\], got '0.7'"),
        (lambda: LogitClip(delta=True), "delta must be finite and > 0, got True"),
        (lambda: TaylorCrossEntropy("2"), "order must be finite and an integer >= 1, got '2'"),
        (lambda: TaylorCrossEntropy(2.0), "order must be finite and an integer >= 1, got 2.0"),
        (lambda: RegularizedCrossEntropy(strength="1"), "strength must be finite and >= 0, got '1"),
        (lambda: TaylorCrossEntropy(order=0), "order must be finite and an integer >= 1"),
        (lambda: JensenShannon(1.0), r"weight_of_label must be finite and in \(0, 1\)"),
        (lambda: RegularizedCrossEntropy("l2"), "regularizer must be one of label_smoothing, ent"),
        (lambda: RegularizedCrossEntropy(strength=-1.0), "strength must be finite and >= 0"),
        (lambda: RegularizedCrossEntropy(strength=math.inf), "strength must be finite and >= 0"),
        (lambda: preset("focal", "mnist"), "loss must be one of gce, sce"),
        (lambda: preset("sce", "mnist"), "'sce' has settings for cifar10, cifar100, got 'mnist'"),
        (lambda: CrossEntropy(reduction="max")(logits(2, 3), labels(2)), "none, mean or sum"),
        (lambda: CrossEntropy()(torch.ones(()), torch.ones(())), "got a single number"),
        (
            lambda: CrossEntropy(weight=torch.ones(4))(logits(2, CLASSES), labels(2)),
            r"a weight for each of 5 classes, got shape \(4,\)",
        ),
        (
            lambda: CrossEntropy()(logits(2, CLASSES, 3), labels(2)),
            r"labels \(integers\) of shape \(2, 3\) or probabilities of shape \(2, 5, 3\)",
        ),
        (lambda: CrossEntropy()(logits(2, CLASSES), torch.ones(2)), "got torch.float32 of shape"),
        (
            lambda: CrossEntropy()(logits(2, 3), torch.tensor([0, 3])),
            "labels from 0 to 2 .* got 3;",
        ),
        (lambda: CrossEntropy()(logits(2, 3, 1), torch.full((2, 1), -1)), "ignored.*got -1; count"),
        (
            lambda: CrossEntropy()(torch.ones(2, 3, dtype=torch.cfloat), torch.tensor([0, 1])),
            "real numbers, got torch.complex64",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'label_smoothing'"):
        GeneralizedCrossEntropy(label_smoothing=0.1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'label_smoothing'"):
        functional.mean_absolute_error(logits(2, CLASSES), labels(2), label_smoothing=0.1)


def test_every_name_of_the_package_is_documented():
    for name in losses.__all__:
        assert getattr(losses, name).__doc__, name


def test_no_warning_is_given(recwarn):
    for (make, _, _), dtype in itertools.product(CASES.values(), (torch.float32, torch.bfloat16)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make()(logits(3, CLASSES, dtype=dtype), labels(3))
