"""Models that draw random numbers in eval mode: single samples see what the batch drew for them.

The oracle seeds torch as the estimate finds it, lets the model draw once for the batch, and gives
each sample its own part of every draw by hand.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fedcurv import fisher_diagonal
from fedcurv.per_sample import check
from fedcurv.per_sample.rules.registry import RULES, LayerRule

DOUBLE = torch.float64
N, INPUTS, HIDDEN, CLASSES = 12, 6, 4, 3
SEED = 5

Body = Callable[["Drawing", Tensor], Tensor]


@pytest.fixture(autouse=True)
def forget_checks(monkeypatch):
    monkeypatch.setattr(check, "_remembered", {})


class Drawing(nn.Module):
    """A small network whose hidden values meet draws.

    Attributes:
        kept: the draws of the last pass.
        given: draws to be taken in their places, in order; None to draw.
        passes: how many samples each pass had.
    """

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(INPUTS, 2 * HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.raw, self.scaled = nn.Parameter(torch.ones(HIDDEN)), Scaled()
        self.body, self.kept, self.given, self.passes = body, [], None, []

    def drawn(self, draw: Callable[[], Tensor]) -> Tensor:
        value = draw() if self.given is None else self.given.pop(0)
        self.kept.append(value.clone())
        return value

    def forward(self, x: Tensor) -> Tensor:
        self.kept = []
        self.passes.append(len(x))
        return self.head(self.body(self, torch.tanh(self.encoder(x))))


class Scaled(nn.Module):
    """Has parameters of its own and no closed form; draws if it is to."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.draws = nn.Parameter(torch.ones(HIDDEN)), False

    def forward(self, x: Tensor, model: Drawing) -> Tensor:
        noise = model.drawn(lambda: torch.rand_like(x)) if self.draws else 1
        return x * self.weight.exp() * noise


def vae(m: Drawing, hidden: Tensor) -> Tensor:
    mean, log_scale = hidden.chunk(2, 1)
    return mean + m.drawn(lambda: torch.randn_like(mean)) * log_scale.exp()


def of_a_distribution(m: Drawing, hidden: Tensor) -> Tensor:
    mean, log_scale = hidden.chunk(2, 1)
    distribution = torch.distributions.Normal(mean, log_scale.exp())
    if m.given is not None:
        return mean + m.given.pop(0) * log_scale.exp()
    code = distribution.rsample()
    m.kept.append(((code - mean) / log_scale.exp()).detach())
    return code


def filled(m: Drawing, hidden: Tensor) -> Tensor:
    return hidden[:, :HIDDEN] + m.drawn(lambda: hidden.new_empty(len(hidden), HIDDEN).normal_())


def functional_dropout(m: Drawing, hidden: Tensor) -> Tensor:
    ones = torch.ones_like(hidden)
    mask = m.drawn(lambda: functional.dropout(ones, 0.4, training=True))
    return (hidden * mask)[:, :HIDDEN]


def stochastic_depth(m: Drawing, hidden: Tensor) -> Tensor:
    kept = m.drawn(lambda: torch.bernoulli(torch.full((len(hidden), 1), 0.5, dtype=DOUBLE)))
    return hidden[:, :HIDDEN] + kept * hidden[:, HIDDEN:].sin()


def gumbel(m: Drawing, hidden: Tensor) -> Tensor:
    noise = m.drawn(lambda: torch.empty_like(hidden).exponential_().log())
    return ((hidden - noise) / 0.7).softmax(1)[:, :HIDDEN]


def sampled(m: Drawing, hidden: Tensor) -> Tensor:
    """Bits that are drawn with probabilities of the sample's own, with a gradient beside them."""
    p = hidden[:, :HIDDEN].sigmoid()
    bits = m.drawn(lambda: torch.bernoulli(p.detach()))
    return p + (bits - p).detach() + bits * p


