"""Models that read values: samples that go one way alone are taken at once, and only those."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedcurv import fisher_diagonal
from fedcurv.per_sample.samples import Samples, on_one_tensor
from fedcurv.per_sample.ways import Ways
from tests.oracles import fisher as oracle

DOUBLE = torch.float64
N, LENGTH, CLASSES = 12, 5, 3


class Masked(nn.Module):
    """Attends to what a mask leaves, by a way of its own where that is everything.

    Args:
        everything: whether a batch's mask leaves everything.
    """

    def __init__(self, everything: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 6), nn.Linear(6, CLASSES)
        self.score, self.whole = nn.Linear(6, 1), nn.Linear(6, 6)
        self.everything, self.passes = everything, []

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        self.passes.append(len(ids))
        x = self.embedding(ids)
        if self.everything(mask):  # another computation, which no mask would give
            return self.head(self.whole(x).tanh().mean(1))
        scores = self.score(x).squeeze(2).masked_fill(~mask, -torch.inf)
        return self.head((scores.softmax(1).unsqueeze(2) * x).sum(1))


def batch(samples: int = N) -> tuple[dict[str, Tensor], Tensor]:
    lengths = torch.arange(samples) % 3 + LENGTH - 2
    mask = torch.arange(LENGTH) < lengths[:, None]
    ids = torch.randint(0, 20, (samples, LENGTH))
    return {"ids": ids, "mask": mask}, torch.arange(samples) % CLASSES


def one_by_one(model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    squares = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for n in range(len(labels)):
        outputs = model.eval()(*(value[n : n + 1] for value in inputs.values()))
        loss = nn.functional.cross_entropy(outputs, labels[n : n + 1])
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        for square, gradient in zip(squares.values(), gradients, strict=True):
            if gradient is not None:
                square += gradient**2
    return {name: square / len(labels) for name, square in squares.items()}


def assert_right(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, one in expected.items():
        torch.testing.assert_close(got[name], one, rtol=1e-10, atol=1e-14)
    assert any(one.any() for one in expected.values())


READS = {
    "all": lambda mask: mask.all(),
    "all, as a number": lambda mask: mask.all().item(),
    "the sum of all": lambda mask: mask.sum() == mask.numel(),
    "none that is not": lambda mask: not (~mask).any(),
    "the smallest": lambda mask: int(mask.to(torch.int64).amin()) == 1,
    "of each": lambda mask: bool((mask.sum(1) == mask.shape[1]).all()),
    "two reads": lambda mask: mask[:, -1].all() and mask.all(),
    "of a function": lambda mask: torch.all(mask == 1),
}


@pytest.mark.parametrize("kind", ["empirical", "exact"])
@pytest.mark.parametrize("read", READS)
def test_samples_with_one_answer_are_taken_at_once(read, kind, caplog):
    torch.manual_seed(0)
    model, (inputs, labels) = Masked(READS[read]).to(DOUBLE), batch()
    fisher_diagonal(model, [(inputs, labels)], kind=kind)
    model.passes.clear()
    got = fisher_diagonal(model, [(inputs, labels)] * 2, kind=kind)
    assert sum(samples > 1 for samples in model.passes) >= 4  # two ways in two batches
    assert model.passes.count(1) <= 8
    assert "one of its own" not in caplog.text
    if kind == "empirical":
        assert_right(got, one_by_one(model, inputs, labels))


def test_a_read_that_says_otherwise_of_the_batch_than_of_each_is_believed_of_each(caplog):
    torch.manual_seed(0)
    model = Masked(lambda mask: mask.sum() > 3.5).to(DOUBLE)  # so of any two samples
    inputs, labels = batch()
    got = fisher_diagonal(model, [(inputs, labels)] * 2)
    assert_right(got, one_by_one(model, inputs, labels))
    assert caplog.text.count("each sample is one of its own") == 1


def test_a_value_of_the_whole_batch_that_is_read_and_used_is_not_taken_at_once():
    torch.manual_seed(0)

    class Uses(Masked):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            share = mask.double().mean()
            scale = torch.where(share < 0.9, 1.0, 2.0)  # a sample's own may be on either side
            return super().forward(ids, mask) * scale + (0 if share > 0.5 else 1)

    model, (inputs, labels) = Uses(READS["all"]).to(DOUBLE), batch()
    assert_right(fisher_diagonal(model, [(inputs, labels)]), one_by_one(model, inputs, labels))


def test_a_value_of_the_whole_batch_that_enters_no_output_does_no_harm(caplog):
    torch.manual_seed(0)

    class WithLoss(Masked):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            self.balance = self.embedding(ids).mean(0).var()
            return super().forward(ids, mask)

    model, (inputs, labels) = WithLoss(lambda mask: False).to(DOUBLE), batch()
    got = fisher_diagonal(model, [(inputs, labels)])
    expected = one_by_one(model, inputs, labels)
    for name in ("embedding.weight", "head.weight", "score.weight"):
        torch.testing.assert_close(got[name], expected[name], rtol=1e-10, atol=1e-14)
    assert "one of its own" not in caplog.text


def test_what_is_computed_of_hidden_values_may_be_read(caplog):
    torch.manual_seed(0)

    class Guarded(Masked):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            hidden = super().forward(ids, mask)
            if hidden.isnan().any():
                raise ValueError("NaN")
            return hidden if hidden.argmax(1).sum() > 0 else 2 * hidden

    model, (inputs, labels) = Guarded(READS["all"]).to(DOUBLE), batch()
    assert_right(fisher_diagonal(model, [(inputs, labels)]), one_by_one(model, inputs, labels))


def test_more_ways_than_a_few_are_taken_by_sample(caplog):
    torch.manual_seed(0)

    class Scaled(Masked):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return super().forward(ids, mask) * float(ids.double().mean())

    model, (inputs, labels) = Scaled(READS["all"]).to(DOUBLE), batch(30)
    assert_right(fisher_diagonal(model, [(inputs, labels)]), one_by_one(model, inputs, labels))
    assert caplog.text.count("each sample is one of its own") == 1


@pytest.mark.parametrize("samples", [2, 3, 7, 30])
@pytest.mark.parametrize("options", [{}, {"chunk_size": 4}, {"kind": "exact"}])
def test_batches_of_any_size(samples, options):
    torch.manual_seed(0)
    model, (inputs, labels) = Masked(READS["all"]).to(DOUBLE), batch(samples)
    got = fisher_diagonal(model, [(inputs, labels)], **options)
    expected = fisher_diagonal(model, [one(inputs, labels, n) for n in range(samples)], **options)
    assert_right(got, expected)


def one(inputs, labels, n):
    return {name: value[n : n + 1] for name, value in inputs.items()}, labels[n : n + 1]


def test_labels_are_drawn_anew_only_by_the_seed():
    torch.manual_seed(0)
    model, (inputs, labels) = Masked(READS["all"]).to(DOUBLE), batch()

    def sampled(seed):
        generator = torch.Generator().manual_seed(seed)
        return fisher_diagonal(model, [(inputs, labels)], kind="sampled", generator=generator)

    first, again, other = sampled(1), sampled(1), sampled(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


# what leads to a read was changed in place, or is drawn: nothing is said of other samples
UNCERTAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "the value itself": lambda x: (x * 1).add_(0).sum(),
    "a view of it": lambda x: _through_a_view(x),
    "a buffer of its own": lambda x: torch.zeros(4, dtype=DOUBLE).add_(x[0]).sum(),
    "an entry": lambda x: _by_entry(x),
    "drawn": lambda x: torch.bernoulli(x.sigmoid()).sum(),
}


def _through_a_view(x: Tensor) -> Tensor:
    doubled = 2 * x
    doubled.view(-1).mul_(3)
    return doubled.sum()


def _by_entry(x: Tensor) -> Tensor:
    entries = torch.zeros(4, dtype=DOUBLE)
    entries[0] = x.sum()
    return entries.sum()


class Reader(nn.Module):
    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.read = nn.Linear(4, 2).to(DOUBLE), read

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if self.read(x) > 0.5 else self.linear(2 * x)


@pytest.mark.parametrize("read", UNCERTAIN)
def test_what_is_changed_in_place_or_drawn_before_a_read_is_not_called_again(read):
    torch.manual_seed(0)
    samples = Samples((torch.randn(9, 4, dtype=DOUBLE),), on_one_tensor, "tensor")
    parts = list(Ways(Reader(UNCERTAIN[read])).split(samples))
    assert [(rows.tolist(), way) for rows, way in parts] == [(list(range(9)), None)]


@pytest.mark.parametrize("read", [name for name in UNCERTAIN if name != "drawn"])
def test_such_reads_are_right_sample_by_sample(read):
    torch.manual_seed(0)
    model, x, labels = Reader(UNCERTAIN[read]), torch.randn(9, 4, dtype=DOUBLE), torch.arange(9) % 2
    got = fisher_diagonal(model, [(x, labels)])
    assert_right(got, oracle.empirical(model, x, labels))


def test_every_sample_is_in_one_part():
    torch.manual_seed(0)
    x = torch.randn(40, 4, dtype=DOUBLE)
    parts = list(Ways(Reader(lambda x: x.amax())).split(Samples((x,), on_one_tensor, "tensor")))
    assert sorted(row for rows, _ in parts for row in rows.tolist()) == list(range(40))
    for rows, way in parts:
        assert way is not None
        answers = {bool(x[row].amax() > 0.5) for row in rows}
        assert len(answers) == 1
