"""What must be equal as the block begins and as it ends, and what is outside of it."""

import threading

import pytest
import torch
from torch import nn
from torch.distributed import PrefixStore

from fedcurv.lasgd import LASGD, WorkersDiffer
from tests.fedcurv.lasgd.site import (
    Host,
    assert_same_bits,
    bits,
    block,
    client,
    in_threads,
    sgd,
    steps,
)

DATA = torch.utils.data.TensorDataset(torch.zeros(40, 3))


def state_of(value, data=None):
    return {
        "model": {"weight": torch.full((1, 3), value), "bias": torch.full((1,), value)},
        "data": data,
    }


def left(samples):
    return {"num_samples": 40, "first": 1, "rests": {1: torch.tensor(samples)}}


@pytest.mark.parametrize("who", [(0,), (1,), (0, 1, 2)])
def test_a_state_loaded_otherwise_at_one_worker_is_named_at_every_worker(who):
    def work(rank, store, size):
        model = nn.Linear(3, 1)
        optimizer = sgd(model)
        lasgd = block(model, optimizer, store, rank, size)
        if rank in who:
            lasgd.load_state_dict(state_of(1.0 + (rank == 2)))
        with lasgd:
            steps(model, optimizer)

    errors = in_threads(work, 3, may_fail=True)
    assert [type(error) for error in errors] == [WorkersDiffer] * 3, errors
    assert len({str(error) for error in errors}) == 1
    assert "'weight' differs between worker" in str(errors[0])
    assert "after load_state_dict()" in str(errors[0])
    assert "load the same state at all workers" in str(errors[0])
    assert "\n" not in str(errors[0])


def test_other_samples_left_are_named_at_every_worker():
    def work(rank, store, size):
        model = nn.Linear(3, 1)
        lasgd = block(model, sgd(model), store, rank, size)
        lasgd.load_state_dict(state_of(1.0, left([3, 4] if rank else [3, 5])))
        with lasgd:
            steps(model, lasgd._stepping._optimizer)

    errors = in_threads(work, 2, may_fail=True)
    assert [type(error) for error in errors] == [WorkersDiffer] * 2, errors
    assert "which samples are left differs between worker" in str(errors[0])


def test_the_same_state_at_all_workers_begins_from_it():
    def work(rank, store, size):
        model = nn.Linear(3, 1)
        lasgd = block(model, sgd(model), store, rank, size)
        lasgd.load_state_dict(state_of(7.0, left([3, 4])))
        with lasgd:
            assert (model.weight == 7.0).all()
        return bits(model)

    states = in_threads(work, 2)
    assert_same_bits(states)
    assert (states[0]["weight"] == 7.0).all()


NO_STATES = {
    "a model's own state": (
        {"weight": torch.ones(1, 3), "bias": torch.ones(1)},
        "a dict of 'model' and 'data', got one of 'weight', 'bias'; a model's own state is for",
    ),
    "None": (None, "a dict of 'model' and 'data', got one of class NoneType"),
    "a file's name": ("state.pt", "got one of class str"),
    "too little": ({"model": {}}, "a dict of 'model' and 'data', got one of 'model'"),
    "no tensors": (
        {"model": {"weight": 1}, "data": None},
        "got under 'model' no floating-point tensors by name",
    ),
    "integers": (
        {"model": {"weight": torch.ones(1, 3).long(), "bias": torch.ones(1)}, "data": None},
        "got under 'model' no floating-point tensors by name",
    ),
    "another model": (
        {"model": {"weight": torch.ones(1, 4), "bias": torch.ones(1)}, "data": None},
        "expected the state of a model with weight, bias",
    ),
    "data as text": (state_of(1.0, "epoch 3"), "got under 'data' no num_samples"),
    "data of another time": (state_of(1.0, {"epoch": 3}), "got under 'data' no num_samples"),
    "a sample that is not there": (state_of(1.0, left([3, 40])), "got under 'data' no num_samples"),
    "a sample twice": (state_of(1.0, left([3, 3])), "got under 'data' no num_samples"),
    "rests as a list": (
        state_of(1.0, {"num_samples": 40, "first": 1, "rests": {1: [3]}}),
        "got under 'data' no num_samples",
    ),
    "a number that is none": (
        state_of(1.0, {"num_samples": "40", "first": 1, "rests": {}}),
        "got under 'data' no num_samples",
    ),
}


def test_what_is_no_state_is_refused_and_changes_nothing():
    def work(rank, store, size):
        model = nn.Linear(3, 1)
        lasgd = block(model, sgd(model), store, rank, size)
        before = bits(model)
        for name, (state, message) in NO_STATES.items():
            with pytest.raises(ValueError, match="expected") as raised:
                lasgd.load_state_dict(state)
            assert message in str(raised.value), name
            assert "\n" not in str(raised.value)
        assert_same_bits([before, bits(model)])
        assert lasgd._dealing.saved is None

    in_threads(work, 1)


