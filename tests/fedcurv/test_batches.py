"""Batches of any form: dictionaries, several inputs, what samples share, forward= and targets=."""

from collections import UserDict, namedtuple
from collections.abc import MutableMapping
from dataclasses import InitVar, dataclass, field
from types import MappingProxyType

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from fedcurv import fisher_diagonal

SAMPLES, STEPS, WORDS, CLASSES = 9, 5, 11, 3
DOUBLE = torch.float64


@dataclass
class Output:
    """As of Hugging Face's models: logits, and more."""

    logits: Tensor
    hidden: Tensor


class Encoder(nn.Module):
    """Words and which of them count; a closed form for all but the raw scale."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.body = nn.Embedding(WORDS, 6), nn.Linear(6, 6)
        self.head, self.scale = nn.Linear(6, CLASSES), nn.Parameter(torch.rand(6))

    def forward(self, input_ids, attention_mask=None, shift=0.0):
        hidden = self.body(self.words(input_ids)).tanh()
        if attention_mask is not None:
            hidden = hidden * attention_mask.unsqueeze(-1)
        return Output(self.head(hidden.mean(1) * self.scale + shift), hidden)


class Tokens(UserDict):
    """As a tokenizer returns them: a mapping that is no dict."""


Pair = namedtuple("Pair", ["ids", "mask"])


@dataclass(frozen=True)
class Batch:
    ids: Tensor
    mask: Tensor
    note: str = "shared"


def problem(seed=0, samples=SAMPLES):
    torch.manual_seed(seed)
    model = Encoder().to(DOUBLE)
    ids = torch.randint(0, WORDS, (samples, STEPS))
    mask = (torch.rand(samples, STEPS) > 0.3).to(DOUBLE)
    return model, ids, mask, torch.randint(0, CLASSES, (samples,))


def by_loop(model, losses, samples=SAMPLES):
    """Return the mean of squared gradients of losses(n), one sample at a time."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for n in range(samples):
        gradients = torch.autograd.grad(losses(n), list(model.parameters()), allow_unused=True)
        for name, gradient in zip(total, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.square() / samples
    return total


def of_encoder(model, ids, mask, labels, **more):
    def loss(n):
        logits = model(ids[n : n + 1], mask[n : n + 1], **more).logits
        return nn.functional.cross_entropy(logits, labels[n : n + 1])

    return by_loop(model, loss, len(ids))


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, one in expected.items():
        torch.testing.assert_close(got[name], one, rtol=1e-5, atol=1e-12)
    assert all(one.any() for one in got.values())


FORMS = {
    "a mapping with labels": lambda ids, mask, y: {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": y,
    },
    "a tokenizer's mapping": lambda ids, mask, y: Tokens(
        input_ids=ids, attention_mask=mask, labels=y
    ),
    "a pair of a mapping and labels": lambda ids, mask, y: (
        {"input_ids": ids, "attention_mask": mask},
        y,
    ),
    "a pair of a tuple and labels": lambda ids, mask, y: ((ids, mask), y),
    "a pair of a named tuple and labels": lambda ids, mask, y: [Pair(ids, mask), y],
}


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("form", FORMS)
def test_batches_of_usual_forms_need_no_argument(form, chunk_size):
    model, *data = problem()
    batches = [FORMS[form](*(t[:5] for t in data)), FORMS[form](*(t[5:] for t in data))]
    assert_same(fisher_diagonal(model, batches, chunk_size=chunk_size), of_encoder(model, *data))


@pytest.mark.parametrize("kind", ["exact", "sampled"])
def test_the_other_kinds_take_them_too(kind):
    model, ids, mask, labels = problem()
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    got = fisher_diagonal(model, [batch], kind=kind, generator=torch.Generator().manual_seed(1))
    one_tensor = torch.cat([ids.to(DOUBLE), mask], 1)

    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x):
            return self.net(x[:, :STEPS].long(), x[:, STEPS:]).logits

    generator = torch.Generator().manual_seed(1)
    expected = fisher_diagonal(Split(), [(one_tensor, labels)], kind=kind, generator=generator)
    assert_same(got, {name.removeprefix("net."): one for name, one in expected.items()})


