"""Small batches that are taken together: the same numbers, and errors that name the right one."""

import pytest
import torch
from torch import nn

from fedcurv import fisher_diagonal
from fedcurv.per_sample.memory import samples_worth_a_pass
from tests.oracles import fisher as oracle

CLASSES, SAMPLES = 4, 23


class Counting(nn.Module):
    """A perceptron that notes how many samples each call has."""

    def __init__(self, most: int = 10**6) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, CLASSES)
        self.seen: list[int] = []
        self.most = most

    def forward(self, x):
        self.seen.append(len(x))
        if len(x) > self.most:
            raise RuntimeError(f"no room for {len(x)}")
        return self.b(torch.tanh(self.a(x)).sum(1) if x.ndim > 2 else torch.tanh(self.a(x)))


def problem(most=10**6):
    torch.manual_seed(0)
    model = Counting(most).double()
    return model, torch.randn(SAMPLES, 6).double(), torch.randint(0, CLASSES, (SAMPLES,))


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("sizes", [[23], [1] * 23, [5, 5, 5, 5, 3], [1, 11, 2, 0, 9], [3, 20]])
@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_the_information_does_not_depend_on_how_samples_are_batched(sizes, kind):
    model, x, y = problem()
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    got = fisher_diagonal(model, batches, kind=kind)
    expected = oracle.exact(model, x) if kind == "exact" else oracle.empirical(model, x, y)
    assert_same(got, expected)


def test_batches_of_several_shapes_and_types_are_taken_apart():
    model, x, y = problem()
    long = torch.randn(6, 3, 6).double()
    batches = [(x[:5], y[:5]), (long[:3], y[5:8]), (long[3:], y[8:11]), (x[5:9], y[11:15].byte())]
    rows = [*x[:5], *long, *x[5:9]]
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row, label in zip(rows, y[:15], strict=True):
        of_one = oracle.empirical(model, row[None], label[None])
        expected = {name: total + of_one[name] / 15 for name, total in expected.items()}
    assert_same(fisher_diagonal(model, batches), expected)


def test_a_small_network_takes_few_passes():
    model, x, y = problem()
    batches = list(zip(x.split(4), y.split(4), strict=True))
    fisher_diagonal(model, batches)
    model.seen.clear()
    fisher_diagonal(model, batches)
    assert model.seen.count(SAMPLES) == 1
    assert len(model.seen) <= 6  # and a few look whether samples interact


def test_batches_of_one_sample_are_taken_together(caplog):
    """What the first batch alone showed is not that of the second sample of them all."""
    model, x, y = problem()
    got = fisher_diagonal(model, list(zip(x.split(1), y.split(1), strict=True)), kind="exact")
    assert_same(got, oracle.exact(model, x))
    model.seen.clear()
    fisher_diagonal(model, list(zip(x.split(1), y.split(1), strict=True)), kind="exact")
    assert SAMPLES in model.seen and len(model.seen) < 10
    assert not caplog.text


def test_batches_of_mappings_are_taken_together_too():
    model, x, y = problem()
    batches = [{"x": x[n : n + 4], "labels": y[n : n + 4]} for n in range(0, SAMPLES, 4)]
    assert_same(fisher_diagonal(model, batches), oracle.empirical(model, x, y))
    assert max(model.seen) == SAMPLES


def test_what_samples_share_is_that_of_their_own_batch():
    model, x, y = problem()
    factors = torch.arange(1.0, 7.0).double()
    batches = [
        {"x": x[n : n + 4], "labels": y[n : n + 4], "factor": factors[n // 4]}
        for n in range(0, SAMPLES, 4)
    ]
    got = fisher_diagonal(model, batches, forward=lambda m, b: m(b["x"] * b["factor"]))
    scaled = x * factors.repeat_interleave(4)[:SAMPLES, None]
    assert_same(got, oracle.empirical(model, scaled, y))


class OneBuffer:
    """Reads every batch into the same memory, as some loaders do."""

    def __init__(self, x, y, size) -> None:
        self.parts = list(zip(x.split(size), y.split(size), strict=True))
        self.x, self.y = torch.empty_like(x[:size]), torch.empty_like(y[:size])

    def __iter__(self):
        for x, y in self.parts:
            yield self.x[: len(x)].copy_(x), self.y[: len(y)].copy_(y)


def test_a_loader_may_read_every_batch_into_the_same_memory():
    model, x, y = problem()
    assert_same(fisher_diagonal(model, OneBuffer(x, y, 4)), oracle.empirical(model, x, y))


@pytest.mark.parametrize("likelihood", ["categorical", nn.CrossEntropyLoss()])
def test_the_batch_with_a_wrong_label_is_named(likelihood):
    model, x, y = problem()
    y[13] = 7
    with pytest.raises(ValueError, match=r"batch 3: expected labels from 0 to 3 .*, got 7"):
        fisher_diagonal(
            model, list(zip(x.split(4), y.split(4), strict=True)), likelihood=likelihood
        )


@pytest.mark.parametrize("kind", ["empirical", "exact", "sampled"])
def test_the_first_batch_with_numbers_that_are_not_finite_is_named(kind):
    model, x, y = problem()
    x[9, 2], x[17, 0] = float("nan"), float("inf")
    told = "expected finite" if kind != "sampled" else "the model or the likelihood fails"
    with pytest.raises((ValueError, RuntimeError), match=f"batch 2: {told}"):
        fisher_diagonal(model, list(zip(x.split(4), y.split(4), strict=True)), kind=kind)


def test_a_model_that_takes_no_more_samples_than_a_batch_has_gets_no_more():
    model, x, y = problem(most=4)
    batches = list(zip(x.split(4), y.split(4), strict=True))
    assert_same(fisher_diagonal(model, batches), oracle.empirical(model, x, y))
    model.most = 3
    with pytest.raises(RuntimeError, match=r"batch 0: the model .* fails on .*no room for 4"):
        fisher_diagonal(model, batches)


def test_chunk_size_holds_for_every_batch():
    model, x, y = problem()
    batches = list(zip(x.split(4), y.split(4), strict=True))
    assert_same(fisher_diagonal(model, batches, chunk_size=2), oracle.empirical(model, x, y))
    assert SAMPLES not in model.seen
    assert model.seen.count(2) >= SAMPLES // 2


def test_what_keeps_much_for_its_backward_pass_is_worth_a_pass_of_its_own():
    cpu = torch.device("cpu")
    assert samples_worth_a_pass(2.0**22, 32, cpu) == 0
    assert samples_worth_a_pass(0.0, 32, cpu) == 0  # not known
    few, many = (samples_worth_a_pass(graph_bytes, 32, cpu) for graph_bytes in (2.0**20, 2.0**16))
    assert (few, many) == (64, 1024)
