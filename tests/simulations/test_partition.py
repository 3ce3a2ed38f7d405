import sys
import types
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcurv.simulations.data.partition import (
    PARTITIONS,
    checked_parts,
    dirichlet,
    flwr_datasets,
    from_partitioner,
    iid,
    natural,
    pathological,
    quantity,
    shards,
)

OWN = ["iid", "shards", "dirichlet", "pathological", "quantity"]
LABELS = np.random.default_rng(0).integers(0, 10, 1000)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(OWN),
    num_clients=st.integers(5, 40),
    seed=st.integers(0, 1000),
    number=st.integers(500, 900),
)
def test_partitions_are_disjoint_complete_seeded_and_leave_nobody_empty(
    name, num_clients, seed, number
):
    labels = LABELS[:number]
    parts = PARTITIONS[name](labels, num_clients, seed=seed)
    assert len(parts) == num_clients
    assert all(len(part) > 0 for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(number))
    again = PARTITIONS[name](labels, num_clients, seed=seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("name", OWN)
def test_another_seed_is_another_partition(name):
    one, other = (PARTITIONS[name](LABELS, 10, seed=seed) for seed in (1, 2))
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def classes_of(part):
    return set(LABELS[part].tolist())


def test_iid_parts_are_of_one_size_and_hold_all_classes():
    parts = iid(LABELS, 8, seed=0)
    assert {len(part) for part in parts} == {125}
    assert all(len(classes_of(part)) == 10 for part in parts)


def test_a_client_with_two_shards_holds_few_classes():
    parts = shards(LABELS, 20, seed=0, shards_per_client=2)
    assert {len(part) for part in parts} == {50}
    # a shard lies within a class or across one border
    assert all(len(classes_of(part)) <= 4 for part in parts)
    assert np.mean([len(classes_of(part)) for part in parts]) < 3


def test_half_of_the_clients_may_have_larger_shards():
    labels = np.repeat(np.arange(10), 220)
    parts = shards(labels, 20, seed=3, size_ratio=10.0)
    sizes = sorted(map(len, parts))
    assert sum(sizes) == 2200
    assert np.allclose(sizes[:10], 20, atol=2) and np.allclose(sizes[10:], 200, atol=2)
    assert max(len(np.unique(labels[part])) for part in parts) <= 4
    assert [len(p) for p in shards(labels, 20, seed=3, size_ratio=1.0)] == [110] * 20


@pytest.mark.parametrize("classes_per_client", [1, 2, 5, 10])
def test_pathological_clients_hold_exactly_so_many_classes(classes_per_client):
    parts = pathological(LABELS, 20, seed=0, classes_per_client=classes_per_client)
    assert all(len(classes_of(part)) == classes_per_client for part in parts)


def test_small_alpha_is_uneven_and_large_alpha_is_even():
    def largest_share(alpha):
        parts = dirichlet(LABELS, 10, seed=0, alpha=alpha)
        return np.mean([np.bincount(LABELS[p], minlength=10).max() / len(p) for p in parts])

    assert largest_share(0.1) > 0.5
    assert largest_share(1000) < 0.2


def test_dirichlet_keeps_its_minimum():
    assert min(map(len, dirichlet(LABELS, 10, seed=0, alpha=0.1, min_samples=20))) >= 20


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(iid, LABELS[:3], 4), "at least 4 samples, got 3"),
        (partial(iid, LABELS, 0), "num_clients must be >= 1, got 0"),
        (partial(shards, LABELS, 4, shards_per_client=0), "shards_per_client must be >= 1, got 0"),
        (partial(shards, LABELS[:7], 4), "at least 8 samples, got 7"),
        (partial(dirichlet, LABELS, 4, alpha=0.0), "alpha must be > 0"),
        (partial(dirichlet, LABELS[:50], 50, alpha=0.01), "raise alpha, or lower num_clients"),
        (partial(pathological, LABELS, 4, classes_per_client=11), r"must be in 1\.\.10, got 11"),
        (partial(pathological, LABELS, 4, classes_per_client=2), "at least 10 places for classes"),
        (partial(pathological, LABELS[:20], 40, classes_per_client=9), "samples of class"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make(seed=0)


class EveryNth:
    """Has the interface of a flwr-datasets partitioner."""

    def __init__(self, num_partitions: int) -> None:
        self.num_partitions = num_partitions
        self.dataset = None

    def load_partition(self, partition_id: int):
        return {k: v[partition_id :: self.num_partitions] for k, v in self.dataset.items()}


@pytest.fixture
def packages(monkeypatch):
    """Stand-ins for the two packages that an installation of flwr-datasets brings."""
    datasets = types.ModuleType("datasets")
    datasets.Dataset = types.SimpleNamespace(from_dict=dict)
    module = types.ModuleType("flwr_datasets.partitioner")
    module.EveryNthPartitioner, module.__all__ = EveryNth, ["EveryNthPartitioner", "os"]
    parent = types.ModuleType("flwr_datasets")
    parent.partitioner = module
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    monkeypatch.setitem(sys.modules, "flwr_datasets", parent)
    monkeypatch.setitem(sys.modules, "flwr_datasets.partitioner", module)


def test_a_partitioner_object_is_accepted(packages):
    parts = from_partitioner(EveryNth(4), LABELS, 4)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))
    with pytest.raises(ValueError, match="num_clients=3, got one that makes 4 partitions"):
        from_partitioner(EveryNth(4), LABELS, 3)


