"""Samples that decide for one another, ways that change from call to call, outputs of too few."""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedcurv import fisher_diagonal
from tests.oracles import fisher as oracle

Body = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, body: Body) -> None:
        super().__init__()
        self.a, self.h, self.body, self.calls = nn.Linear(6, 6), nn.Linear(6, 3), body, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.h(self.body(self, torch.tanh(self.a(x))))


def problem(body: Body) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return Net(body).double(), torch.randn(9, 6, dtype=torch.float64), torch.arange(9) % 3


def branch(condition: Callable[[Tensor], object]) -> Body:
    return lambda m, z: z @ m.a.weight if condition(z) else z


# the samples that are compared go the way of the batch in each
SHARING: dict[str, Body] = {
    "sum": branch(lambda z: z.sum() > -1.5),
    "largest": branch(lambda z: z.abs().max() < 0.9),
    "by where": lambda m, z: torch.where(z.sum() > -1.5, z @ m.a.weight, z),
    "by column": lambda m, z: torch.where((z > 0.8).any(0), 2 * z, z),
    "one number": branch(lambda z: z[0, 0] > 0),
    "list": branch(lambda z: max(max(row) for row in z.tolist()) > 0.9),
    "array": branch(lambda z: z.detach().numpy().max() > 0.9),
    "mask": lambda m, z: z + z[z > 0.9].sum(),
}


# of the samples that go one way alone, a batch goes it too: they are taken at once
AT_ONCE = ("largest", "one number")


@pytest.mark.parametrize("way", SHARING)
def test_a_value_of_the_whole_batch_decides_for_no_single_sample(way, caplog):
    model, inputs, labels = problem(SHARING[way])
    got = fisher_diagonal(model, list(zip(inputs.split(5), labels.split(5), strict=True)))
    for name, expected in oracle.empirical(model, inputs, labels).items():
        torch.testing.assert_close(got[name], expected)
    assert caplog.text.count("each sample is one of its own") == (way not in AT_ONCE)


@pytest.mark.parametrize(
    "body",
    [
        lambda m, z: z if m.a.weight.sum() > 0 else 2 * z,
        lambda m, z: z * torch.ones_like(z).mean().item(),
        lambda m, z: z / z.norm(dim=1, keepdim=True) + z.new_zeros(3).sum(),
    ],
)
def test_values_that_no_sample_enters_may_be_read(body, caplog):
    model, inputs, labels = problem(body)
    got = fisher_diagonal(model, [(inputs, labels)])
    for name, expected in oracle.empirical(model, inputs, labels).items():
        torch.testing.assert_close(got[name], expected)
    assert "each sample is one of its own" not in caplog.text


def test_a_model_that_goes_another_way_at_every_call_is_refused():
    model, inputs, labels = problem(lambda m, z: z @ m.a.weight if m.calls % 2 else z)
    batches = list(zip(inputs.split(3), labels.split(3), strict=True))
    with pytest.raises(
        ValueError, match=r"^batch.* 0.*: Net computes something else when the same"
    ):
        fisher_diagonal(model, batches)


def test_outputs_for_too_few_samples_are_refused():
    model, inputs, labels = problem(lambda m, z: z[:1])
    message = r"batch 0: expected outputs with a row for each of 9 .*\(1, 3\) for inputs .*\(9, 6\)"
    with pytest.raises(ValueError, match=message):
        fisher_diagonal(model, [(inputs, labels)])


@pytest.mark.parametrize(
    ("last", "likelihood", "told"),
    [
        ([nn.Linear(4, 1), nn.Sigmoid(), nn.Flatten(0)], "bernoulli", 1),
        ([nn.Linear(4, 1)], "bernoulli", 0),
        ([nn.Linear(4, 3), nn.Softmax(1)], "categorical", 1),
        ([nn.Linear(4, 3), nn.LogSoftmax(1)], "categorical", 0),
    ],
)
def test_probabilities_in_the_place_of_logits_are_told_once(last, likelihood, told, caplog):
    torch.manual_seed(0)
    model, inputs = nn.Sequential(*last), torch.randn(6, 4)
    targets = torch.arange(6) % 2
    fisher_diagonal(model, [(inputs, targets), (inputs, targets)], likelihood=likelihood)
    assert caplog.text.count("expected logits") == told


def test_a_pass_is_freed_without_the_garbage_collector():
    """What others have left in this process does not grow with the number of passes."""
    model, inputs, labels = problem(lambda m, z: m.a(z))

    def garbage(passes: int) -> int:
        gc.collect()
        gc.disable()
        try:
            fisher_diagonal(model, [(inputs, labels)] * passes)
            return gc.collect()
        finally:
            gc.enable()

    garbage(1)
    assert garbage(12) <= garbage(2)


class Drawing(nn.Module):
    """Draws random numbers in its forward pass, as a variational encoder does."""

    def __init__(self, *, at_once: bool) -> None:
        super().__init__()
        self.a, self.h, self.at_once = nn.Linear(6, 4), nn.Linear(2, 3), at_once
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        mean, log_scale = torch.tanh(self.a(x)).chunk(2, dim=1)
        drawn = torch.randn_like(mean) * log_scale.exp()
        return self.h(mean + drawn if self.at_once else mean + drawn * self.scale)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_model_that_draws_random_numbers_is_estimated_at_one_draw_and_that_is_told(
    at_once, caplog
):
    torch.manual_seed(0)
    model, draws = Drawing(at_once=at_once).double(), 200
    inputs, labels = torch.randn(3, 6, dtype=torch.float64), torch.arange(3)
    many = inputs.repeat(draws, 1), labels.repeat(draws)
    with caplog.at_level("INFO"):
        got = fisher_diagonal(model, [many])
    expected = oracle.empirical(model, *many)  # at other draws
    for name, tensor in got.items():
        assert not expected[name].any() or abs(tensor.sum() / expected[name].sum() - 1) < 0.1
    assert caplog.text.count("draws random numbers, and the information is that of one draw") == 1
    assert "disagree" not in caplog.text and "what else is in a batch" not in caplog.text
