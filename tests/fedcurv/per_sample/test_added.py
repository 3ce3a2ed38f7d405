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
}
OTHERWISE = {
    "a product": ((WIDTH,), lambda x, raw: x * raw),
    "a sum and a product": ((WIDTH,), lambda x, raw: (x + raw) * raw),
    "a part": ((2 * STEPS, WIDTH), lambda x, raw: x + raw[:STEPS]),
    "two of itself": ((WIDTH,), lambda x, raw: x + (raw + raw)),
    "a function of it": ((WIDTH,), lambda x, raw: x + raw.exp()),
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
