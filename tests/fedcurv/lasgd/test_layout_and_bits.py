"""What workers have in another order or of their own, and that all end with the same bits."""

import itertools

import pytest
import torch
from torch import nn

from fedcurv.lasgd.checksum import checksum
from fedcurv.lasgd.replica import Replica
from tests.fedcurv.lasgd.site import assert_same_bits, bits, block, in_threads, sgd, steps


class Branches(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.branches = nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in names})
        for name in "ab":
            nn.init.constant_(self.branches[name].weight, {"a": 1.0, "b": -1.0}[name])
            self.branches[name].register_buffer("mark", torch.full((3,), float(ord(name))))

    def forward(self, x):
        return self.branches["a"](x) + 0.1 * self.branches["b"](x)


def test_layers_made_in_another_order_are_named_at_every_worker():
    """As from a set of names, whose order is each process's own."""

    def work(rank, store, size):
        model = Branches("ba" if rank else "ab")
        block(model, sgd(model), store, rank, size)

    for error in in_threads(work, 2, may_fail=True):
        assert isinstance(error, ValueError)
        assert "worker 0 has 'branches.a.weight' worker 1 has 'branches.b.weight'" in str(error)


def test_an_optimizers_parameters_in_another_order_share_their_momentum_by_name():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))

    def momentum(order):
        optimizer = torch.optim.SGD(list(model.parameters())[::order], lr=0.1, momentum=0.9)
        for index, parameter in enumerate(model.parameters()):
            optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, index)
        replica = Replica(model, optimizer)
        replica.set_anchor()
        replica.count_step()
        replica.snapshot()
        body = torch.zeros(replica.sizes.total)
        replica.fill(body, 1.0, active=True)
        return body

    assert torch.equal(momentum(1), momentum(-1))


def test_parameters_in_other_groups_are_named_at_every_worker():
    def work(rank, store, size):
        model = nn.Linear(3, 3)
        pair = [model.weight, model.bias]
        groups = [{"params": [p]} for p in pair[:: -1 if rank else 1]]
        block(model, torch.optim.SGD(groups, lr=0.1), store, rank, size)

    for error in in_threads(work, 2, may_fail=True):
        assert isinstance(error, ValueError)
        assert "'parameters of group 0' is ['weight'] at worker 0 and ['bias'] at" in str(error)


class Permuted(nn.Module):
    def __init__(self, order):
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(3), nn.Linear(3, 1)
        self.register_buffer("order", torch.tensor(order))

    def forward(self, x):
        return self.layer(self.norm(x[:, self.order]))


def test_other_integer_buffers_are_named_at_every_worker():
    def work(rank, store, size):
        model = Permuted([0, 2, 1] if rank else [0, 1, 2])
        block(model, sgd(model), store, rank, size)

    for error in in_threads(work, 2, may_fail=True):
        assert isinstance(error, ValueError)
        assert "'order' is int64 [3], with the checksum" in str(error)


def test_a_step_that_raised_does_not_keep_synchronize_waiting():
    def work(rank, store, size):
        model = nn.Linear(3, 1)
        optimizer = sgd(model)
        with block(model, optimizer, store, rank, size) as lasgd:
            steps(model, optimizer)

            def fail():
                raise ArithmeticError("closure")

            with pytest.raises(ArithmeticError):
                optimizer.step(fail)
            lasgd.synchronize()
            steps(model, optimizer)
        return bits(model)

    assert_same_bits(in_threads(work, 2))


def test_a_store_that_was_used_and_a_rank_that_is_taken_are_refused():
    def work(rank, store, size):
        model = nn.Linear(3, 1)
        optimizer = sgd(model)
        with block(model, optimizer, store, rank, size):
            steps(model, optimizer)
            with pytest.raises(ValueError, match=f"worker {rank} has begun already"):
                block(model, optimizer, store, rank, size)
        return bits(model)

    assert_same_bits(in_threads(work, 2))


class Running(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("mask", torch.full((2,), torch.finfo(torch.float32).min))
        self.register_buffer("hole", torch.full((2,), -torch.inf))
        self.register_buffer("third", torch.rand(500, generator=torch.Generator().manual_seed(0)))
        self.register_buffer("exact", torch.tensor([1.7e9 + 0.3, 1e300], dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x):
        self.mean.mul_(0.9).add_(0.1 * x.mean())
        return self.layer(x)


def test_buffers_that_no_worker_changes_keep_their_bits():
    def work(rank, store, size):
        model = Running()
        optimizer = sgd(model)
        with block(model, optimizer, store, rank, size):
            steps(model, optimizer)
        return bits(model)

    states = in_threads(work, 3)
    assert_same_bits(states)
    start = Running().state_dict()
    for name in ("mask", "hole", "third", "exact"):
        assert torch.equal(states[0][name], start[name]), name


def test_a_buffer_that_is_not_finite_at_one_worker_reaches_no_other(caplog):
    def work(rank, store, size):
        model = Running()
        optimizer = sgd(model)
        with block(model, optimizer, store, rank, size) as lasgd:
            steps(model, optimizer)
            if rank:
                model.mean.fill_(torch.nan)
            steps(model, optimizer)
        return bits(model), lasgd.stats.broken_rounds

    (one, none), (other, some) = in_threads(work, 2)
    assert_same_bits([one, other])
    assert one["mean"].isfinite().all()
    assert none == 0 < some
    assert "worker 1's progress is not finite" in caplog.text


def test_waits_before_the_block_and_a_second_block_are_refused():
    """They would wait for ever for rounds that have not begun."""

    def work(rank, store, size):
        model = nn.Linear(3, 1)
        optimizer = sgd(model)
        lasgd = block(model, optimizer, store, rank, size)
        for wait in (lasgd.synchronize, lasgd.finish, lasgd.leave):
            with pytest.raises(RuntimeError, match="expected it inside of the with block"):
                wait()
        with lasgd:
            steps(model, optimizer)
        with pytest.raises(RuntimeError, match="expected one with block"), lasgd:
            pass
        steps(model, optimizer)

    in_threads(work, 1)


def test_a_checksum_tells_permutations_and_flipped_bits_apart():
    orders = [torch.tensor(order) for order in itertools.permutations(range(6))]
    assert len({checksum(order) for order in orders}) == len(orders)
    assert len({checksum(order.to(torch.int8)) for order in orders}) == len(orders)
    for dtype in (torch.float16, torch.float32, torch.float64, torch.complex64):
        signs = [torch.tensor(s, dtype=dtype) for s in itertools.product((1.0, -1.0), repeat=6)]
        assert len({checksum(one) for one in signs}) == len(signs)
    large = torch.zeros(3 * 2**16 + 5)
    places = [0, 1, 2**16 - 1, 2**16, 2**17, len(large) - 1]
    seen = {checksum(large), checksum(large[1:])}
    for place in places:
        other = large.clone()
        other[place] = 1.0
        seen.add(checksum(other))
    assert len(seen) == len(places) + 2
    assert checksum(large.view(-1, 1).t()) == checksum(large.clone()) < 2**64
    assert checksum(large[:0]) == 0