def test_a_newcomer_takes_of_a_state_what_is_left_of_the_data_and_the_model_of_the_others():
    host, has_begun = Host(), threading.Event()

    def work(rank, _store, size):
        store = client(host.port)
        model = nn.Linear(3, 1)
        optimizer = sgd(model)
        if rank:
            has_begun.wait(30)
            lasgd = LASGD(model, optimizer, sync_every=4, store=store, join=True, timeout_s=20.0)
        else:
            lasgd = block(model, optimizer, store, 0, 1)
        lasgd.load_state_dict(state_of(0.5, left(list(range(40)))))
        met = bits(model)
        with lasgd:
            loader = lasgd.loader(DATA, 4)
            has_begun.set()
            if not rank:
                while lasgd.state_dict() and not lasgd._rounds.generation.admitted:
                    steps(model, optimizer, 1)
            for _ in loader:
                steps(model, optimizer, 1)
        return bits(model), met

    (one, _), (other, met) = in_threads(work, 2)
    assert_same_bits([one, other])
    assert not (met["weight"] == 0.5).all(), "the others had gone on"


# ---- before and after the block


def test_what_all_do_alike_before_the_block_is_where_it_begins():
    """As a first step that makes the optimizer's state; one worker then makes no step at all."""
    inputs = torch.randn(8, 3)

    def work(rank, store, size):
        model = nn.Linear(3, 1)
        optimizer = sgd(model, momentum=0.9)
        lasgd = block(model, optimizer, store, rank, size)
        model(inputs).square().mean().backward()
        optimizer.step()
        warm = bits(model)
        with lasgd:
            common = {name: value.clone() for name, value in lasgd.state_dict()["model"].items()}
            steps(model, optimizer, 0 if rank else 6)
        return warm, common, bits(model), lasgd.stats.steps_in_rounds

    (one, common, end, number), (other, _, same_end, _) = in_threads(work, 2)
    assert_same_bits([one, other])
    assert_same_bits([one, common])
    assert_same_bits([end, same_end])
    assert number == 6


def test_a_step_of_ones_own_before_the_block_is_named_at_every_worker():
    def work(rank, store, size):
        model = nn.Linear(3, 1)
        optimizer = sgd(model)
        lasgd = block(model, optimizer, store, rank, size)
        if rank:
            steps(model, optimizer, 1)
        with lasgd:
            steps(model, optimizer)

    errors = in_threads(work, 2, may_fail=True)
    assert [type(error) for error in errors] == [WorkersDiffer] * 2, errors
    assert "without load_state_dict()" in str(errors[0])
    assert "change its model alone between LASGD(...) and the with block" in str(errors[0])


def test_a_change_before_the_block_is_named_at_every_worker():
    def work(rank, store, size):
        model = nn.Linear(3, 1)
        optimizer = sgd(model)
        lasgd = block(model, optimizer, store, rank, size)
        if rank:
            model.bias.data = torch.zeros(2)
        with lasgd:
            steps(model, optimizer)

    errors = in_threads(work, 2, may_fail=True)
    assert [type(error) for error in errors] == [WorkersDiffer] * 2, errors
    assert "'bias' was float32 [1] on cpu as LASGD began" in str(errors[0])


def test_workers_that_are_equal_but_for_the_sign_of_a_zero_begin():
    """A sum makes 0 of -0, which masked weights hold."""

    def work(rank, store, size):
        model = nn.Linear(3, 1)
        nn.init.constant_(model.weight, -0.0)
        optimizer = sgd(model)
        with block(model, optimizer, store, rank, size):
            steps(model, optimizer)
        return bits(model)

    assert_same_bits(in_threads(work, 2))


def test_training_after_the_end_is_the_workers_own_and_is_kept():
    def work(rank, store, size):
        model = nn.Linear(3, 1)
        optimizer = sgd(model)
        with block(model, optimizer, store, rank, size) as lasgd:
            steps(model, optimizer)
            if rank == 1:
                lasgd.leave()
            else:
                lasgd.finish()
            end = bits(model)
            steps(model, optimizer)
            trained = bits(model)
            for wait in (lasgd.synchronize, lasgd.finish, lasgd.leave):
                with pytest.raises(RuntimeError, match=r"inside of the with block .* after that"):
                    wait()
        assert_same_bits([trained, bits(model)])
        assert lasgd.stats.steps == 12
        return end, trained

    (one, trained), (_, other), (same, another) = in_threads(work, 3)
    assert_same_bits([one, same])
    assert len({float(state["bias"]) for state in (trained, other, another)}) == 3


def test_a_loader_deals_within_the_block_alone():
    def work(rank, store, size):
        model = nn.Linear(3, 1)
        lasgd = block(model, sgd(model), store, rank, size)
        loader = lasgd.loader(DATA, 4)
        with pytest.raises(RuntimeError, match=r"expected it inside of the with block .* before"):
            next(iter(loader))
        with lasgd:
            assert len(list(loader)) == 10
        with pytest.raises(RuntimeError, match=r"expected it inside of the with block .* after"):
            next(iter(loader))

    in_threads(work, 1)


