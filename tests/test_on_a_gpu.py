"""On a GPU the results are those of the CPU. Nothing here runs where there is none."""

import copy

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from torch import nn

from fedcurv import Curvature, CurvaturePenalty, fisher_diagonal
from fedcurv.clients import LocalTask, TrainingSettings, client_app
from fedcurv.global_state import cudnn, seeded
from fedcurv.losses import PRESETS, preset
from fedcurv.simulations.commands.simulate import simulate
from fedcurv.simulations.parts.models import cnn, mlp
from fedcurv.simulations.runners.batched.grid import BatchedGrid
from fedcurv.simulations.runners.local import LocalGrid
from fedcurv.strategies import FedCurv, start
from tests.fedcurv.test_fisher import assert_same, problem
from tests.federation import served_on
from tests.oracles import fisher as oracle
from tests.simulations.test_run import configuration, rows_of
from tests.zoo import ZOO

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

DEVICE = torch.device("cuda")
SHAPE, CLASSES, CLIENTS = (1, 12, 12), 5, 6


@pytest.fixture(autouse=True)
def full_precision():
    """Without it convolutions round to ten bits."""
    with cudnn(allow_tf32=False):
        yield


# ---- the mathematics


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_fisher_information(kind, name):
    model, inputs, labels = problem(name)
    expected = (
        oracle.exact(model, inputs) if kind == "exact" else oracle.empirical(model, inputs, labels)
    )
    got = fisher_diagonal(model.to(DEVICE), [(inputs, labels)], kind=kind)
    assert all(tensor.device.type == DEVICE.type for tensor in got.values())
    assert_same({name: tensor.cpu() for name, tensor in got.items()}, expected, rtol=1e-7)


def test_sampled_fisher_information_draws_on_the_gpu():
    model, inputs, labels = problem("linear")
    model.to(DEVICE)
    one, other = (
        fisher_diagonal(
            model,
            [(inputs, labels)],
            kind="sampled",
            generator=torch.Generator(DEVICE).manual_seed(3),
        )
        for _ in range(2)
    )
    assert_same(one, other)
    assert sum(float(tensor.sum()) for tensor in one.values()) > 0


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
@pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW], ids=lambda o: o.__name__
)
def test_penalty(optimizer, mode):
    start, inputs, labels = problem("conv2d")
    fisher = {name: torch.rand_like(p) for name, p in start.named_parameters()}
    results = []
    for device in (torch.device("cpu"), DEVICE):
        model = copy.deepcopy(start).to(device)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
        penalty = CurvaturePenalty(model, Curvature.at(start, fisher).to(device), strength=0.5)
        steps = optimizer(model.parameters(), lr=0.05)
        penalty.attach(steps, mode=mode)
        for _ in range(5):
            steps.zero_grad()
            nn.functional.cross_entropy(model(inputs.to(device)), labels.to(device)).backward()
            steps.step()
        results.append({name: p.detach().cpu() for name, p in model.named_parameters()})
        results[-1]["value"] = penalty.value().detach().cpu()
    assert_same(results[1], results[0], rtol=1e-7)


