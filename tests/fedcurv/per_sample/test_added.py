"""Parameters of the model itself that are added, or repeated, for each sample."""

import pytest
import torch
from torch import nn

from fedcurv import fisher_diagonal
from tests.oracles import fisher as oracle

N, STEPS, WIDTH, CLASSES = 5, 4, 6, 3
DOUBLE = torch.float64


class Adding(nn.Module):
    """Makes of (N, STEPS, WIDTH), by a raw parameter, logits."""

    def __init__(self, shape, combine):
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.raw, self.combine = nn.Parameter(torch.randn(shape)), combine

    def forward(self, x):
        hidden = self.combine(self.body(x), self.raw).tanh()
        return self.head(hidden.flatten(1, -2).mean(1))


def time_first(x, raw):
    return (x.transpose(0, 1) + raw).transpose(0, 1)


CLOSED = {
    "positions": ((1, STEPS, WIDTH), lambda x, raw: x + raw),
    "positions without an axis of samples": ((STEPS, WIDTH), lambda x, raw: raw + x),
    "one for all positions": ((WIDTH,), lambda x, raw: x + raw),
    "one number": ((), lambda x, raw: x + raw),
    "a column": ((STEPS, 1), lambda x, raw: x + raw),
    "subtracted": ((STEPS, WIDTH), lambda x, raw: x - raw),
    "subtracted from": ((STEPS, WIDTH), lambda x, raw: raw - x),
    "a multiple": ((WIDTH,), lambda x, raw: torch.add(x, raw, alpha=-3)),
    "in place": ((WIDTH,), lambda x, raw: (2 * x).add_(raw)),
    "twice": ((WIDTH,), lambda x, raw: (x + raw).tanh() - raw),
    "a token": ((1, 1, WIDTH), lambda x, raw: torch.cat([raw.expand(len(x), 1, -1), x], 1)),
    "a token and a sum": (
        (1, 1, WIDTH),
        lambda x, raw: torch.cat([raw.expand(len(x), 1, -1), x + raw], 1),
    ),
    "time first": ((STEPS, 1, WIDTH), time_first),
    "time first, for all steps": ((1, 1, WIDTH), time_first),
    "a product": ((WIDTH,), lambda x, raw: x * raw),
    "a product from the left": ((STEPS, 1), lambda x, raw: raw * x),
    "a product in place": ((WIDTH,), lambda x, raw: (x + 0).mul_(raw)),
    "a sum and a product": ((WIDTH,), lambda x, raw: (x + raw) * raw),
    "a product of numbers without a gradient": ((WIDTH,), lambda x, raw: x + x.detach() * raw),
    "a part": ((2 * STEPS, WIDTH), lambda x, raw: x + raw[:STEPS]),
    "two parts": ((2 * STEPS, WIDTH), lambda x, raw: x * raw[:STEPS] + raw[STEPS:]),
    "a row": ((3, WIDTH), lambda x, raw: x + raw[1]),
    "rows apart": ((2, WIDTH), lambda x, raw: x * raw.unbind()[0] + raw.split(1)[1]),
    "with an axis more": ((STEPS, WIDTH), lambda x, raw: x + raw.unsqueeze(0)),
    "with its axes turned": ((WIDTH, STEPS), lambda x, raw: x * raw.T),
    "in another shape": ((STEPS * WIDTH,), lambda x, raw: x + raw.view(1, STEPS, WIDTH)),
    "a function of it": ((WIDTH,), lambda x, raw: x + raw.exp()),
    "several functions of it": (
        (WIDTH,),
        lambda x, raw: x * raw.sigmoid() - nn.functional.softplus(raw[None]),
    ),
    "a token with an axis more": (
        (WIDTH,),
        lambda x, raw: torch.cat([raw[None, None].expand(len(x), 1, -1), x], 1),
    ),
    "a repeated token": (
        (1, 2, WIDTH),
        lambda x, raw: torch.cat([raw.repeat(len(x), 1, 1), x], 1),
    ),
    "a repeated token, in tiles": (
        (2, WIDTH // 2),
        lambda x, raw: torch.cat([raw.repeat(len(x), 3, 2), x], 1),
    ),
    "time first, a product": (
        (STEPS, 1, WIDTH),
        lambda x, raw: (x.transpose(0, 1) * raw).transpose(0, 1),
    ),
}
OTHERWISE = {
    "two of itself": ((WIDTH,), lambda x, raw: x + (raw + raw)),
    "a product of itself": ((WIDTH,), lambda x, raw: x + raw * raw),
    "rows by samples": ((STEPS, WIDTH), lambda x, raw: x + raw[x[:, :, 0].argmax(1)][:, None]),
    "a matrix": ((WIDTH, WIDTH), lambda x, raw: x @ raw),
    "a part and a matrix": ((WIDTH, WIDTH), lambda x, raw: x @ raw + raw[0]),
}


def assert_right(model, samples=N, **options):
    x, labels = torch.randn(samples, STEPS, WIDTH), torch.randint(0, CLASSES, (samples,))
    model, x = model.to(DOUBLE), x.to(DOUBLE)
    got = fisher_diagonal(model, [(x, labels)], **options)
    exact = options.get("kind") == "exact"
    expected = oracle.exact(model, x) if exact else oracle.empirical(model, x, labels)
    for name, one in expected.items():
        torch.testing.assert_close(got[name], one, rtol=1e-5, atol=1e-12)
        assert one.any()


# as many samples as steps, or as numbers: which axis is theirs?
@pytest.mark.parametrize("samples", [1, 2, N, STEPS, WIDTH])
@pytest.mark.parametrize("kind", ["empirical", "exact"])
@pytest.mark.parametrize("name", CLOSED)
def test_they_have_a_closed_form(name, kind, samples, replayed):
    torch.manual_seed(0)
    assert_right(Adding(*CLOSED[name]), samples, kind=kind)
    assert not replayed


@pytest.mark.parametrize("samples", [1, N, STEPS])
@pytest.mark.parametrize("name", {**CLOSED, **OTHERWISE})
def test_they_are_right_without_the_self_check_too(name, samples):
    torch.manual_seed(0)
    assert_right(Adding(*{**CLOSED, **OTHERWISE}[name]), samples, self_check=False)


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_enters_otherwise_is_run_by_sample(name, replayed):
    torch.manual_seed(0)
    assert_right(Adding(*OTHERWISE[name]))
    assert replayed == {("", "raw")}


def test_one_that_nothing_depends_on_has_zeros():
    torch.manual_seed(0)
    model = Adding((WIDTH,), lambda x, raw: x + 0 * (x + raw).detach())
    x, labels = torch.randn(N, STEPS, WIDTH), torch.randint(0, CLASSES, (N,))
    assert not fisher_diagonal(model, [(x, labels)])["raw"].any()


def test_several_batches_and_chunks():
    torch.manual_seed(0)
    model = Adding(*CLOSED["a token and a sum"]).to(DOUBLE)
    x, labels = torch.randn(11, STEPS, WIDTH, dtype=DOUBLE), torch.randint(0, CLASSES, (11,))
    expected = oracle.empirical(model, x, labels)
    for options in ({}, {"chunk_size": 2}):
        batches = [(x[:STEPS], labels[:STEPS]), (x[STEPS:], labels[STEPS:])]
        got = fisher_diagonal(model, batches, **options)
        for name, one in expected.items():
            torch.testing.assert_close(got[name], one, rtol=1e-5, atol=1e-12)


class Positions(nn.Module):
    """Rows of a table, picked by numbers that all samples share, are added to words."""

    def __init__(self, *, shared, **options):
        super().__init__()
        self.words, self.head = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.positions, self.shared = nn.Embedding(2 * STEPS, WIDTH, **options), shared
        self.register_buffer("numbers", torch.arange(STEPS)[None])

    def forward(self, x):
        numbers = self.numbers if self.shared else self.numbers.expand(len(x), -1)
        return self.head((self.words(x) + self.positions(numbers)).tanh().mean(1))


@pytest.mark.parametrize("samples", [1, 2, STEPS, 9])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 1}])
@pytest.mark.parametrize("shared", [True, False])
def test_a_table_of_positions(shared, options, samples, replayed):
    torch.manual_seed(0)
    model = Positions(shared=shared, **options).to(DOUBLE)
    x, labels = torch.randint(0, 9, (samples, STEPS)), torch.randint(0, CLASSES, (samples,))
    got = fisher_diagonal(model, [(x, labels)])
    for name, one in oracle.empirical(model, x, labels).items():
        torch.testing.assert_close(got[name], one, rtol=1e-10, atol=1e-14)
    assert got["positions.weight"].any() and not replayed


def test_a_hook_on_a_parameter_is_not_called():
    torch.manual_seed(0)
    model = Adding(*CLOSED["a part"])
    model.raw.register_hook(lambda gradient: 0 * gradient)
    model.raw.grad = torch.ones_like(model.raw)
    assert_right_but_for_hooks(model)
    assert torch.equal(model.raw.grad, torch.ones_like(model.raw))


def assert_right_but_for_hooks(model):
    x, labels = torch.randn(N, STEPS, WIDTH), torch.randint(0, CLASSES, (N,))
    got = fisher_diagonal(model, [(x, labels)])
    model.raw._backward_hooks.clear()
    expected = fisher_diagonal(model, [(x, labels)])
    assert expected["raw"].any() and torch.equal(got["raw"], expected["raw"])
