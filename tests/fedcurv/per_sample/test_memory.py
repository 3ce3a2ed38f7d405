import pytest
import torch
from torch import nn

from fedcurv import fisher_diagonal
from fedcurv.per_sample import PerSampleSquares, memory
from fedcurv.per_sample.memory import GraphMeter, free_bytes, samples_at_once

CPU = torch.device("cpu")


def test_the_meter_counts_what_a_graph_keeps_once_and_no_weights():
    model = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 5))
    batch = torch.randn(100, 10)
    meter = GraphMeter(model)
    with meter.counting():
        model(batch[:4])
    # the inputs, of a larger batch, and what Tanh returns, which the last layer needs as well
    assert meter.bytes == 4 * (4 * 10 + 4 * 20)


@pytest.mark.parametrize(
    ("graph", "free", "expected"),
    [
        (2**20, 0, 50),  # nothing worth a thought
        (2**26, 2**40, 50),
        (2**28, 2**40, 25),  # twice of what is fast
        (2**26, 2**27, 25),  # a quarter of the free memory
        (2**26, 2**10, 1),
        (2**26, None, 50),
    ],
)
def test_samples_are_fewer_where_a_graph_would_be_slow_or_memory_is_short(
    graph, free, expected, monkeypatch
):
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    assert samples_at_once(graph, 50, CPU) == expected


def test_free_memory_is_what_the_system_or_the_container_leaves(monkeypatch):
    assert 0 < free_bytes(CPU) < 2**50
    monkeypatch.setattr(memory, "_left_in_container", lambda: 7)
    assert free_bytes(CPU) == 7
    monkeypatch.setattr(memory, "_left_in_container", lambda: None)
    monkeypatch.setattr(memory, "_available_in_system", lambda: None)
    assert free_bytes(CPU) is None
    assert free_bytes(torch.device("meta")) is None


def test_a_container_leaves_its_limit_less_what_it_uses(tmp_path, monkeypatch):
    for name, text in (("max", "1000"), ("current", "700"), ("stat", "anon 1\ninactive_file 50\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    assert memory._left_in_container() == 350
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._left_in_container() is None


def test_large_batches_are_cut_into_parts_of_about_equal_length(monkeypatch):
    sizes = []
    original = PerSampleSquares.add

    def spy(self, inputs, cotangents_of):
        sizes.append(len(inputs))
        return original(self, inputs, cotangents_of)

    model = nn.Sequential(nn.Linear(6, 50), nn.Tanh(), nn.Linear(50, 3))
    batch = torch.randn(10, 6), torch.zeros(10, dtype=torch.long)
    expected = fisher_diagonal(model, [batch])
    monkeypatch.setattr(PerSampleSquares, "add", spy)
    monkeypatch.setattr(memory, "_NEGLIGIBLE_BYTES", 0)
    monkeypatch.setattr(memory, "_BYTES_ON_CPU", 4 * 4 * (6 + 50))
    got = fisher_diagonal(model, [batch])
    assert sizes == [4, 4, 2]
    torch.testing.assert_close(got, expected)