@pytest.mark.parametrize("number", [0, 3])
def test_a_block_without_a_step_is_told(number, caplog):
    def work(rank, store, size):
        model = nn.Linear(3, 1)
        optimizer = sgd(model)
        with block(model, optimizer, store, rank, size):
            steps(model, optimizer, number if rank else 0)
        steps(model, optimizer)

    in_threads(work, 2)
    assert ("is the training loop inside of it?" in caplog.text) == (number == 0)


# ---- what no round sums


class Counted(nn.Module):
    def __init__(self, flag=False):
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(3), nn.Linear(3, 1)
        self.register_buffer("seen", torch.tensor(False))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int32))
        self.register_buffer("large", torch.tensor(2**62))
        self.flag = flag

    def forward(self, x):
        self.seen |= self.flag
        self.pointer.add_(1).remainder_(7)
        return self.layer(self.norm(x))


@pytest.mark.parametrize("overlap", [True, False])
def test_single_integers_end_as_the_largest_of_the_workers(overlap):
    def work(rank, store, size):
        model = Counted(flag=rank == 1)
        optimizer = sgd(model)
        for number in range(2):
            part = PrefixStore(str(number), store)
            with block(model, optimizer, part, rank, size, overlap=overlap):
                steps(model, optimizer, 5 + 4 * rank)
        return bits(model)

    states = in_threads(work, 3)
    assert_same_bits(states)
    assert states[0]["norm.num_batches_tracked"] == 13 + 13
    assert states[0]["seen"] and states[0]["large"] == 2**62
    assert 0 <= states[0]["pointer"] < 7


def test_who_left_has_no_part_in_the_counts():
    def work(rank, store, size):
        model = Counted()
        optimizer = sgd(model)
        with block(model, optimizer, store, rank, size) as lasgd:
            steps(model, optimizer, 4 + 20 * (rank == 2))
            if rank == 2:
                lasgd.leave()
        return bits(model)

    one, other, left_ = in_threads(work, 3)
    assert_same_bits([one, other])
    assert one["norm.num_batches_tracked"] == 4
    assert left_["norm.num_batches_tracked"] == 24


def test_local_buffers_stay_the_workers_own():
    def work(rank, store, size):
        model = Counted(flag=rank == 1)
        optimizer = sgd(model)
        with block(model, optimizer, store, rank, size, buffers="local"):
            steps(model, optimizer, 5 + 4 * rank)
        return int(model.norm.num_batches_tracked), bool(model.seen)

    assert in_threads(work, 2) == [(5, False), (9, True)]


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.teacher, self.layer = nn.Linear(3, 2), nn.Linear(2, 1)
        nn.init.ones_(self.teacher.weight)
        nn.init.ones_(self.teacher.bias)
        self.teacher.requires_grad_(False)
        self.register_buffer("order", torch.tensor([0, 2, 1]))

    def forward(self, x):
        return self.layer(self.teacher(x[:, self.order]))


def follow_by_data(model):
    model.teacher.weight.data.mul_(1.1)


@torch.no_grad()
def follow(model):
    model.teacher.weight.mul_(1.1)


def replace(model):
    model.teacher.weight = nn.Parameter(torch.zeros(2, 3), requires_grad=False)


def add(model):
    model.late = nn.Parameter(torch.zeros(2), requires_grad=False)


def remove(model):
    del model.teacher.bias
    model.teacher.bias = None


def reorder(model):
    model.order.copy_(torch.tensor([1, 0, 2]))


CHANGES = {
    follow_by_data: "'teacher.weight' was frozen as LASGD began and has been changed",
    follow: "'teacher.weight' was frozen as LASGD began and has been changed",
    replace: "'teacher.weight' was frozen as LASGD began and has been changed",
    add: "'late', which is not trained, has come to the model",
    remove: "'teacher.bias', which is not trained, has gone from the model",
    reorder: "'order' was a table of integers as LASGD began and has been changed",
}


@pytest.mark.parametrize("who", [(1,), (0, 1)])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_no_round_sums_and_one_changes_is_named_at_every_worker(change, who):
    """As a teacher that follows the model by hand."""

    def work(rank, store, size):
        model = Frozen()
        optimizer = torch.optim.SGD(model.layer.parameters(), lr=0.05)
        with block(model, optimizer, store, rank, size):
            steps(model, optimizer, 3)
            if rank in who:
                change(model)
            steps(model, optimizer, 6)

    errors = in_threads(work, 2, may_fail=True)
    assert [type(error) for error in errors] == [WorkersDiffer] * 2, errors
    assert str(errors[0]) == str(errors[1])
    assert CHANGES[change] in str(errors[0])
    assert "\n" not in str(errors[0])


def test_what_no_round_sums_may_be_written_with_what_it_is():
    """As by the model's own load_state_dict of a part, or a move to where it was."""

    def work(rank, store, size):
        model = Frozen()
        optimizer = torch.optim.SGD(model.layer.parameters(), lr=0.05)
        with block(model, optimizer, store, rank, size):
            for _ in range(4):
                steps(model, optimizer, 3)
                model.teacher.load_state_dict(model.teacher.state_dict())
                model.teacher.weight.data = model.teacher.weight.data.clone()
        return bits(model)

    assert_same_bits(in_threads(work, 2))