def test_what_all_samples_share_is_passed_on_as_it_is():
    model, ids, mask, labels = problem()
    shift = torch.linspace(0, 1, 6, dtype=DOUBLE)
    batches = [
        {"input_ids": ids[p], "attention_mask": mask[p], "shift": shift, "labels": labels[p]}
        for p in (slice(0, 4), slice(4, SAMPLES))
    ]
    assert_same(fisher_diagonal(model, batches), of_encoder(model, ids, mask, labels, shift=shift))


def test_forward_gets_the_model_and_the_batch_in_its_own_form():
    model, ids, mask, labels = problem()
    seen = set()

    def forward(got, batch):
        seen.add((type(batch), batch.note))
        return got(batch.ids, batch.mask).logits

    batches = [Batch(ids, mask)]
    got = fisher_diagonal(model, batches, forward=forward, targets=lambda batch: labels)
    assert_same(got, of_encoder(model, ids, mask, labels))
    assert seen == {(Batch, "shared")}


def test_nests_within_nests():
    model, ids, mask, labels = problem()
    batch = {"text": [{"ids": ids}, Batch(ids, mask)], "y": labels, "name": "x", "number": 3}

    def forward(got, batch):
        assert batch["name"] == "x" and batch["number"] == 3
        return got(batch["text"][0]["ids"], batch["text"][1].mask)

    got = fisher_diagonal(model, [batch], forward=forward, targets="y")
    assert_same(got, of_encoder(model, ids, mask, labels))


