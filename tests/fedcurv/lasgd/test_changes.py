"""Models, optimizers and data that change in the middle, or that one worker has otherwise."""

import time

import pytest
import torch
from torch import nn

from fedcurv.lasgd import LASGD, WorkersDiffer
from tests.fedcurv.lasgd.site import Processes, client, in_threads

NUMBER = 2
STEPS = 24
CHANGE_AT = 8


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register_buffer("mean", torch.zeros(5))
        # threads share torch's generator: what is frozen must be the same for all
        nn.init.constant_(self.body.weight, 0.1)
        nn.init.constant_(self.body.bias, 0.2)

    def forward(self, x):
        hidden = torch.tanh(self.body(x))
        # another tensor in the buffer's place, as many models do it
        self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(0)
        return self.head(hidden - self.mean)


def unfreeze(model, optimizer):
    model.body.requires_grad_(True)


def unfreeze_one(model, optimizer):
    model.body.bias.requires_grad_(True)


def freeze(model, optimizer):
    model.head.bias.requires_grad_(False)


def freeze_and_unfreeze(model, optimizer):
    model.head.requires_grad_(False)
    model.head.requires_grad_(True)


def add_group(model, optimizer):
    model.body.requires_grad_(True)
    optimizer.add_param_group({"params": [model.body.weight]})


def add_foreign(model, optimizer):
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(7))]})


def add_layer(model, optimizer):
    model.extra = nn.Linear(3, 3)
    optimizer.add_param_group({"params": list(model.extra.parameters())})


def replace_in_model(model, optimizer):
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())


def replace_in_optimizer(model, optimizer):
    optimizer.param_groups[0]["params"][0] = nn.Parameter(torch.zeros(3, 5))


def replace_layer(model, optimizer):
    model.head = nn.Linear(5, 3)


def change_dtype(model, optimizer):
    model.head.weight.data = model.head.weight.data.bfloat16().float()
    model.to(torch.float64)


def change_shape(model, optimizer):
    model.head.bias.data = torch.zeros(1)


def add_buffer(model, optimizer):
    model.register_buffer("late", torch.full((2,), time.monotonic()))


def change_buffer(model, optimizer):
    model.mean = model.mean.new_zeros(6)
    model.forward = lambda x: model.head(torch.tanh(model.body(x)))


REFUSED = {
    unfreeze: "'body.weight' was frozen as LASGD began and requires gradients now",
    unfreeze_one: "'body.bias' was frozen as LASGD began and requires gradients now",
    add_group: "'body.weight', of shape [5, 4], was given to the optimizer",
    add_foreign: "a parameter that is not the model's, of shape [7], was given to the optimizer",
    add_layer: "'extra.weight', of shape [3, 3], was given to the optimizer",
    replace_in_model: "'head.weight' was replaced in the model",
    replace_in_optimizer: "a parameter that is not the model's, of shape [3, 5], was given to",
    replace_layer: "'head.weight' was replaced in the model",
    change_dtype: "'head.weight' was float32 [3, 5] on cpu as LASGD began and is float64 [3, 5]",
    change_shape: "'head.bias' was float32 [3] on cpu as LASGD began and is float32 [1] on cpu now",
    add_buffer: "'late' was missing as LASGD began and is float32 [2] on cpu now",
    change_buffer: "'mean' was float32 [5] on cpu as LASGD began and is float32 [6] on cpu now",
}
ALLOWED = [freeze, freeze_and_unfreeze]