def shared(m: Drawing, hidden: Tensor) -> Tensor:
    noise = m.drawn(lambda: torch.randn(HIDDEN, dtype=DOUBLE))
    return hidden[:, :HIDDEN] * noise


def shared_and_own(m: Drawing, hidden: Tensor) -> Tensor:
    first = shared(m, hidden)
    return first + m.drawn(lambda: torch.randn_like(first)) * hidden[:, HIDDEN:]


def by_steps(m: Drawing, hidden: Tensor) -> Tensor:
    steps = m.drawn(lambda: torch.rand(5, len(hidden), HIDDEN, dtype=DOUBLE))
    return (steps * hidden[:, :HIDDEN]).sum(0)


def several_each(m: Drawing, hidden: Tensor) -> Tensor:
    several = hidden[:, :HIDDEN].repeat_interleave(3, 0)
    noise = m.drawn(lambda: torch.rand_like(several))
    return (several * noise).view(len(hidden), 3, HIDDEN).mean(1)


def with_raw(m: Drawing, hidden: Tensor) -> Tensor:
    """No closed form shows the parameter: the whole model is run once more."""
    return vae(m, hidden).sin() * torch.tanh(m.raw * m.raw)


def beside_replayed(m: Drawing, hidden: Tensor) -> Tensor:
    return m.scaled(vae(m, hidden), m)


def inside_replayed(m: Drawing, hidden: Tensor) -> Tensor:
    m.scaled.draws = True
    return m.scaled(vae(m, hidden), m)


# by draw: where the samples lie; None: shared; "several": three rows each
BY_SAMPLE: dict[Body, list[object]] = {
    vae: [0],
    of_a_distribution: [0],
    filled: [0],
    functional_dropout: [0],
    stochastic_depth: [0],
    gumbel: [0],
    sampled: [0],
    shared: [None],
    shared_and_own: [None, 0],
    by_steps: [1],
    several_each: ["several"],
    with_raw: [0],
    beside_replayed: [0],
    inside_replayed: [0, 0],
}


def part(draw: Tensor, where: object, n: int) -> Tensor:
    if where is None:
        return draw
    if where == "several":
        return draw[3 * n : 3 * n + 3]
    assert isinstance(where, int)
    return draw.narrow(where, n, 1)


def problem(body: Body, samples: int = N) -> tuple[Drawing, Tensor, Tensor]:
    torch.manual_seed(0)
    model = Drawing(body).to(DOUBLE).eval()
    return model, torch.randn(samples, INPUTS, dtype=DOUBLE), torch.arange(samples) % CLASSES