def test_a_partitioner_is_made_by_its_name(packages):
    parts = flwr_datasets(LABELS, 4, seed=0, partitioner="EveryNthPartitioner")
    assert [len(part) for part in parts] == [250] * 4
    with pytest.raises(ValueError, match="one of EveryNthPartitioner, got 'os'"):
        flwr_datasets(LABELS, 4, seed=0, partitioner="os")


def test_quantities_are_uneven_while_classes_are_even():
    sizes = [len(part) for part in quantity(LABELS, 10, seed=0, alpha=0.5, min_samples=7)]
    assert sum(sizes) == len(LABELS)
    assert min(sizes) >= 7
    assert max(sizes) > 3 * min(sizes)
    even = [len(part) for part in quantity(LABELS, 10, seed=0, alpha=1e6)]
    assert max(even) - min(even) < 5


def test_a_group_is_a_client_and_some_are_drawn_where_there_are_more():
    groups = np.repeat(np.arange(8), [1, 2, 3, 4, 5, 6, 7, 8])
    parts = natural(groups, 8, seed=0)
    assert [len(part) for part in parts] == [1, 2, 3, 4, 5, 6, 7, 8]
    drawn = natural(groups, 3, seed=1, min_samples=4)
    assert len(drawn) == 3
    for part in drawn:
        assert len(part) >= 4
        assert len(set(groups[part])) == 1
        assert len(part) == (groups == groups[part[0]]).sum()
    first, *others = ([len(p) for p in natural(groups, 3, seed=seed)] for seed in range(5))
    assert any(other != first for other in others)
    with pytest.raises(ValueError, match="num_clients=6: expected at most 5, the groups with at"):
        natural(groups, 6, seed=0, min_samples=4)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([[0, 1], [2]], None),
        ([[0, 1]], "expected 2 parts with at least one sample each, got 1"),
        ([[0, 1], []], r"expected 2 parts .*, got 2 of sizes \[2, 0\]"),
        ([[0, 1], [1]], "got 0 to 1, 1 of them twice"),
        ([[0, 9], [1]], "indices from 0 to 4, .* got 0 to 9"),
        ([[-1, 0], [1]], "got -1 to 1"),
        ([["a"], [1]], "expected a list of indices per client"),
        (None, "expected a list of indices per client"),
        ({0: [0, 1], 1: [2]}, "expected a list of indices per client, got dict"),
        ([[0.7, 1.7], [2.7]], "integers of shape .* got float64"),
        ([[True, False], [False, True]], "integers of shape .* got bool"),
        ([[[0], [1]], [[2]]], r"got int64 \(2, 1\) for client 0"),
    ],
)
def test_a_partition_of_ones_own_is_checked(parts, message):
    if message is None:
        assert [list(part) for part in checked_parts(parts, 5, 2, "mine")] == parts
        return
    with pytest.raises(ValueError, match=f"mine: .*{message}"):
        checked_parts(parts, 5, 2, "mine")