def test_a_model_whose_forward_is_a_part_of_it():
    """As of Lightning modules: the head is called by the training step."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = nn.Linear(4, 5), nn.Linear(5, CLASSES)

        def forward(self, x):
            return self.encoder(x).relu()

    torch.manual_seed(0)
    model, x = Parts().to(DOUBLE), torch.randn(SAMPLES, 4, dtype=DOUBLE)
    labels = torch.randint(0, CLASSES, (SAMPLES,))
    got = fisher_diagonal(model, [(x, labels)], forward=lambda m, batch: m.head(m(batch[0])))

    def loss(n):
        logits = model.head(model(x[n : n + 1]))
        return nn.functional.cross_entropy(logits, labels[n : n + 1])

    assert_same(got, by_loop(model, loss))


def test_targets_that_are_the_inputs():
    """As of an autoencoder, which returns more than its reconstruction."""

    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Linear(4, 2), nn.Linear(2, 4)

        def forward(self, x):
            code = self.down(x)
            return self.up(code.tanh()), code

    torch.manual_seed(0)
    model, x = Autoencoder().to(DOUBLE), torch.randn(SAMPLES, 4, dtype=DOUBLE)
    got = fisher_diagonal(
        model,
        [(x, torch.zeros(SAMPLES))],
        forward=lambda m, batch: m(batch[0])[0],
        targets=lambda batch: batch[0],
        likelihood="gaussian",
    )
    assert_same(got, by_loop(model, lambda n: 0.5 * (model(x[n])[0] - x[n]).square().sum()))


def test_samples_that_decide_for_one_another_are_found_in_any_form(caplog):
    model, ids, mask, labels = problem()

    def forward(got, batch):
        logits = got(**batch["x"]).logits
        return logits * (2.0 if batch["x"]["attention_mask"].sum() > 2 * STEPS else 1.0)

    batch = {"x": {"input_ids": ids, "attention_mask": mask}, "labels": labels}
    got = fisher_diagonal(model, [batch], forward=forward)
    assert "each sample is one of its own" in caplog.text
    assert_same(got, of_encoder(model, ids, mask, labels))


def test_nothing_of_the_batch_is_changed():
    model, ids, mask, labels = problem()
    batch = Tokens(input_ids=ids, attention_mask=mask, labels=labels)
    before = {name: (value, value.clone()) for name, value in batch.items()}
    fisher_diagonal(model, [batch], chunk_size=2)
    assert list(batch) == list(before)
    for name, (value, copied) in before.items():
        assert batch[name] is value and torch.equal(value, copied)


GOOD = {"input_ids": torch.zeros(4, STEPS).long(), "labels": torch.zeros(4).long()}


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([{"input_ids": GOOD["input_ids"]}], {}, r"batch 0: .* with 'labels', got dict with 'inp"),
        ([GOOD], {"targets": "y"}, "mapping with 'y', got dict with 'input_ids', 'labels'"),
        ([{**GOOD, "labels": [0, 1, 2, 0]}], {}, "targets as a tensor .*, got list of 4 items"),
        ([{**GOOD, "labels": torch.zeros(())}], {}, r"samples along its first axis, got float32"),
        (
            [{**GOOD, "labels": torch.zeros(3).long()}],
            {},
            r"a tensor with the 3 samples of the targets .*, got int64 \(4, 5\)",
        ),
        ([(("a", "b"), torch.zeros(3).long())], {}, "got no tensors"),
        (
            [{"image": torch.zeros(4, 2)}],
            {"targets": "image"},
            "the batch holds nothing but its targets; .* forward=lambda model, batch: model",
        ),
        (
            [(pack_sequence([torch.ones(2), torch.ones(1)]), torch.zeros(2).long())],
            {},
            "got a PackedSequence, to be packed in forward= instead",
        ),
        (
            [tuple(torch.zeros(4, 1).long() for _ in range(3))],
            {"targets": lambda batch: batch[2]},
            "batch 0: cannot tell which of 3 items the model takes, .* forward=lambda model, batch",
        ),
        (
            [GOOD],
            {"targets": lambda batch: batch["y"]},
            "batch 0: targets= fails on dict .* no 'y'",
        ),
        ([GOOD], {"forward": lambda model, batch: batch["y"]}, "batch 0: the model .*: no 'y'"),
        ([{**GOOD, "attention_mask": torch.ones(4)}], {}, "each taken to have the samples along"),
        ([GOOD], {"targets": lambda batch: None}, "targets as a tensor .*, got NoneType"),
        (
            [GOOD],
            {"forward": lambda model, batch: (model(batch["input_ids"]).logits, 1)},
            "one tensor, or an object with .logits, got tuple from Encoder",
        ),
        (
            [GOOD],
            {"forward": lambda model, batch: model(batch["input_ids"]).logits.mean(0)},
            r"outputs with a row for each of . samples",
        ),
        ([GOOD, GOOD, {**GOOD, "x": 1}], {}, "batch 2: the model .* unexpected keyword argument"),
        (
            [
                {**GOOD, "shift": torch.zeros(4, 1)},
                {"input_ids": GOOD["input_ids"][:3], "labels": GOOD["labels"][:3]}
                | {"shift": torch.zeros(4, 1)},
            ],
            {},
            "batch 1: expected shift to have the samples .* in all batches or in none; .* forward=",
        ),
    ],
)
def test_batches_that_do_not_fit_are_refused(batches, options, message):
    with pytest.raises((ValueError, RuntimeError), match=message) as error:
        fisher_diagonal(Encoder(), batches, **options)
    assert "\n" not in str(error.value)


def linear_problem():
    torch.manual_seed(0)
    model, x = nn.Linear(2, CLASSES).to(DOUBLE), torch.randn(SAMPLES, 2, dtype=DOUBLE)
    y = torch.randint(0, CLASSES, (SAMPLES,))
    return model, x, y


def of_linear(model, x, y):
    return by_loop(model, lambda n: nn.functional.cross_entropy(model(x[n : n + 1]), y[n : n + 1]))


@dataclass
class Prepared:
    """Prepares its tensors as it is made, and holds more than it is made of."""

    x: Tensor
    y: Tensor
    made_of: InitVar[str]
    factor: Tensor | None = field(init=False, default=None)

    def __post_init__(self, made_of):
        self.x = self.x / 2
        self.shift = self.x.sum(1, keepdim=True)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_dataclasses_are_taken_as_they_are_and_not_made_anew(chunk_size):
    model, x, y = linear_problem()
    batch = Prepared(x, y, "numbers")
    batch.factor = torch.rand(SAMPLES, 1, dtype=DOUBLE)
    before = dict(vars(batch))

    def forward(model, batch):
        return model(batch.x * batch.factor + batch.shift)

    got = fisher_diagonal(
        model, [batch], forward=forward, targets=lambda b: b.y, chunk_size=chunk_size
    )
    assert_same(got, of_linear(model, x / 2 * batch.factor + x.sum(1, keepdim=True) / 2, y))
    assert vars(batch).keys() == before.keys()
    assert all(vars(batch)[name] is value for name, value in before.items())


class Holder(MutableMapping):
    """Whose copies share what they hold."""

    def __init__(self, held):
        self.held = held

    def __getitem__(self, name):
        return self.held[name]

    def __setitem__(self, name, value):
        self.held[name] = value

    def __delitem__(self, name):
        del self.held[name]

    def __iter__(self):
        return iter(self.held)

    def __len__(self):
        return len(self.held)


@pytest.mark.parametrize("made", [MappingProxyType, Holder])
def test_mappings_that_cannot_be_copied_are_read_and_stay_as_they_are(made):
    model, x, y = linear_problem()
    batch = made({"x": x, "labels": y})
    got = fisher_diagonal(model, [batch], forward=lambda m, b: m(b["x"]), chunk_size=2)
    assert_same(got, of_linear(model, x, y))
    assert batch["x"] is x and batch["labels"] is y


@pytest.mark.parametrize("sizes", [(1, 8), (8, 1)])
def test_a_batch_of_one_sample_may_hold_what_all_share(sizes):
    model, x, y = linear_problem()
    shift = torch.randn(1, 2, dtype=DOUBLE)

    def forward(model, batch):
        return model(batch["x"] + batch["shift"])

    parts = zip(x.split(sizes), y.split(sizes), strict=True)
    batches = [{"x": x_n, "shift": shift, "labels": y_n} for x_n, y_n in parts]
    assert_same(fisher_diagonal(model, batches, forward=forward), of_linear(model, x + shift, y))


@pytest.mark.parametrize("self_check", [True, False])
def test_a_forward_that_changes_its_inputs_in_place_gets_copies(self_check):
    model, x, y = linear_problem()
    before = x.clone()

    def forward(model, batch):
        return model(batch["x"].mul_(1.01))

    batches = [{"x": x[:5], "labels": y[:5]}, {"x": x[5:], "labels": y[5:]}]
    got = fisher_diagonal(model, batches, forward=forward, self_check=self_check)
    assert torch.equal(x, before)
    assert_same(got, of_linear(model, x * 1.01, y))


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize(
    "use",
    [
        lambda logits, rows, factor: logits * rows.sum(),
        lambda logits, rows, factor: logits * rows.sum() * factor.prod(),
        lambda logits, rows, factor: logits * rows[:1],
    ],
)
def test_what_all_share_and_has_as_many_rows_by_accident_is_refused(use, chunk_size):
    model, x, y = linear_problem()
    batch = {"x": x, "rows": torch.arange(1, SAMPLES + 1.0), "factor": torch.ones(SAMPLES) + 0.1}
    with pytest.raises(
        ValueError, match=r"batch 0: expected tensors .*, got float32 \(9,\).*share"
    ):
        fisher_diagonal(
            model,
            [batch | {"labels": y}],
            forward=lambda m, b: use(m(b["x"]), b["rows"], b["factor"]),
            chunk_size=chunk_size,
        )


def test_samples_that_are_taken_one_by_one_to_be_safe_may_come_with_unused_tensors(caplog):
    model, x, y = linear_problem()

    def forward(model, batch):
        return model(batch["x"]) * (1 if batch["x"].sum() > -1e9 else 2)

    batch = {"x": x, "labels": y, "unused": torch.arange(SAMPLES)}
    assert_same(fisher_diagonal(model, [batch], forward=forward), of_linear(model, x, y))
    assert "each sample is one of its own" in caplog.text


def test_inputs_that_are_changed_at_times_only_are_refused():
    model, x, y = linear_problem()

    def forward(model, batch):
        return model(batch[0].mul_(2) if len(batch[0]) == 4 else batch[0])

    with pytest.raises(ValueError, match="batch 1: Linear changes some of its inputs in place"):
        fisher_diagonal(model, iter([(x[:5], y[:5]), (x[5:], y[5:])]), forward=forward)


def test_frozen_dataclasses_keep_what_is_no_tensor():
    batch = Batch(torch.zeros(4, 1), torch.ones(4, 1), note="kept")
    seen = []

    def forward(model, batch):
        seen.append(batch)
        return model(batch.ids + batch.mask)

    fisher_diagonal(
        nn.Linear(1, 3), [batch], forward=forward, targets=lambda b: torch.zeros(4).long()
    )
    assert {one.note for one in seen} == {"kept"}
