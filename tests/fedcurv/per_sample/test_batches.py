"""Batches of one sample, of other sizes than those before, and in orders of the model's own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fedcurv import fisher_diagonal
from tests.oracles import fisher as oracle

Body = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    """Does something with a layer of its own before its head."""

    def __init__(self, layer: nn.Module, body: Body, features: int = 6) -> None:
        super().__init__()
        self.layer, self.head, self.body = layer, nn.Linear(features, 3), body
        self.constant = nn.Parameter(torch.randn(1, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self, x)))


def assert_right(model: nn.Module, inputs: Tensor, sizes: list[int]) -> None:
    labels = torch.arange(len(inputs)) % 3
    batches = list(zip(inputs.split(sizes), labels.split(sizes), strict=True))
    got = fisher_diagonal(model, batches)
    for name, expected in oracle.empirical(model, inputs, labels).items():
        torch.testing.assert_close(got[name], expected, msg=lambda m, n=name: f"{n}: {m}")


def ordered_by_value(m: nn.Module, x: Tensor) -> Tensor:
    order = x[:, 0].argsort()
    return m.layer(x[order])[order.argsort()] * m.layer(x)


def ordered_by_selection(m: nn.Module, x: Tensor) -> Tensor:
    order = x[:, 0].argsort()
    return m.layer(x.index_select(0, order)).index_select(0, order.argsort()) * m.layer(x)


BODIES: dict[str, tuple[Callable[[], nn.Module], Body]] = {
    "a layer of a constant": (lambda: nn.Linear(6, 6), lambda m, x: x * m.layer(m.constant)),
    "a row for all": (
        lambda: nn.Embedding(3, 6),
        lambda m, x: x + m.layer(torch.zeros(1, dtype=torch.long)),
    ),
    "centring of more than one": (
        lambda: nn.Linear(6, 6),
        lambda m, x: m.layer(x - x.mean(0) if len(x) > 1 else x),
    ),
    "centring of more than five": (
        lambda: nn.Linear(6, 6),
        lambda m, x: m.layer(x - x.mean(0) if len(x) > 5 else x),
    ),
    "order by value": (lambda: nn.Linear(6, 6), ordered_by_value),
    "order by selection": (lambda: nn.Linear(6, 6), ordered_by_selection),
}


@pytest.mark.parametrize("sizes", [[1, 8], [5, 4], [8, 1]])
@pytest.mark.parametrize("name", BODIES)
def test_batches_of_other_sizes_are_looked_at_anew(name, sizes):
    torch.manual_seed(1)  # with which the first two samples stand in order
    make, body = BODIES[name]
    model = Net(make(), body).double()
    assert_right(model, torch.randn(9, 6, dtype=torch.float64), sizes)


def by_position(m: nn.Module, x: Tensor) -> Tensor:
    return m.layer(x.reshape(-1, 1)).reshape(len(x), -1)


def by_patch(m: nn.Module, x: Tensor) -> Tensor:
    patches = x.reshape(-1, 1, 6, 2)
    return m.layer(patches).reshape(len(x), -1)


def without_batch(m: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([m.layer(row.unsqueeze(0)).flatten() for row in x])


POSITIONS: dict[str, tuple[Callable[[], nn.Module], Body, int]] = {
    "linear": (lambda: nn.Linear(1, 1), by_position, 6),
    "layer norm": (lambda: nn.LayerNorm(1, bias=False), by_position, 6),
    "batch norm": (lambda: nn.BatchNorm1d(1), by_position, 6),
    "group norm": (lambda: nn.GroupNorm(1, 1), by_position, 6),
    "slope": (lambda: nn.PReLU(), by_position, 6),
    "convolution of patches": (lambda: nn.Conv2d(1, 1, 3, padding=1), by_patch, 36),
    "group norm of patches": (lambda: nn.GroupNorm(1, 1), by_patch, 36),
    "slope of patches": (lambda: nn.PReLU(), by_patch, 36),
    "convolution without a batch": (lambda: nn.Conv1d(1, 1, 3, padding=1), without_batch, 6),
    "instance norm without a batch": (
        lambda: nn.InstanceNorm1d(1, affine=True),
        without_batch,
        6,
    ),
    "slope of one number": (lambda: nn.PReLU(), lambda m, x: x * m.layer(x[:, 0])[:, None], 6),
}


@pytest.mark.parametrize("sizes", [[1, 1], [5], [1, 4]])
@pytest.mark.parametrize("name", POSITIONS)
def test_axes_of_length_one_are_not_taken_for_samples(name, sizes):
    torch.manual_seed(0)
    make, body, features = POSITIONS[name]
    model = Net(make(), body, features).double()
    assert_right(model, torch.randn(sum(sizes), features, dtype=torch.float64), sizes)


class Packed(nn.Module):
    """Sequences of unlike lengths, sorted and packed for a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        lengths = 1 + (x[:, :, 0] > 0).sum(1).clamp(max=3)
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.layer(packed)[0], batch_first=True, total_length=4)
        return self.head(states.mean(1))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_packed_sequences_are_right(kind):
    torch.manual_seed(0)
    model = Packed(kind(5, 4, batch_first=True)).double()
    assert_right(model, torch.randn(6, 4, 5, dtype=torch.float64), [4, 2])


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_scripted_modules_are_run_whole():
    torch.manual_seed(0)
    model = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double())
    assert_right(model, torch.randn(5, 6, dtype=torch.float64), [5])


@pytest.mark.parametrize("samples", [1, 3])
def test_more_rows_than_samples_are_refused(samples):
    model = Net(nn.Linear(6, 6), lambda m, x: torch.cat([m.layer(x), m.layer(-x)]))
    batch = torch.randn(samples, 6), torch.zeros(samples, dtype=torch.long)
    with pytest.raises(ValueError, match=r"batch 0: expected outputs with a row for each of"):
        fisher_diagonal(model, [batch], likelihood=lambda z, y: z[: len(y)].square().sum(1))


class Fields(dict):
    """Has items as attributes, as outputs of well-known libraries have."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


class Object:
    def __init__(self, **fields: Tensor) -> None:
        vars(self).update(fields)


class Block(nn.Module):
    """Has no closed form, and takes and returns objects."""

    def __init__(self, kind: Callable[..., object]) -> None:
        super().__init__()
        self.weight, self.kind = nn.Parameter(torch.randn(6, 6)), kind

    def forward(self, taken: object) -> object:
        return self.kind(states=torch.tanh(taken.states @ self.weight))


@pytest.mark.parametrize("sizes", [[5], [1, 4]])
@pytest.mark.parametrize("kind", [Fields, Object])
def test_tensors_in_objects_of_other_classes_are_right(kind, sizes):
    torch.manual_seed(0)
    model = Net(Block(kind), lambda m, x: m.layer(kind(states=x * m.constant)).states).double()
    assert_right(model, torch.randn(5, 6, dtype=torch.float64), sizes)
