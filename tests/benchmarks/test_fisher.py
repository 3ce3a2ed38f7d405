"""The Fisher diagonal in plain training epochs over the same samples, against vmap."""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedcurv import fisher_diagonal
from fedcurv.clients.training import InMemoryBatches, train
from fedcurv.simulations.data.sets import DATA_SETS
from fedcurv.simulations.parts.models import cnn, mlp
from tests.benchmarks.cases import CASES, CLASSES, Batches
from tests.benchmarks.conftest import Tables
from tests.benchmarks.measure import DEVICES, Ratios, compare, peak_bytes, seconds

Loss = Callable[[Tensor, Tensor], Tensor]

TITLE = "Fisher diagonal, in plain training epochs over the same samples"


def epoch(model: nn.Module, batches: Batches, loss: Loss = nn.functional.cross_entropy) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train()
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss(model(inputs), targets).backward()
        optimizer.step()


def by_vmap(model: nn.Module, batches: Batches) -> dict[str, Tensor]:
    """Return the sums of squares, naively; of the mean over pixels where there are several."""
    model.eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, parameters, (x[None],)), y[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for inputs, targets in batches:
        for name, gradient in gradients(parameters, inputs, targets).items():
            total[name] += gradient.square().sum(0)
    return total


@pytest.mark.benchmark_suite
@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_fisher(name: str, device: torch.device, benchmark, tables: Tables) -> None:
    case = CASES[name]
    pytest.importorskip(case.needs)
    model, batches = case.make().to(device), case.batches(device)
    train = partial(epoch, loss=case.loss)
    ours = partial(fisher_diagonal, likelihood=case.likelihood)
    ratios = compare(
        benchmark,
        partial(ours, model, batches),
        partial(train, model, batches),
        device=device,
        rounds=case.rounds,
    )
    few = batches[: max(1, 100 // case.batch_size)]
    runs = [train, ours]
    by_vmaps = memory_of_vmap = "vmap cannot run it"
    if case.vmap_runs:
        runs.append(by_vmap)
        naive = [
            seconds(partial(by_vmap, model, few), device)
            / seconds(partial(train, model, few), device)
            for _ in range(3)
        ]
        by_vmaps = f"{Ratios(naive).median:.1f}"
    model.zero_grad()
    memory = {run: peak_bytes(partial(run, model, batches[:2]), device) for run in runs}
    model.zero_grad()
    of_training = memory[train]
    if case.vmap_runs:
        memory_of_vmap = f"{memory[by_vmap] / of_training:.1f} times"
    tables.add(
        TITLE,
        model=name,
        batch=case.batch_size,
        device=device,
        epochs=ratios,
        target=case.target,
        by_vmap=by_vmaps,
        peak_memory_of_training=f"{of_training / 1e6:.1f} MB",
        peak_memory=f"{memory[ours] / of_training:.2f} times",
        memory_target=case.memory_target,
        vmaps=memory_of_vmap,
    )


@pytest.mark.benchmark_suite
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("name", ["MLP 784-200-200-10", "CNN, 582 thousand"])
def test_exact_fisher(name: str, classes: int, benchmark, tables: Tables) -> None:
    """One forward pass, C − 1 backward passes, and one product of a linear layer's squares."""
    device = torch.device("cpu")
    model = CASES[name].make()
    model[-1] = nn.Linear(model[-1].in_features, classes)
    batches = [(x, y % classes) for x, y in CASES[name].batches(device)]
    ratios = compare(
        benchmark,
        partial(fisher_diagonal, model, batches, kind="exact"),
        partial(epoch, model, batches),
        device=device,
        rounds=3,
    )
    tables.add("Exact Fisher diagonal, likewise", model=name, classes=classes, epochs=ratios)


class Loader:
    """Batches that are not known to stay in memory."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._batches)


@pytest.mark.benchmark_suite
@pytest.mark.parametrize("samples", ["all", "auto"])
@pytest.mark.parametrize("kind", ["exact", "signed", "sampled"])
@pytest.mark.parametrize("name", ["MLP 784-200-200-10", "CNN, 582 thousand"])
def test_fisher_of_some(name: str, kind: str, samples: str, benchmark, tables: Tables) -> None:
    """Chosen from all in memory, given as one batch, or as they are read from batches."""
    device = torch.device("cpu")
    model, batches = CASES[name].make(), CASES[name].batches(device)
    inputs, targets = zip(*batches, strict=True)
    together = [(torch.cat(inputs), torch.cat(targets))]
    ours = partial(fisher_diagonal, model, kind=kind, samples=samples)
    plain = partial(epoch, model, batches)
    ratios = compare(benchmark, partial(ours, together), plain, device=device, rounds=7)
    ours(Loader(batches)), plain()
    read = [
        seconds(partial(ours, Loader(batches)), device) / seconds(plain, device) for _ in range(7)
    ]
    tables.add(
        "Fisher diagonal of 600 samples, likewise",
        model=name,
        kind=kind,
        samples=samples,
        from_one_batch=ratios,
        from_batches=Ratios(read),
    )


def trained_on_shards(
    make: Callable[[], nn.Module], clients: int
) -> Iterator[tuple[nn.Module, Batches]]:
    """Yield models that went on from a common one, each on two classes' shards of the digits."""
    data = DATA_SETS["digits"]("", False)
    inputs, labels = data.train_samples(np.arange(len(data.train_targets)))
    order = labels.argsort(stable=True)
    shards = order.chunk(2 * clients)
    torch.manual_seed(0)
    common = make()
    everything = InMemoryBatches(inputs, labels, 16, torch.Generator().manual_seed(0))
    train(common, everything, torch.optim.SGD(common.parameters(), lr=0.1))
    for client in range(clients):
        model, rows = copy.deepcopy(common), torch.cat([shards[client], shards[client + clients]])
        samples = inputs[rows], labels[rows]
        batches = InMemoryBatches(*samples, 16, torch.Generator().manual_seed(client))
        train(model, batches, torch.optim.SGD(model.parameters(), lr=0.2), epochs=10)
        yield model, [samples]


def flat(fisher: dict[str, Tensor]) -> Tensor:
    return torch.cat([values.flatten() for values in fisher.values()])


@pytest.mark.benchmark_suite
@pytest.mark.parametrize(("name", "clients"), [("MLP", 20), ("CNN", 10)])
def test_deviation_of_sums(name: str, clients: int, tables: Tables) -> None:
    """How far the sum over clients is from that of the exact kind of all samples."""
    make = {"MLP": partial(mlp, (1, 8, 8), CLASSES), "CNN": partial(cnn, (1, 8, 8), CLASSES)}[name]
    trained = list(trained_on_shards(make, clients))
    whole = sum(flat(fisher_diagonal(m, b, kind="exact")) for m, b in trained)
    for kind in ("exact", "signed", "sampled"):
        for samples in (8, 24, "all"):
            if (kind, samples) == ("exact", "all"):
                continue
            squares = []
            for draw in range(5):
                generator = torch.Generator().manual_seed(draw)
                options = {"kind": kind, "samples": samples, "generator": generator}
                one = sum(flat(fisher_diagonal(m, b, **options)) for m, b in trained)
                squares.append(float((one - whole).square().sum() / whole.square().sum()))
            tables.add(
                "Deviation of the sum of Fisher diagonals over clients of two shards of the digits",
                model=name,
                clients=clients,
                samples_each=len(trained[0][1][0][0]),
                kind=kind,
                of_samples=samples,
                relative_deviation=f"{(sum(squares) / len(squares)) ** 0.5:.2f}",
            )