def train(rank, store, size, change, who, overlap, steps=STEPS):
    """Return the values at the end; one worker is slower."""
    model = Model()
    model.body.requires_grad_(False)
    torch.manual_seed(rank)
    optimizer = torch.optim.SGD([*model.head.parameters()], lr=0.05, momentum=0.9)
    inputs, labels = torch.randn(8, 4), torch.arange(8) % 3
    options = {"sync_every": 4, "timeout_s": 20.0, "overlap": overlap}
    with LASGD(model, optimizer, store=store, rank=rank, world_size=size, **options):
        for index in range(steps):
            if index == CHANGE_AT and rank in who:
                change(model, optimizer)
            dtype = model.head.weight.dtype
            model.zero_grad()
            nn.functional.cross_entropy(model.to(dtype)(inputs.to(dtype)), labels).backward()
            optimizer.step()
            time.sleep(0.002 * (1 + 3 * rank))
    values = [*model.parameters(), *(b for b in model.buffers())]
    return torch.cat([v.detach().flatten().double() for v in values]).numpy()


def in_process(rank, port, folder, *arguments):
    return train(rank, client(port), NUMBER, *arguments)


@pytest.fixture
def processes(tmp_path):
    workers = Processes(tmp_path)
    yield workers
    workers.close()


@pytest.mark.slow
@pytest.mark.parametrize("who", [(0, 1), (1,), (0,)], ids=["all", "the slow one", "the fast one"])
@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_a_change_ends_the_training_at_every_worker_and_is_named(change, who, processes):
    """Real processes; the other may have finished when one changes, or wait within a round."""
    overlap = change not in (unfreeze, change_shape)
    for _ in range(NUMBER):
        processes.start(in_process, change, who, overlap)
    errors = [processes.result(rank) for rank in range(NUMBER)]
    assert [type(error) for error in errors] == [WorkersDiffer] * NUMBER, errors
    assert str(errors[0]) == str(errors[1])
    assert REFUSED[change] in str(errors[0])
    assert any(str(errors[0]).startswith(f"worker {rank}: ") for rank in who)
    assert "begin another LASGD after it, at all workers" in str(errors[0])
    assert "\n" not in str(errors[0])


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("change", [unfreeze, add_group, replace_layer, add_buffer])
def test_a_change_at_one_worker_reaches_one_that_has_finished(change, overlap):
    def work(rank, store, size):
        return train(rank, store, size, change, (1,), overlap, steps=STEPS if rank else 3)

    errors = in_threads(work, 3, may_fail=True)
    assert {type(error) for error in errors} == {WorkersDiffer}
    assert {str(error) for error in errors} == {str(errors[1])}
    assert REFUSED[change] in str(errors[1])


@pytest.mark.parametrize("who", [(0, 1), (1,)])
@pytest.mark.parametrize("change", ALLOWED)
def test_freezing_is_no_change_and_all_end_with_the_same_bits(change, who):
    one, other = in_threads(lambda *a: train(*a, change, who, True), 2)
    assert (one == other).all()


def test_what_an_optimizer_holds_frozen_stays_as_it_is():
    """Weight decay and momentum would move it; it is in no sum."""

    def work(rank, store, size):
        model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
        nn.init.constant_(model[0].weight, 0.5)
        nn.init.constant_(model[0].bias, 0.25)
        model[0].requires_grad_(False)
        options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
        optimizer = torch.optim.SGD(model.parameters(), **options)
        with LASGD(model, optimizer, sync_every=2, store=store, rank=rank, world_size=size):
            for _ in range(10):
                optimizer.zero_grad()
                model(torch.randn(8, 4)).square().mean().backward()
                optimizer.step()
        return model.state_dict()

    one, other = in_threads(work, 2)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (one["0.weight"] == 0.5).all() and (one["0.bias"] == 0.25).all()


def test_training_goes_on_in_another_block_after_unfreezing():
    def work(rank, store, size):
        model = Model()
        model.body.requires_grad_(False)
        torch.manual_seed(rank)
        for block in range(2):
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
            part = torch.distributed.PrefixStore(f"block/{block}", store)
            with LASGD(model, optimizer, sync_every=3, store=part, rank=rank, world_size=size):
                for _ in range(10):
                    model.zero_grad()
                    model(torch.randn(8, 4)).square().mean().backward()
                    optimizer.step()
            model.body.requires_grad_(True)
        return torch.cat([p.detach().flatten() for p in [*model.parameters(), model.mean]])

    one, other = in_threads(work, 2)
    assert torch.equal(one, other)


