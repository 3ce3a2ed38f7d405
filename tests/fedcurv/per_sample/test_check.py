"""What the self-check finds out, and when it looks again."""

import pytest
import torch
from torch import nn

from fedcurv import fisher_diagonal
from fedcurv.per_sample import Findings, PerSampleSquares, check
from fedcurv.per_sample.rules.registry import RULES, LayerRule
from fedcurv.per_sample.samples import Samples, on_one_tensor
from tests.fedcurv.per_sample.test_squares import AlsoUsedOutside, BatchStatistics
from tests.oracles import fisher as oracle
from tests.zoo import CLASSES, FLAT, ZOO, resnet18


@pytest.fixture(autouse=True)
def forget_checks(monkeypatch):
    monkeypatch.setattr(check, "_remembered", {})


@pytest.fixture
def looks(monkeypatch):
    """The number of samples of every look."""
    numbers = []
    original = check._compare

    def spy(model, parameters, inputs):
        numbers.append(len(inputs))
        return original(model, parameters, inputs)

    monkeypatch.setattr(check, "_compare", spy)
    return numbers


def findings_of(model, inputs):
    parameters = dict(model.eval().named_parameters())
    with PerSampleSquares(
        model, parameters, Findings(), check=check.SelfCheck(model, parameters)
    ) as squares:
        squares.begin(Samples((inputs,), on_one_tensor))
    return squares.findings


class ForgetsTheSquare(LayerRule):
    def add_squares(self, module, x, g, totals):
        for name, total in totals.items():
            total += (g.T @ x if name == "weight" else g.sum(0)).square()


@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_a_wrong_rule_is_found_out_and_replaced(kind, monkeypatch, caplog):
    monkeypatch.setitem(RULES, nn.Linear, ForgetsTheSquare())
    torch.manual_seed(0)
    model = ZOO["linear"][0]().double()
    inputs, labels = torch.randn(FLAT, dtype=torch.float64), torch.randint(0, CLASSES, FLAT[:1])
    got = fisher_diagonal(model, [(inputs, labels)], kind=kind)
    assert "closed forms for 0.bias, 0.weight, 2.bias, 2.weight disagree" in caplog.text
    expected = (
        oracle.empirical(model, inputs, labels)
        if kind == "empirical"
        else oracle.exact(model, inputs)
    )
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name])
    unchecked = fisher_diagonal(model, [(inputs, labels)], kind=kind, self_check=False)
    assert not torch.allclose(unchecked["0.weight"], expected["0.weight"])


@pytest.mark.parametrize("samples", [1, 5])
@pytest.mark.parametrize("self_check", [True, False])
def test_a_weight_that_is_used_once_more_elsewhere_is_found_out(samples, self_check):
    torch.manual_seed(0)
    model, inputs = AlsoUsedOutside().double(), torch.randn(samples, 6, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (samples,))
    got = fisher_diagonal(model, [(inputs, labels)], self_check=self_check)
    for name, expected in oracle.empirical(model, inputs, labels).items():
        torch.testing.assert_close(got[name], expected)


def test_a_table_that_is_used_once_more_elsewhere_is_found_out():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 5)

        def forward(self, x):
            return self.table(x).mean(1) @ self.table.weight.T

    torch.manual_seed(0)
    model, tokens, labels = Twice().double(), torch.randint(0, 7, (5, 4)), torch.arange(5)
    got = fisher_diagonal(model, [(tokens, labels)])["table.weight"]
    torch.testing.assert_close(got, oracle.empirical(model, tokens, labels)["table.weight"])


def test_a_model_that_fits_its_data_is_checked_as_sharply(monkeypatch):
    """Gradients of the loss vanish there; the check does not ask the loss."""
    monkeypatch.setitem(RULES, nn.Linear, ForgetsTheSquare())
    torch.manual_seed(0)
    model = ZOO["linear"][0]()
    model[2].bias.data = torch.tensor([200.0, 0.0, 0.0])
    assert findings_of(model, torch.randn(FLAT)).slow == set(dict(model.named_parameters()))


@pytest.mark.parametrize("seed", range(4))
def test_rounding_in_a_deep_network_is_no_disagreement(seed):
    """A ReLU that rounding switches would be one, were the forward passes not the same."""
    torch.manual_seed(seed)
    model = resnet18(lambda size: nn.GroupNorm(8, size))
    for parameter in model.parameters():
        parameter.data *= 3
    assert not findings_of(model, torch.randn(2, 3, 32, 32)).slow


def test_models_of_one_structure_are_checked_once(looks):
    batch = torch.randn(FLAT), torch.randint(0, CLASSES, FLAT[:1])
    for _ in range(3):
        fisher_diagonal(ZOO["linear"][0](), [batch, batch])
    assert looks == [2]
    fisher_diagonal(ZOO["residual"][0](), [batch])
    assert looks == [2, 2]
    fisher_diagonal(ZOO["residual"][0](), [batch], self_check=False)
    assert looks == [2, 2]


def test_numbers_that_are_not_finite_say_nothing(looks):
    model = ZOO["linear"][0]()
    labels = torch.randint(0, CLASSES, FLAT[:1])
    with pytest.raises(ValueError, match="batch 0: expected finite losses"):
        fisher_diagonal(model, [(torch.full(FLAT, torch.nan), labels)])
    assert not findings_of(model, torch.randn(FLAT)).slow
    assert looks == [2, 2]


def test_samples_that_interact_are_taken_one_at_a_time(caplog):
    findings = findings_of(BatchStatistics(), torch.randn(4, 2, 5, 5))
    assert findings.alone
    assert not findings.slow
    assert "outputs depend on what else is in a batch" in caplog.text
    assert not findings_of(ZOO["batch norm"][0](), torch.randn(ZOO["batch norm"][1])).alone


def test_the_check_forgets_the_oldest_structures_first(monkeypatch, looks):
    monkeypatch.setattr(check, "_REMEMBERED", 2)
    for size in (4, 5, 6, 4, 6):
        findings_of(nn.Linear(size, CLASSES), torch.randn(3, size))
    assert looks == [2, 2, 2, 2]