def by_hand(model: Drawing, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    torch.manual_seed(SEED)
    model.eval()
    squares = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, labels in batches:
        model.given = None
        model(x)
        draws = list(zip(model.kept, BY_SAMPLE[model.body], strict=True))
        for n in range(len(labels)):
            model.given = [part(draw, where, n) for draw, where in draws]
            loss = functional.cross_entropy(model(x[n : n + 1]), labels[n : n + 1])
            gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
            for square, gradient in zip(squares.values(), gradients, strict=True):
                square += 0 if gradient is None else gradient**2
    model.given = None
    number = sum(len(labels) for _, labels in batches)
    return {name: square / number for name, square in squares.items()}


def estimate(model: Drawing, batches: list[tuple[Tensor, Tensor]], **options) -> dict[str, Tensor]:
    torch.manual_seed(SEED)
    return fisher_diagonal(model, batches, **options)


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, one in expected.items():
        torch.testing.assert_close(got[name], one, rtol=1e-9, atol=1e-13, msg=name)
    assert expected["head.weight"].any()


@pytest.mark.parametrize("body", BY_SAMPLE, ids=lambda body: body.__name__)
def test_a_batch_is_taken_at_once_at_its_own_draws(body, caplog):
    model, x, labels = problem(body)
    batches = [(x, labels), (x + 1, labels)]
    expected = by_hand(model, batches)
    model.passes.clear()
    with caplog.at_level("INFO"):
        got = estimate(model, batches, chunk_size=N)
    assert_same(got, expected)
    assert "one of its own" not in caplog.text
    assert model.passes.count(1) <= 10 and model.passes.count(N) >= 3
    told = "the forward pass draws random numbers, and the information is that of one draw"
    assert caplog.text.count(told) == 1
    assert "disagree" not in caplog.text and "what else is in a batch" not in caplog.text


@pytest.mark.parametrize("body", [vae, with_raw, shared])
@pytest.mark.parametrize("samples", [1, 2, 3, HIDDEN, 30])
def test_batches_of_any_size_are_right(body, samples):
    model, x, labels = problem(body, samples)
    assert_same(estimate(model, [(x, labels)]), by_hand(model, [(x, labels)]))


@pytest.mark.parametrize("kind", ["exact", "sampled"])
@pytest.mark.parametrize("body", [vae, with_raw, inside_replayed])
def test_the_model_s_own_labels_are_taken_at_the_batch_s_draws(body, kind):
    model, x, labels = problem(body)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    torch.manual_seed(SEED)
    with torch.no_grad():
        probabilities = model(x).softmax(1)
    if kind == "sampled":
        drawn = torch.multinomial(probabilities, 1, generator=generator())[:, 0]
        expected = by_hand(model, [(x, drawn)])
    else:
        expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for label in range(CLASSES):
            for n in range(N):
                one = by_hand_of_row(model, x, torch.full((N,), label), n)
                for name, square in one.items():
                    expected[name] += probabilities[n, label] * square / N
    options = {"generator": generator()} if kind == "sampled" else {}
    assert_same(estimate(model, [(x, labels)], kind=kind, **options), expected)


def by_hand_of_row(model: Drawing, x: Tensor, labels: Tensor, n: int) -> dict[str, Tensor]:
    torch.manual_seed(SEED)
    model.given = None
    model(x)
    draws = list(zip(model.kept, BY_SAMPLE[model.body], strict=True))
    model.given = [part(draw, where, n) for draw, where in draws]
    loss = functional.cross_entropy(model(x[n : n + 1]), labels[n : n + 1])
    model.given = None
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    names = dict(model.named_parameters())
    return {
        name: torch.zeros_like(names[name]) if gradient is None else gradient**2
        for name, gradient in zip(names, gradients, strict=True)
    }


@pytest.mark.parametrize("body", [vae, with_raw])
def test_the_seed_decides_and_the_random_state_stays(body):
    model, x, labels = problem(body)
    torch.manual_seed(SEED)
    before, of_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = fisher_diagonal(model, [(x, labels)])  # with a look and a check
    assert torch.equal(before, torch.get_rng_state())
    assert (of_numpy == np.random.get_state()[1]).all()
    again = fisher_diagonal(model, [(x, labels)])  # without a check
    torch.manual_seed(SEED + 1)
    other = fisher_diagonal(model, [(x, labels)])
    for name in ("encoder.weight", "head.weight"):
        assert torch.equal(first[name], again[name])
        assert not torch.allclose(first[name], other[name])


def test_parts_of_a_batch_draw_one_after_another():
    model, x, labels = problem(vae)
    got = estimate(model, [(x, labels)], chunk_size=5)
    parts = list(zip(x.tensor_split(3), labels.tensor_split(3), strict=True))
    assert_same(got, by_hand(model, parts))


# what cannot be told apart by sample, or what decides for the batch
ALONE: dict[str, Body] = {
    "a number of draws that values decide": lambda m, h: (
        h[:, :HIDDEN] + sum(torch.randn_like(h[:, :1]) for _ in range(1 + int(h.sum() > 0)))
    ),
    "a draw of the batch's order": lambda m, h: (
        h[:, :HIDDEN] + h[torch.randperm(len(h)), HIDDEN:]
    ),
    "a draw's mean over the samples": lambda m, h: (
        h[:, :HIDDEN] * torch.randn_like(h[:, :HIDDEN]).mean(0)
    ),
    "a draw with fewer values for more samples": lambda m, h: (
        h[:, :HIDDEN] * torch.rand(60 // len(h), dtype=DOUBLE).mean()
    ),
    "a drawn number that is read": lambda m, h: (
        h[:, :HIDDEN] * (1 if torch.rand(()) < 0.5 else 2)
    ),
    "a draw beside a value that is read": lambda m, h: (
        vae(m, h) if bool((h[:, 0] > -2).all()) else h[:, :HIDDEN]
    ),
    "a checkpoint in the backward pass of which it draws again": lambda m, h: checkpoint(
        with_raw, m, h, use_reentrant=False
    ),
    "a draw as long as the masked values": lambda m, h: (
        h[:, :HIDDEN] + torch.randn(h[h > 0].shape, dtype=DOUBLE).mean()
    ),
    "probabilities of the whole batch": lambda m, h: (
        h[:, :HIDDEN] * torch.bernoulli((8 * h[:, :HIDDEN].mean(0)).sigmoid().expand(len(h), -1))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_what_cannot_be_told_apart_by_sample_is_taken_alone_and_told(name, caplog):
    model, x, labels = problem(ALONE[name])
    got = estimate(model, [(x, labels)], chunk_size=N)
    assert caplog.text.count("so each sample is one of its own") == 1
    assert model.passes.count(1) >= N
    batch_first = one_after_another(model, x, labels, batch_first=True)
    expected = one_after_another(model, x, labels, batch_first=False)
    found_out_later = torch.allclose(got["head.weight"], batch_first["head.weight"])
    assert_same(got, batch_first if found_out_later else expected)


def one_after_another(
    model: Drawing, x: Tensor, labels: Tensor, *, batch_first: bool
) -> dict[str, Tensor]:
    """Return the information of samples that draw alone, after a pass over all if that is said."""
    torch.manual_seed(SEED)
    if batch_first:
        model(x)
    squares = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for n in range(len(labels)):
        loss = functional.cross_entropy(model(x[n : n + 1]), labels[n : n + 1])
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        for square, gradient in zip(squares.values(), gradients, strict=True):
            square += 0 if gradient is None else gradient**2 / len(labels)
    return squares


def test_dropout_after_what_stands_in_for_attention_is_taken_at_once(caplog):
    """What stands in for attention returns its values in another order in memory."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(INPUTS, 2, 8, dropout=0.3, batch_first=True)
            self.head, self.passes = nn.Linear(INPUTS, CLASSES), []

        def forward(self, x: Tensor) -> Tensor:
            self.passes.append(len(x))
            self.layer.train()
            return self.head(self.layer(x).mean(1))

    torch.manual_seed(0)
    model, x = Encoder().to(DOUBLE), torch.randn(N, 5, INPUTS, dtype=DOUBLE)
    fisher_diagonal(model, [(x, torch.arange(N) % CLASSES)])
    assert "one of its own" not in caplog.text
    assert model.passes.count(1) <= 10 and model.passes.count(N) >= 2


def test_samples_that_interact_are_found_out_though_the_model_draws(caplog):
    model, x, labels = problem(lambda m, h: vae(m, h) * h[:, :HIDDEN].mean())
    estimate(model, [(x, labels)])
    assert caplog.text.count("each sample is one of its own") == 1


def test_a_wrong_rule_is_found_out_though_the_model_draws(monkeypatch, caplog):
    class ForgetsTheSquare(LayerRule):
        def add_squares(self, module, x, g, totals):
            for name, total in totals.items():
                total += (g.T @ x if name == "weight" else g.sum(0)).square()

    monkeypatch.setitem(RULES, nn.Linear, ForgetsTheSquare())
    model, x, labels = problem(vae)
    expected = by_hand(model, [(x, labels)])
    assert_same(estimate(model, [(x, labels)]), expected)
    assert "encoder.bias, encoder.weight, head.bias, head.weight disagree" in caplog.text