def test_a_buffer_in_whose_place_another_tensor_is_put_is_averaged():
    """Bits are equal at the end, and not those of the beginning."""
    one, other = in_threads(lambda *a: train(*a, freeze, (), True), 2)
    assert (one[-5:] == other[-5:]).all() and (one[-5:] != 0).all()


def errors_of(work, number=2):
    errors = in_threads(work, number, may_fail=True)
    assert all(isinstance(error, Exception) for error in errors), errors
    assert not any("\n" in str(error) for error in errors)
    return [f"{type(error).__name__}: {error}" for error in errors]


def differ(rank, store, size, make_optimizer=None, make_model=lambda rank: nn.Linear(4, 3)):
    model = make_model(rank)
    optimizer = (
        torch.optim.SGD(model.parameters(), lr=0.1)
        if make_optimizer is None
        else make_optimizer(rank, model)
    )
    return LASGD(model, optimizer, store=store, rank=rank, world_size=size, timeout_s=20)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda r, m: torch.optim.SGD(m.parameters(), lr=0.1 * (1 + r)), "'lr' is 0.1 at worker 0"),
        (
            lambda r, m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.5 * r),
            "'momentum' is 0.0 at worker 0 and 0.5 at worker 1",
        ),
        (
            lambda r, m: (torch.optim.AdamW if r else torch.optim.Adam)(m.parameters()),
            "'class' is Adam at worker 0 and AdamW at worker 1",
        ),
        (
            lambda r, m: (torch.optim.Adam if r else torch.optim.SGD)(m.parameters(), lr=0.1),
            "'class' is SGD at worker 0 and Adam at worker 1",
        ),
        (
            lambda r, m: torch.optim.SGD(
                [{"params": [m.weight]}, {"params": [m.bias], "weight_decay": 0.1 * r}], lr=0.1
            ),
            "'weight_decay of group 1' is 0.0 at worker 0 and 0.1 at worker 1",
        ),
        (
            lambda r, m: torch.optim.SGD(
                [{"params": [m.weight]}, {"params": [m.bias]}] if r else m.parameters(), lr=0.1
            ),
            "'groups' is 1 at worker 0 and 2 at worker 1",
        ),
    ],
)
def test_other_optimizers_are_named_at_every_worker(make, message):
    for error in errors_of(lambda *a: differ(*a, make)):
        assert error.startswith("ValueError: expected the same optimizers at all workers, but ")
        assert message in error


def test_how_an_optimizer_computes_may_differ():
    def work(rank, store, size):
        return differ(
            rank, store, size, lambda r, m: torch.optim.SGD(m.parameters(), foreach=r > 0)
        )

    in_threads(work, 2)


def test_other_frozen_weights_are_named_at_every_worker():
    def make_model(rank):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
        nn.init.ones_(model[0].weight)
        nn.init.ones_(model[0].bias)
        model[0].requires_grad_(False)
        if rank == 1:
            with torch.no_grad():
                model[0].bias[2] += 1e-6
        return model

    def make_optimizer(rank, model):
        return torch.optim.SGD(model[1].parameters(), lr=0.1)

    for error in errors_of(lambda *a: differ(*a, make_optimizer, make_model)):
        assert "'0.bias' is float32 [4] frozen, with the checksum" in error


@pytest.mark.parametrize("name", ["torch", "fedcurv"])
def test_other_versions_are_named_at_every_worker(name, monkeypatch):
    from fedcurv.lasgd import meeting

    original = meeting.signature

    def work(rank, store, size):
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        control = meeting.Control(store, rank, 20.0)
        text = original(model, optimizer, {})
        version = f'"{name}": "'
        return meeting.begin(control, size, text.replace(version, version + "9" * rank))

    for error in errors_of(work):
        assert f"expected the same versions at all workers, but '{name}' is " in error