@pytest.mark.parametrize("name", PRESETS)
def test_losses(name):
    logits = torch.randn(
        9, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    labels = torch.arange(9) % CLASSES
    results = []
    for device in (torch.device("cpu"), DEVICE):
        loss = preset(name, next(iter(PRESETS[name]))).to(device)
        leaf = logits.to(device, copy=True).requires_grad_()
        value = loss(leaf, labels.to(device))
        value.backward()
        results.append({"value": value.detach().cpu(), "gradient": leaf.grad.cpu()})
    assert_same(results[1], results[0], rtol=1e-7)


# ---- clients


class Noisy(nn.Module):
    """Draws random numbers in training."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


MODELS = {
    "mlp": lambda: mlp(SHAPE, CLASSES, hidden=(16, 12)),
    "cnn": lambda: cnn(SHAPE, CLASSES),
    "dropout": Noisy,
}


def start_of(model):
    with seeded(7):
        return MODELS[model]()


def make_task_of(settings, model):
    def make_task(message: object, context: Context) -> LocalTask:
        client = int(context.node_config["partition-id"])
        generator = torch.Generator().manual_seed(client)
        number = 20 + 3 * client
        inputs = torch.randn(number, *SHAPE, generator=generator)
        targets = torch.randint(0, CLASSES, (number,), generator=generator)
        return LocalTask(start_of(model), (inputs, targets), settings=settings)

    return make_task


def federation(settings, model="mlp", *, together=False, num_rounds=3):
    """Return the last model and every round's metrics."""
    make_task = make_task_of(settings, model)
    app, arrays = client_app(make_task), ArrayRecord(start_of(model).state_dict())
    strategy = FedCurv(strength=0.3, fraction_evaluate=0.0)

    def serve(grid: Grid) -> Result:
        config = ConfigRecord()
        return start(strategy, grid, arrays, num_rounds=num_rounds, seed=0, train_config=config)

    grid = BatchedGrid(app, make_task, CLIENTS) if together else LocalGrid(app, CLIENTS)
    result = served_on(grid, serve)
    return result.arrays.to_torch_state_dict(), result.train_metrics_clientapp


def settings_on(device, **options) -> TrainingSettings:
    return TrainingSettings(
        **{"epochs": 2, "batch_size": 8, "lr": 0.1, "fisher_kind": "exact", **options},
        device=str(device),
    )


def assert_close(got, expected):
    for name, values in expected.items():
        torch.testing.assert_close(got[name], values, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_a_federation(mode, model):
    (expected, _), (got, _) = (
        federation(settings_on(device, penalty_mode=mode), model) for device in ("cpu", DEVICE)
    )
    assert_close(got, expected)


def test_a_federation_trains_on_the_gpu_and_holds_no_memory_there_afterwards():
    federation(settings_on(DEVICE))  # libraries keep what they need
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    federation(settings_on(DEVICE))
    assert torch.cuda.max_memory_allocated() > before
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("model", ["cnn", "dropout"])
def test_the_same_seed_gives_the_same_bits(model):
    (one, _), (other, _) = (federation(settings_on(DEVICE), model) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_client_leaves_the_random_states_and_cudnn_as_they_were():
    states = torch.get_rng_state(), torch.cuda.get_rng_state()
    federation(settings_on(DEVICE), "dropout", num_rounds=1)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(torch.cuda.get_rng_state(), states[1])
    assert torch.backends.cudnn.enabled and not torch.backends.cudnn.deterministic


# ---- simulations


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
@pytest.mark.parametrize("kind", ["empirical", "exact", "sampled"])
@pytest.mark.parametrize("epochs", [1, 6])
def test_stacked_clients(epochs, kind, mode):
    """Six epochs are queued as one graph; see ``stacked``."""
    settings = settings_on(DEVICE, epochs=epochs, fisher_kind=kind, penalty_mode=mode)
    (expected, one), (got, other) = (
        federation(settings, together=together) for together in (False, True)
    )
    assert_close(got, expected)
    assert other[3]["train-loss"] == pytest.approx(one[3]["train-loss"], rel=1e-3)
    assert other[3]["penalty"] == pytest.approx(one[3]["penalty"], rel=1e-2)


@pytest.mark.parametrize("runner", ["local", "batched"])
def test_the_main_job(runner, tmp_path):
    """The server evaluates on the GPU too."""
    small = ["num_clients=6", "num_rounds=3", "client.epochs=2", f"runner={runner}"]
    for device in ("cpu", "cuda"):
        overrides = [*small, f"client.device={device}"]
        simulate(configuration(*overrides), tmp_path / device, command="the command")
    rows = [rows_of(tmp_path / device / "metrics.csv") for device in ("cpu", "cuda")]
    losses = [[float(row["loss"]) for row in of_device] for of_device in rows]
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
