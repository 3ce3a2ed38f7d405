"""Rules that users register for layers of their own, against loops over single samples."""

import pytest
import torch
from torch import nn

from fedcurv import fisher_diagonal
from fedcurv.per_sample import LayerRule, register_rule
from fedcurv.per_sample.rules.registry import RULES, rule_for

CLASSES = 3


class Scale(nn.Module):
    """Multiplies each feature by a number, and from ``power`` 2 on by its power."""

    def __init__(self, features: int, power: int = 1) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.linspace(0.5, 1.5, features))
        self.power = power

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor**self.power

    def extra_repr(self) -> str:
        return f"power={self.power}"


class ScaleRule(LayerRule):
    parameters = frozenset({"factor"})
    without_input = frozenset()
    any_axis = True

    def fits(self, module):
        return module.power == 1

    def gradients(self, module, x, g):
        per_position = x * g
        return {"factor": per_position.reshape(len(x), -1, x.shape[-1]).sum(1)}


class ForgetsThePositions(ScaleRule):
    def gradients(self, module, x, g):
        return {"factor": (x * g).reshape(len(x), -1, x.shape[-1])[:, 0]}


@pytest.fixture(autouse=True)
def rules_as_they_were(monkeypatch):
    monkeypatch.setattr("fedcurv.per_sample.rules.registry.RULES", dict(RULES))


def model_with(scale: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), scale, nn.Flatten(), nn.Linear(12, CLASSES))


def samples(number: int = 5):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(number, 2, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, CLASSES, (number,), generator=generator)


def one_by_one(model, inputs, labels):
    """Return the mean of squared gradients, sample by sample."""
    squares = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in zip(inputs, labels, strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[None]), y[None]).backward()
        for name, parameter in model.named_parameters():
            squares[name] += parameter.grad.square() / len(labels)
    model.zero_grad()
    return squares


def assert_right(model, **options):
    inputs, labels = samples()
    got = fisher_diagonal(model, [(inputs, labels)], **options)
    torch.testing.assert_close(got, one_by_one(model, inputs, labels))


def test_an_own_rule_is_used_and_gives_what_single_samples_give(caplog):
    model = model_with(Scale(6)).double()
    assert rule_for(model[2]) is None
    assert_right(model)
    register_rule(Scale)(ScaleRule)
    assert isinstance(rule_for(model[2]), ScaleRule)
    assert_right(model, self_check=False)  # nothing but the rule itself can have made it right
    assert_right(model)
    assert "disagree" not in caplog.text


def test_a_rule_that_does_not_fit_the_configuration_is_not_used(monkeypatch):
    register_rule(Scale)(ScaleRule)
    model = model_with(Scale(6, power=2)).double()
    assert rule_for(model[2]) is None
    monkeypatch.setattr(ScaleRule, "gradients", None)
    assert_right(model)


def test_a_wrong_rule_is_found_out_also_in_the_place_of_a_right_one(caplog):
    model = model_with(Scale(6)).double()
    register_rule(Scale)(ScaleRule)
    assert_right(model)
    assert "disagree" not in caplog.text
    register_rule(Scale, replace=True)(ForgetsThePositions)
    assert_right(model)
    assert "closed forms for 2.factor disagree" in caplog.text


def test_subclasses_have_the_rule_unless_they_compute_something_of_their_own():
    class Named(Scale):
        pass

    class Negative(Scale):
        def forward(self, x):
            return -super().forward(x)

    class Third(Scale):
        pass

    register_rule(Scale)(ScaleRule)
    register_rule(Third)(ForgetsThePositions)  # more special than Scale's
    rules = [type(rule_for(kind(6))) for kind in (Scale, Named, Third)]
    assert rules == [ScaleRule, ScaleRule, ForgetsThePositions]
    assert rule_for(Negative(6)) is None


def test_a_second_rule_is_refused_unless_it_is_asked_for():
    with pytest.raises(ValueError, match=r"Linear has the rule Linear.*replace=True"):
        register_rule(Scale, nn.Linear)
    assert rule_for(Scale(6)) is None  # nor for the other one
    register_rule(Scale)(ScaleRule)
    with pytest.raises(ValueError, match="Scale has the rule ScaleRule"):
        register_rule(Scale)
    register_rule(Scale, replace=True)(ForgetsThePositions)
    assert isinstance(rule_for(Scale(6)), ForgetsThePositions)


@pytest.mark.parametrize(
    ("layers", "rule", "message"),
    [
        ((), ScaleRule, "expected a layer's class, got none"),
        ((ScaleRule,), ScaleRule, r"expected classes of torch\.nn\.Module, got <class"),
        ((nn.ReLU(),), ScaleRule, r"expected classes of torch\.nn\.Module, got ReLU"),
        ((Scale,), ScaleRule(), "expected a class of LayerRule, got <"),
        ((Scale,), Scale, "expected a class of LayerRule, got <class"),
    ],
)
def test_what_is_no_layer_and_what_is_no_rule_is_refused(layers, rule, message):
    with pytest.raises(TypeError, match=message):
        register_rule(*layers)(rule)