def test_another_world_size_is_named_before_the_others_have_come():
    """Of three one was told that they are two; the third may be late."""

    def work(rank, store, size):
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"store": store, "rank": rank, "world_size": 2 + rank, "timeout_s": 60}
        LASGD(model, optimizer, **options)

    began = time.monotonic()
    for error in errors_of(work):
        assert "'world_size' is 2 at worker 0 and 3 at worker 1" in error
    assert time.monotonic() - began < 45


def test_another_loader_is_named_at_every_worker():
    data = torch.utils.data.TensorDataset(torch.randn(40, 4), torch.arange(40) % 3)
    for options, message in [
        ({"seed": 1}, "'seed' is"),
        ({"shuffle": False}, "'shuffle' is"),
        ({"dataset": torch.utils.data.Subset(data, range(30))}, "'samples' is"),
    ]:

        def work(rank, store, size, options=options):
            model = nn.Linear(4, 3)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            mine = {"dataset": data, "batch_size": 4, **(options if rank else {})}
            with LASGD(
                model, optimizer, store=store, rank=rank, world_size=size, timeout_s=20
            ) as lasgd:
                for inputs, labels in lasgd.loader(**mine):
                    nn.functional.cross_entropy(model(inputs), labels).backward()
                    optimizer.step()
                    time.sleep(0.02)

        for error in errors_of(work):
            assert error.startswith("WorkersDiffer: worker ")
            assert "expected the same loader() at all workers, but " + message in error


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([])


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (Endless(), {}, "a length and samples by index, of which each is dealt once, got Endless"),
        (iter([]), {}, "got list_iterator; give every worker a torch DataLoader of its own"),
        (range(8), {"drop_last": True}, r"takes no drop_last; leave it out"),
        (
            {"train": [1], "test": [2]},
            {},
            "samples by index, of which each is dealt once, got dict",
        ),
        (range(8), {"sampler": [1]}, "takes no sampler; leave it out"),
        (range(8), {"sampler": []}, "takes no sampler; leave it out"),
        (range(8), {"batch_sampler": [[1]]}, "takes no batch_sampler; leave it out"),
        (range(8), {"batch_size": None}, "batch_size must be an integer >= 1, got None"),
        (range(8), {"batch_size": True}, "batch_size must be an integer >= 1, got True"),
        (range(8), {"prefetch_factor": 2}, "prefetch_factor to torch's DataLoader: .*num_workers"),
        (range(8), {"num_workers": -1}, "num_workers to torch's DataLoader: num_workers option s"),
        (range(8), {"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        (range(8), {"batch_size": 2.5}, r"batch_size must be an integer >= 1, got 2\.5"),
        (range(8), {"seed": "7"}, "seed must be an integer of at most 2.40 in size, got '7'"),
        (range(8), {"seed": 2**60}, "seed must be an integer of at most"),
        (range(8), {"shuffle": "no"}, "shuffle must be True or False, got 'no'"),
        (range(8), {"workers": 2}, "knows no workers, nor does torch's DataLoader"),
    ],
)
def test_loaders_that_cannot_share_are_refused_at_once(dataset, options, message):
    def work(rank, store, size):
        lasgd = differ(rank, store, size)
        with pytest.raises(ValueError, match=message):
            lasgd.loader(dataset, **{"batch_size": 2, **options})
        # what takes away nothing is let in
        loader = lasgd.loader(range(8), 2, drop_last=False, sampler=None)
        with lasgd:
            assert len(list(loader)) == 4

    in_threads(work, 1)


def test_an_optimizers_groups_may_be_loaded_in_the_middle():
    """Its momentum then fades by the group that is in use."""

    def work(rank, store, size):
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with LASGD(model, optimizer, sync_every=1, store=store, rank=0, world_size=1) as lasgd:
            optimizer.load_state_dict(optimizer.state_dict())
            optimizer.param_groups[0]["momentum"] = 0.5
            momentum = lasgd._shared.replica._momentum
            assert momentum.decays(2) == [0.25, 0.25]

    in_threads(work, 1)
