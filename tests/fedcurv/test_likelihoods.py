"""Targets that a likelihood takes, and what it says of others."""

import pytest
import torch
from torch import nn

from fedcurv import fisher_diagonal
from fedcurv.private_fisher import private_fisher_diagonal
from tests.oracles import fisher as oracle


@pytest.mark.parametrize("kind", ["empirical", "exact", "sampled"])
@pytest.mark.parametrize("column", [True, False])
def test_bernoulli_is_the_squared_error_of_the_probability_times_the_logits_gradient(kind, column):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten() if column else nn.Flatten(0)).double()
    x, y = torch.randn(5, 4).double(), torch.rand(5).double()
    generator = torch.Generator().manual_seed(1)
    got = fisher_diagonal(model, [(x, y)], likelihood="bernoulli", kind=kind, generator=generator)
    p = 1 / (1 + torch.exp(-model(x).detach().flatten()))
    drawn = torch.bernoulli(p, generator=torch.Generator().manual_seed(1))
    squares = {"empirical": (p - y) ** 2, "exact": p * (1 - p), "sampled": (p - drawn) ** 2}[kind]
    torch.testing.assert_close(got["0.bias"], squares.mean()[None])
    torch.testing.assert_close(got["0.weight"][0], (squares[:, None] * x**2).mean(0))


