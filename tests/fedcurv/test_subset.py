"""Fisher diagonals by some of the samples: which are chosen, and that nothing is biased by it."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedcurv import fisher_diagonal
from fedcurv.gathering import Batch
from fedcurv.per_sample import Samples
from fedcurv.per_sample.samples import on_one_tensor
from fedcurv.private_fisher import private_fisher_diagonal
from fedcurv.subset import Subset, allocation, chosen, number_of
from tests.oracles import fisher as oracle

CLASSES = 4
# of the classes 0 to 3
SIZES = [19, 7, 3, 1]
DOUBLE = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, CLASSES)).to(DOUBLE)
    labels = torch.arange(CLASSES).repeat_interleave(torch.tensor(SIZES))
    labels = labels[torch.randperm(sum(SIZES))]
    return model, torch.randn(sum(SIZES), 3, dtype=DOUBLE), labels


def assert_same(got, expected, rtol=1e-10):
    assert got.keys() == expected.keys()
    for name, one in expected.items():
        torch.testing.assert_close(got[name], one, rtol=rtol, atol=1e-14)


def in_batches(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


def smallest_sum(sizes, number):
    """Return the least Σ n_h² / m_h over all whole m_h in 1 ... n_h of that sum, by trying all."""
    tried = itertools.product(*(range(1, n + 1) for n in sizes))
    return min(
        sum(n * n / m for n, m in zip(sizes, shares, strict=True))
        for shares in tried
        if sum(shares) == number
    )


# ---- how many of each class


@pytest.mark.parametrize("sizes", [[1], [6], [9, 1, 1], [5, 5, 5], [12, 7, 2, 1], [3, 8]])
def test_the_numbers_of_each_class_are_those_of_the_least_variance(sizes):
    for number in range(len(sizes), sum(sizes) + 1):
        shares = allocation(sizes, number)
        assert sum(shares) == number
        assert all(1 <= m <= n for m, n in zip(shares, sizes, strict=True))
        got = sum(n * n / m for n, m in zip(sizes, shares, strict=True))
        assert math.isclose(got, smallest_sum(sizes, number), rel_tol=1e-12)


def test_classes_of_equal_size_have_equal_numbers():
    assert allocation([36, 36], 8) == [4, 4]
    assert allocation([90, 10], 10) == [9, 1]


@pytest.mark.parametrize(
    ("samples", "taken"), [(1, 1), (5, 5), (24, 24), (72, 24), (241, 25), (625, 63), (60000, 64)]
)
def test_as_many_as_are_enough_are_a_tenth_within_bounds(samples, taken):
    assert number_of("auto", samples) == taken
    assert number_of("all", samples) == samples
    assert number_of(7, samples) == min(7, samples)


# ---- which of them


def test_of_each_class_there_is_one_and_each_class_counts_as_often_as_it_occurs():
    _, _, labels = problem()
    for seed, number in itertools.product(range(20), range(CLASSES, sum(SIZES))):
        rows, counts = chosen(labels, number, seeded(seed))
        assert len(set(rows.tolist())) == len(rows) == number
        assert rows.tolist() == sorted(rows.tolist())
        for label, size in enumerate(SIZES):
            assert math.isclose(float(counts[labels[rows] == label].sum()), size, rel_tol=1e-12)


def test_fewer_samples_than_classes_are_of_all_alike():
    _, _, labels = problem()
    seen = Counter()
    for seed in range(4000):
        rows, counts = chosen(labels, 2, seeded(seed))
        assert counts.tolist() == [15.0, 15.0]
        seen.update(rows.tolist())
    times = torch.tensor([seen[row] for row in range(sum(SIZES))]) / 4000
    # each is among 2 of 30; four standard errors
    assert float((times - 2 / 30).abs().max()) < 4 * math.sqrt(2 / 30 / 4000)


def test_each_sample_of_a_class_is_chosen_as_often_as_any_other():
    _, _, labels = problem()
    seen, times = Counter(), 4000
    for seed in range(times):
        rows, _ = chosen(labels, 9, seeded(seed))
        seen.update(rows.tolist())
    shares = allocation(SIZES, 9)
    for row, label in enumerate(labels.tolist()):
        expected = shares[label] / SIZES[label]
        error = math.sqrt(expected * (1 - expected) / times)
        assert abs(seen[row] / times - expected) <= 4 * error


# each with a class for every sample, or without
TARGETS = {
    "classes": (torch.tensor([0, 0, 0, 0, 0, 0, 0, 7, -100]), True),
    "in a column": (torch.tensor([0, 0, 0, 0, 0, 0, 0, 7, -100])[:, None], True),
    "in 8 bits": (torch.tensor([0, 0, 0, 0, 0, 0, 0, 7, 200], dtype=torch.uint8), True),
    "yes and no": (torch.tensor([True] * 7 + [False] * 2), True),
    "0.0 and 1.0": (torch.tensor([1.0] * 7 + [0.0] * 2), True),
    "numbers": (torch.arange(9) / 9, False),
    "by position": (torch.zeros(9, 2, dtype=torch.long), False),
    "probabilities": (torch.full((9, 2), 0.5), False),
}


@pytest.mark.parametrize("name", TARGETS)
def test_classes_are_known_from_whole_numbers(name):
    targets, has_classes = TARGETS[name]
    for seed in range(30):
        rows, counts = chosen(targets, 3, seeded(seed))
        assert len(rows) == 3
        if has_classes:
            kinds = set(targets.reshape(-1).tolist())
            assert set(targets[rows].reshape(-1).tolist()) == kinds
            assert len(set(counts.tolist())) > 1
        else:
            assert counts.tolist() == [3.0, 3.0, 3.0]


# ---- the estimate


@pytest.mark.parametrize("number", [1, 3, 4, 11, 29])
@pytest.mark.parametrize("size", [1, 7, 30])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_the_estimate_is_that_of_the_chosen_samples_each_for_those_it_stands_for(
    number, size, chunk_size
):
    model, x, y = problem()
    got = fisher_diagonal(
        model,
        in_batches(x, y, size),
        kind="exact",
        samples=number,
        generator=seeded(),
        chunk_size=chunk_size,
    )
    rows, counts = chosen(y, number, seeded())
    assert_same(got, oracle.of_some(model, x, rows.tolist(), counts.tolist()))


@pytest.mark.parametrize("number", [2, 9])
def test_its_mean_over_all_choices_is_the_information_of_all_samples(number):
    model, x, y = problem()
    squares = [oracle.exact(model, row[None])["2.weight"] for row in x]
    whole = sum(squares) / len(x)
    total = torch.zeros_like(whole)
    of_squares = torch.zeros_like(whole)
    times = 4000
    for seed in range(times):
        rows, counts = chosen(y, number, seeded(seed))
        one = sum(
            c * squares[row] for row, c in zip(rows.tolist(), counts.tolist(), strict=True)
        ) / len(x)
        total += one / times
        of_squares += one.square() / times
    error = ((of_squares - total.square()) / times).sqrt()
    assert bool(((total - whole).abs() < 4.5 * error).all())
    assert bool((error < 0.05 * whole).all())


def test_classes_make_it_vary_less():
    model, x, y = problem()
    x = x + 3 * y[:, None]  # so that samples of a class are alike
    squares = torch.stack([oracle.exact(model, row[None])["2.weight"].flatten() for row in x])

    def deviation(targets):
        estimates = []
        for seed in range(500):
            rows, counts = chosen(targets, 8, seeded(seed))
            estimates.append((counts[:, None] * squares[rows]).sum(0) / len(x))
        return torch.stack(estimates).std(0)

    assert float((deviation(y) / deviation(torch.zeros(len(x), 2))).mean()) < 0.8


def test_as_many_as_there_are_or_more_are_all():
    model, x, y = problem()
    whole = oracle.exact(model, x)
    for number in (30, 1000):
        assert_same(
            fisher_diagonal(model, in_batches(x, y, 7), kind="exact", samples=number), whole
        )


def test_the_choice_does_not_depend_on_how_samples_are_batched():
    model, x, y = problem()
    results = [
        fisher_diagonal(model, batches, samples=6, generator=seeded(3))
        for batches in (in_batches(x, y, 30), in_batches(x, y, 4), iter(in_batches(x, y, 1)))
    ]
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def test_the_generator_or_the_global_seed_decides_and_neither_is_disturbed():
    model, x, y = problem()
    batches = in_batches(x, y, 7)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = fisher_diagonal(model, batches, samples=np.int64(6))
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(fisher_diagonal(model, batches, samples=6, generator=seeded(5)), first)
    torch.manual_seed(6)
    other = fisher_diagonal(model, batches, samples=6)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_no_model_sees_the_other_samples():
    seen = set()

    class Noting(nn.Linear):
        def forward(self, x):
            seen.update(x[:, 0].tolist())
            return super().forward(x)

    model, x = Noting(2, 2), torch.arange(400.0).view(200, 2)
    y = torch.arange(200) % 2
    fisher_diagonal(model, in_batches(x, y, 8), samples=5, generator=seeded(), kind="exact")
    rows, _ = chosen(y, 5, seeded())
    assert seen <= set(x[rows, 0].tolist())
    assert len(seen) == 5


def test_what_is_chosen_from_batches_takes_few_passes():
    calls = []

    class Counting(nn.Linear):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    model, x = Counting(2, 2), torch.randn(200, 2)
    for batches in (
        in_batches(x, torch.arange(200) % 2, 4),
        iter(in_batches(x, (x[:, 0] > 0).long(), 4)),
    ):
        calls.clear()
        fisher_diagonal(model, batches, samples=20, kind="exact")
        assert 20 in calls and len(calls) < 15


# ---- what batches come as


def test_a_loader_that_shuffles_and_a_generator():
    model, x, y = problem()
    data = TensorDataset(x, y)
    loader = DataLoader(data, batch_size=4, shuffle=True, generator=seeded(1))
    order = torch.cat(
        [
            rows
            for (rows,) in DataLoader(
                TensorDataset(torch.arange(30)), batch_size=4, shuffle=True, generator=seeded(1)
            )
        ]
    )
    rows, counts = chosen(y[order], 9, seeded())
    expected = oracle.of_some(model, x, order[rows].tolist(), counts.tolist())
    got = fisher_diagonal(model, loader, kind="exact", samples=9, generator=seeded())
    assert_same(got, expected)
    loader.generator.manual_seed(1)
    once = (batch for batch in loader)
    assert_same(fisher_diagonal(model, once, kind="exact", samples=9, generator=seeded()), expected)


def test_a_loader_may_read_every_batch_into_the_same_memory():
    model, x, y = problem()

    def batches():
        memory = torch.empty(5, 3, dtype=DOUBLE), torch.empty(5, dtype=torch.long)
        for inputs, labels in in_batches(x, y, 5):
            yield memory[0].copy_(inputs), memory[1].copy_(labels)

    got = fisher_diagonal(model, batches(), kind="exact", samples=8, generator=seeded())
    rows, counts = chosen(y, 8, seeded())
    assert_same(got, oracle.of_some(model, x, rows.tolist(), counts.tolist()))


def test_batches_that_are_mappings_and_what_their_samples_share():
    model, x, y = problem()
    factor = torch.tensor(0.5, dtype=DOUBLE)
    batches = [{"x": a, "y": b, "factor": factor} for a, b in in_batches(x, y, 4)]
    got = fisher_diagonal(
        model,
        batches,
        forward=lambda model, batch: model(batch["x"] * batch["factor"]),
        targets="y",
        kind="exact",
        samples=8,
        generator=seeded(),
    )
    rows, counts = chosen(y, 8, seeded())
    assert_same(got, oracle.of_some(model, x * factor, rows.tolist(), counts.tolist()))


def test_samples_of_several_lengths():
    class Mean(nn.Linear):
        def forward(self, x):
            return super().forward(x).mean(1)

    torch.manual_seed(0)
    model, y = Mean(3, 2).to(DOUBLE), torch.arange(12) % 2
    rows_of = [torch.randn(2 + n // 3, 3, dtype=DOUBLE) for n in range(12)]
    batches = [(torch.stack(rows_of[i : i + 3]), y[i : i + 3]) for i in range(0, 12, 3)]
    got = fisher_diagonal(model, batches, kind="exact", samples=5, generator=seeded())
    rows, counts = chosen(y, 5, seeded())
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row, number in zip(rows.tolist(), counts.tolist(), strict=True):
        for name, square in oracle.exact(model, rows_of[row][None]).items():
            total[name] += number * square / 12
    assert_same(got, total)


def test_classes_that_turn_out_to_be_none_are_forgotten():
    """Numbers that begin like yes and no, and more classes than samples are wanted."""
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1).to(DOUBLE), torch.randn(40, 3, dtype=DOUBLE)
    numbers = torch.cat([torch.ones(20), torch.randn(20)]).to(DOUBLE)[:, None]
    for batches, likelihood in (
        (in_batches(x, numbers, 4), "gaussian"),
        (in_batches(x, numbers, 40), "gaussian"),
    ):
        got = fisher_diagonal(
            model, batches, kind="exact", likelihood=likelihood, samples=6, generator=seeded()
        )
        rows, counts = chosen(numbers, 6, seeded())
        assert counts.unique().tolist() == [40 / 6]
        # of a linear model the squared gradients are those of the inputs
        expected = x[rows].square().mean(0, keepdim=True)
        torch.testing.assert_close(got["weight"], expected)
    labels = torch.arange(40) // 4
    many = nn.Linear(3, 10).to(DOUBLE)
    results = [
        fisher_diagonal(many, in_batches(x, labels, size), samples=6, generator=seeded())
        for size in (40, 4, 1)
    ]
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def test_labels_by_position_with_one_that_is_ignored():
    torch.manual_seed(0)
    model = nn.Conv1d(2, 3, 1).to(DOUBLE)
    x, y = torch.randn(9, 2, 4, dtype=DOUBLE), torch.randint(0, 3, (9, 4))
    y[2:5, 1] = -100
    rows, counts = chosen(y, 4, seeded())
    assert counts.tolist() == [9 / 4] * 4
    for kind in ("empirical", "exact"):
        got = fisher_diagonal(model, in_batches(x, y, 2), kind=kind, samples=4, generator=seeded())
        assert_same(got, fisher_diagonal(model, [(x[rows], y[rows])], kind=kind))


def test_weights_of_classes_count_beside_what_a_sample_stands_for():
    model, x, y = problem()
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=DOUBLE))
    got = fisher_diagonal(
        model, in_batches(x, y, 7), likelihood=criterion, samples=8, generator=seeded()
    )
    rows, counts = chosen(y, 8, seeded())
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row, number in zip(rows.tolist(), counts.tolist(), strict=True):
        weight = float(criterion.weight[y[row]])
        for name, one in oracle.empirical(model, x[row : row + 1], y[row : row + 1]).items():
            total[name] += number * weight * one / len(x)
    assert_same(got, total)


def test_samples_that_interact_stand_for_as_many():
    class Centred(nn.Linear):
        def forward(self, x):
            return super().forward(x - x.mean(0).detach() * 0.5)

    torch.manual_seed(0)
    model, x = Centred(3, 3).to(DOUBLE), torch.randn(20, 3, dtype=DOUBLE)
    y = torch.tensor([0] * 15 + [1] * 5)
    got = fisher_diagonal(model, [(x, y)], kind="exact", samples=5, generator=seeded())
    rows, counts = chosen(y, 5, seeded())
    assert_same(got, oracle.of_some(model, x, rows.tolist(), counts.tolist()))


def batches_of(sizes, width=2):
    for size in sizes:
        x = torch.randn(size, width)
        yield Batch(
            Samples((x,), on_one_tensor, "tensor"), torch.randint(0, 3, (size,)), [(0, size)]
        )


def test_no_more_are_held_than_twice_as_many_of_each_class():
    torch.manual_seed(0)
    subset, held = Subset(5, seeded()), []

    def noted():
        for batch in batches_of([40] * 50):
            yield batch
            held.append(sum(len(part.batch) for part in subset._held))

    taken = list(subset.read(noted()))
    assert sum(map(len, taken)) == 5
    assert max(held) <= 2 * 5 * 3
    assert subset.num_samples == 2000


# ---- what is refused


@pytest.mark.parametrize("bad", [0, -3, 2.5, True, "some", None])
def test_what_is_no_number_of_samples_is_refused(bad):
    model, x, y = problem()
    with pytest.raises(ValueError, match=r"samples must be an integer >= 1, 'auto' or 'all', got "):
        fisher_diagonal(model, [(x, y)], samples=bad)


def test_batches_without_samples_are_refused_here_too():
    model, x, y = problem()
    with pytest.raises(ValueError, match="expected at least one sample, got none"):
        fisher_diagonal(model, [(x[:0], y[:0])], samples=3)


def test_numbers_that_are_not_finite_are_found_in_the_batch_that_they_are_of():
    model, x, y = problem()
    rows, _ = chosen(y, 8, seeded())
    x[rows[5]] = torch.nan
    batch = int(rows[5]) // 4
    with pytest.raises(ValueError, match=f"batch {batch}: expected finite"):
        fisher_diagonal(model, in_batches(x, y, 4), samples=8, generator=seeded())


def test_private_information_takes_all_samples():
    model, x, y = problem()
    with pytest.raises(TypeError, match="samples"):
        private_fisher_diagonal(model, [(x, y)], clip=1.0, noise_multiplier=1.0, samples=3)
