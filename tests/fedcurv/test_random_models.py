"""Random small models, many in one process, each against a loop over its single samples.

All are called ``Net`` and have the same modules; what ``forward`` does with them is a program of
steps drawn at random. So nothing but the computation itself can tell two of them apart.
"""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedcurv import fisher_diagonal
from tests.oracles import fisher as oracle

CLASSES, FEATURES = 3, 6

Step = Callable[[nn.Module, Tensor], Tensor]


def time_first(layer: Callable[[Tensor], Tensor], x: Tensor, steps: int) -> Tensor:
    """Cut every sample into steps and let the layer see them before the samples."""
    return layer(x.reshape(len(x), steps, -1).transpose(0, 1)).transpose(0, 1).flatten(1)


def batch_first(layer: Callable[[Tensor], Tensor], x: Tensor, steps: int) -> Tensor:
    return layer(x.reshape(len(x), steps, -1)).flatten(1)


def without_gradients(m: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return x + m.second(x)


def attended(m: nn.Module, x: Tensor) -> Tensor:
    tokens = x.reshape(len(x), 3, 2)
    return x + m.attention(tokens, tokens, tokens, need_weights=False)[0].flatten(1)


STEPS: dict[str, Step] = {
    "first": lambda m, x: m.first(x),
    "second": lambda m, x: m.second(x),
    "first by keyword": lambda m, x: m.first(input=x),
    "first, then second": lambda m, x: m.second(torch.tanh(m.first(x))),
    "both ways round": lambda m, x: m.first(m.second(x)) + m.second(torch.sin(m.first(x))),
    "residual": lambda m, x: x + m.second(x),
    "residual in place": lambda m, x: m.second(x).add_(x),
    "weight as a matrix": lambda m, x: x @ m.first.weight,
    "functional linear": lambda m, x: functional.linear(x, m.first.weight, m.first.bias),
    "only the weight": lambda m, x: functional.linear(x, m.second.weight),
    "only the bias": lambda m, x: x + m.second.bias,
    "norm": lambda m, x: m.norm(x),
    "functional norm": lambda m, x: functional.layer_norm(x, (FEATURES,), m.norm.weight),
    "two steps, samples first": lambda m, x: batch_first(m.small, x, 2),
    "two steps, time first": lambda m, x: time_first(m.small, x, 2),
    "convolution": lambda m, x: m.convolution(x.reshape(len(x), 2, 3)).flatten(1),
    "convolution, twice": lambda m, x: m.convolution(
        torch.tanh(m.convolution(x.reshape(len(x), 2, 3)))
    ).flatten(1),
    "attention": attended,
    "raw parameter": lambda m, x: x * m.scale,
    "slope": lambda m, x: m.slope(x),
    "slope of a copy": lambda m, x: functional.prelu(x, m.slope.weight),
    "detached": lambda m, x: x + m.first(x).detach(),
    "without gradients": without_gradients,
    "sum of two uses": lambda m, x: m.first(x) + m.first(2 * x),
    "squared weight": lambda m, x: functional.linear(x, m.second.weight.square()),
    "centred over the batch": lambda m, x: m.first(x - x.mean(0)),
}


def new_class() -> type[nn.Module]:
    """Return a class that has its name in common with all others, as in a notebook."""

    class Net(nn.Module):
        def __init__(self, program: list[str], *, tied: bool) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
            self.small, self.norm = nn.Linear(3, 3), nn.LayerNorm(FEATURES)
            self.convolution = nn.Conv1d(2, 2, 3, padding=1)
            self.attention = nn.MultiheadAttention(2, 1, batch_first=True)
            self.slope, self.scale = nn.PReLU(FEATURES), nn.Parameter(torch.randn(FEATURES))
            self.head = nn.Linear(FEATURES, CLASSES)
            self.program = program
            if tied:
                self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            for step in self.program:
                x = torch.tanh(STEPS[step](self, x))
            return self.head(x)

    return Net


def drawn_program(draw: random.Random) -> list[str]:
    return draw.choices(list(STEPS), k=draw.randint(1, 4))


def assert_right(model: nn.Module, draw: random.Random) -> None:
    samples = draw.randint(2, 5)
    inputs = torch.randn(samples, FEATURES, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (samples,))
    size = draw.choice([samples, samples, 2])
    batches = list(zip(inputs.split(size), labels.split(size), strict=True))
    if draw.random() < 0.25:
        got, expected = fisher_diagonal(model, batches, kind="exact"), oracle.exact(model, inputs)
    else:
        got, expected = fisher_diagonal(model, batches), oracle.empirical(model, inputs, labels)
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        torch.testing.assert_close(
            tensor,
            expected[name],
            rtol=1e-7,
            atol=1e-12,
            msg=lambda text, name=name: f"{name} with {model.program}, {samples} samples: {text}",
        )


def check_models(number: int, seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    shared = new_class()
    for _ in range(number):
        net = draw.choice([shared, new_class()])
        model = net(drawn_program(draw), tied=draw.random() < 0.2).double()
        for frozen in draw.sample([model.first.bias, model.norm.weight, model.small.weight], k=1):
            frozen.requires_grad_(draw.random() < 0.8)
        assert_right(model, draw)
        if draw.random() < 0.3:  # as by a flag that is set on a model that was seen before
            model.program = drawn_program(draw)
            assert_right(model, draw)


def test_models_that_differ_in_their_forward_pass_alone_have_their_own_fisher_diagonal():
    check_models(40, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_a_hundred_random_models_have_the_fisher_diagonal_of_their_single_samples(seed):
    check_models(100, seed)