@pytest.mark.parametrize("kind", ["empirical", "exact", "sampled"])
@pytest.mark.parametrize("likelihood", ["gaussian", "multilabel"])
def test_several_outputs_that_are_independent_have_the_sum_of_their_fisher_informations(
    likelihood, kind
):
    """By hand: the variance of each output's error, or the square of all errors' gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(5, 4).double(), torch.rand(5, 3).double()
    generator = torch.Generator().manual_seed(1)
    got = fisher_diagonal(model, [(x, y)], likelihood=likelihood, kind=kind, generator=generator)
    again, outputs = torch.Generator().manual_seed(1), model(x)
    p = outputs.detach().sigmoid()
    if likelihood == "gaussian":
        noise = torch.empty_like(p).normal_(generator=again)
        errors = {"empirical": outputs.detach() - y, "sampled": noise}
        variance = torch.ones_like(p)
    else:
        drawn = torch.bernoulli(p, generator=again)
        errors = {"empirical": p - y, "sampled": p - drawn}
        variance = p * (1 - p)
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter)
        for n in range(5):
            of_each = [
                torch.autograd.grad(output, parameter, retain_graph=True)[0]
                for output in outputs[n]
            ]
            if kind == "exact":
                squares = [v * g**2 for v, g in zip(variance[n], of_each, strict=True)]
                expected += sum(squares) / 5
            else:
                expected += (
                    sum(e * g for e, g in zip(errors[kind][n], of_each, strict=True)) ** 2 / 5
                )
        torch.testing.assert_close(got[name], expected)


def test_a_number_for_each_sample_may_be_a_row_or_a_column():
    torch.manual_seed(0)
    linear, x = nn.Linear(4, 1), torch.randn(5, 4)
    row = nn.Sequential(linear, nn.Flatten(0))
    exact = {"likelihood": "gaussian", "kind": "exact"}
    got = fisher_diagonal(row, [(x, torch.zeros(5))], **exact)
    torch.testing.assert_close(got["0.weight"][0], x.square().mean(0))
    column = fisher_diagonal(linear, [(x, torch.zeros(5, 1))], **exact)
    torch.testing.assert_close(column["weight"], got["0.weight"])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_labels_of_every_integer_type_are_taken(dtype):
    model, x, y = nn.Linear(4, 3), torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0])
    expected = fisher_diagonal(model, [(x, y)])
    torch.testing.assert_close(fisher_diagonal(model, [(x, y.to(dtype))]), expected)


def test_an_embedding_takes_one_index_per_sample():
    model, x = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3)), torch.tensor([1, 1, 8])
    y = torch.tensor([0, 1, 2])
    got = fisher_diagonal(model, [(x, y)])
    for name, expected in oracle.empirical(model, x, y).items():
        torch.testing.assert_close(got[name], expected)


def test_classes_may_come_last_where_no_other_reading_fits():
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.randn(2, 5, 4), torch.randint(0, 3, (2, 5))
    got = fisher_diagonal(model, [(x, y)])

    def by_hand(z, t):
        return nn.functional.cross_entropy(z.mT, t, reduction="none").sum(1)

    torch.testing.assert_close(got, fisher_diagonal(model, [(x, y)], likelihood=by_hand))
    with pytest.raises(ValueError, match="batch 0: cannot tell which axis"):
        fisher_diagonal(model, [(x[:, :3], y[:, :3])])


class Subclass(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") == "new_empty":
            raise TypeError("new_empty() is not for this class")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_tensors_of_a_subclass_are_taken_as_tensors():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    x, y = torch.randn(3, 64, 4, 4), torch.tensor([0, 1, 2])
    expected = fisher_diagonal(model, [(x, y)])
    got = fisher_diagonal(model, [(x.as_subclass(Subclass), y.as_subclass(Subclass))])
    assert all(type(tensor) is torch.Tensor for tensor in got.values())
    torch.testing.assert_close(got, expected)


def test_information_that_is_zero_everywhere_is_told(caplog):
    class Constant(nn.Linear):
        def forward(self, x):
            return x

    fisher_diagonal(Constant(3, 3), [(torch.randn(2, 3), torch.tensor([0, 1]))])
    assert caplog.text.count("zero for every parameter") == 1


X, Y = torch.randn(3, 4), torch.tensor([0, 1, 2])


@pytest.mark.parametrize("kind", ["empirical", "exact", "sampled", "signed"])
@pytest.mark.parametrize(
    ("model", "batch", "options", "message"),
    [
        (nn.Linear(4, 3), (X, Y + 0.5), {}, "class probabilities in the outputs' shape"),
        (nn.Linear(4, 3), (X, Y[:, None]), {}, r"axis away by .squeeze\(1\)"),
        (nn.Linear(4, 3), (X, torch.randn(3, 3)), {}, "batch 0: .*use likelihood='gaussian'"),
        (nn.Linear(4, 3), (X, torch.full((3, 3), 0.5)), {}, "sums from 1.5 to 1.5"),
        (nn.Linear(4, 3), (X, Y + 1), {}, r"batch 0: expected labels from 0 to 2 .*got 3"),
        (nn.Linear(4, 3), (X, Y + 255), {}, r"got 255 .*CrossEntropyLoss\(ignore_index=255\)"),
        (nn.Linear(4, 3), (X, Y - 1), {}, "got -1"),
        (nn.Linear(4, 3), (X, Y > 0), {}, r"convert them by .long\(\)"),
        (nn.Linear(4, 3), (X.double(), Y), {}, r"batch 0: .*float64 \(3, 4\).*\.to\(torch.float32"),
        (
            nn.Conv2d(1, 2, 1),
            (torch.randn(3, 1, 2, 2), torch.zeros(3, 1, 2, 2).long()),
            {},
            r"batch 0: .*take their second axis away by .squeeze\(1\)",
        ),
        (
            nn.Linear(4, 3, dtype=torch.complex64),
            (X, Y),
            {},
            "fisher_diagonal: .*complex weight, bias",
        ),
        (nn.LazyLinear(3), (X, Y), {}, "run the model on a batch once"),
        (nn.Linear(4, 3), (X, Y), {"likelihood": "bernoulli"}, "one logit per sample"),
        (nn.Linear(4, 1), (X, Y), {"likelihood": "bernoulli"}, r"targets in \[0, 1\].*0 to 2"),
        (
            nn.Linear(4, 1),
            (X, 2 * torch.ones(len(X), 1)),
            {"likelihood": "multilabel"},
            r"targets in \[0, 1\].*2 to 2",
        ),
        (
            nn.Linear(4, 1),
            (X, torch.ones(len(X))),
            {"likelihood": "multilabel"},
            r"in the shape of the outputs, \(\d, 1\), got \(\d,\)",
        ),
    ],
)
def test_what_cannot_be_right_is_refused(model, batch, options, message, kind):
    with pytest.raises(ValueError, match=message):
        fisher_diagonal(model, [batch], kind=kind, **options)


@pytest.mark.parametrize("kind", ["exact", "sampled", "signed"])
def test_labels_of_positions_must_be_classes_whatever_the_kind(kind):
    model, y = nn.Linear(4, 3), torch.tensor([[0, 1], [2, 3], [1, 1]])
    with pytest.raises(ValueError, match=r"batch 0: expected labels from 0 to 2 .* got 3"):
        fisher_diagonal(model, [(torch.randn(3, 2, 4), y)], kind=kind)


def test_what_draws_no_random_numbers_is_no_generator():
    message = "generator must be a torch.Generator, or None, got 0"
    with pytest.raises(ValueError, match=message):
        fisher_diagonal(nn.Linear(4, 3), [(X, Y)], kind="sampled", generator=0)
    with pytest.raises(ValueError, match=message.replace("generator", "noise", 1)):
        private_fisher_diagonal(nn.Linear(4, 3), [(X, Y)], clip=1.0, noise_multiplier=1.0, noise=0)


@pytest.mark.parametrize(
    ("likelihood", "targets"),
    [
        (lambda z, y: nn.functional.cross_entropy(z, y, reduction="none") / len(y), Y),
        (lambda z, y: nn.functional.cross_entropy(z - z.mean(0), y, reduction="none"), Y),
        (lambda z, y: (z[:, :1] - y).square().mean(1), Y.float()),
    ],
)
def test_a_likelihood_to_which_other_samples_contribute_is_refused(likelihood, targets):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"batch 0: .*own, got .* for one among 3 and .* alone"):
        fisher_diagonal(nn.Linear(4, 3), [(X, targets)], likelihood=likelihood)


@pytest.mark.parametrize(
    "likelihood",
    [
        lambda z, y: (z + torch.randn_like(z)).square().sum(1),  # draws
        lambda z, y: nn.functional.cross_entropy(z.squeeze(), y, reduction="none"),  # not for one
    ],
)
def test_a_likelihood_that_cannot_be_asked_for_one_sample_is_taken(likelihood):
    fisher = fisher_diagonal(nn.Linear(4, 3), [(X, Y)], likelihood=likelihood)
    assert fisher["weight"].any()
