"""What a site trains is what one process trains: its workers are threads here."""

import os
import pickle
import threading
import traceback

import pytest
import torch
from torch import nn

from fedcurv import fisher_diagonal
from fedcurv.clients.settings import TrainingSettings
from fedcurv.clients.site import jobs
from fedcurv.clients.site.jobs import Share, fisher_on_site, train_on_site
from fedcurv.clients.site.pool import Outcome, Place
from fedcurv.lasgd import host_store
from fedcurv.simulations.commands.simulate import simulate
from tests.simulations.test_run import rows_of
from tests.simulations.test_tasks import OF_TASK, composed

# on loopback, and without a wait where no name server answers
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")

LIMIT_S = 60

SCHEDULE = "client.schedule={name: StepLR, step_size: 1, gamma: 0.5}"
OPTIMIZERS = {
    "regression": ["client.momentum=0.9"],
    "binary": ["client.optimizer=adam", "client.lr=0.01"],
    "multilabel": ["client.optimizer={name: adamw, amsgrad: true}", "client.lr=0.01"],
    "per_position": ["client.optimizer=rmsprop", "client.lr=0.01"],
}


class Threads:
    """Does what ``SitePool.run`` does; jobs are pickled as there."""

    def __init__(self, number):
        self.number, self.jobs, self.server = number, 0, host_store()

    def run(self, job, *arguments):
        self.jobs += 1
        work, outcomes = pickle.dumps((job, arguments)), [None] * self.number

        def one(rank):
            called, given = pickle.loads(work)
            place = Place(rank, self.number, "cpu", self.server.port, self.jobs)
            try:
                outcomes[rank] = Outcome(rank, called(place, *given), None)
            except Exception:
                outcomes[rank] = Outcome(rank, None, traceback.format_exc())

        threads = [threading.Thread(target=one, args=(r,), daemon=True) for r in range(self.number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        assert not any(outcome is None or outcome.error for outcome in outcomes), outcomes
        return outcomes


@pytest.mark.usefixtures("quick_pictures")
@pytest.mark.parametrize("task", OF_TASK)
def test_a_site_of_one_worker_trains_every_task_as_one_process_does(task, tmp_path, monkeypatch):
    """With any optimizer and a schedule over rounds; whole shards, so that no order matters."""
    pool = Threads(1)
    monkeypatch.setattr(jobs, "pool_for", lambda settings: pool)
    overrides = [*OF_TASK[task], *OPTIMIZERS[task], SCHEDULE, "strategy=fedcurv", "num_rounds=2"]
    overrides += ["num_clients=2", "client.batch_size=1000", "client.workers=1"]
    overrides += ["client.fisher_kind=exact"]  # signs would be drawn for each worker
    for trainer in ("local", "lasgd"):
        folder = tmp_path / trainer
        simulate(composed(*overrides, f"client.trainer={trainer}"), folder, command="command")
    assert pool.jobs == 2 * 2 * 2, "each of two clients trains and estimates in each of two rounds"
    for name, columns in (("metrics", ["loss"]), ("clients", ["penalty", "lr"])):
        alone, by_site = (rows_of(tmp_path / t / f"{name}.csv") for t in ("local", "lasgd"))
        assert len(alone) == len(by_site) > 0
        for one, other in zip(alone, by_site, strict=True):
            for column in columns:
                wanted = pytest.approx(float(one[column]), rel=1e-4, abs=1e-5)
                assert float(other[column]) == wanted, column
    assert len({row["lr"] for row in by_site}) == 2, "the schedule has been followed"
    assert any(float(row["penalty"]) > 0 for row in by_site)


TARGETS = {
    "gaussian": lambda n: torch.randn(n, 3),
    "multilabel": lambda n: (torch.rand(n, 3) > 0.5).float(),
    "categorical": lambda n: torch.arange(n) % 3,
}


@pytest.mark.parametrize("kind", ["empirical", "exact"])
@pytest.mark.parametrize("likelihood", TARGETS)
def test_a_sites_fisher_information_is_that_of_one_process(likelihood, kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    samples = torch.randn(31, 4), TARGETS[likelihood](31)
    settings = TrainingSettings(batch_size=8, fisher_kind=kind, trainer="lasgd", workers=3)
    share = Share(model, samples, settings, None, (), 3, likelihood)
    alone = fisher_diagonal(model, [samples], kind=kind, likelihood=likelihood)
    for name, value in fisher_on_site(Threads(3), share).items():
        torch.testing.assert_close(value, alone[name], rtol=1e-5, atol=1e-9)


def test_the_workers_of_a_site_share_the_number_of_samples(monkeypatch):
    """On average they have the information of all samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    samples = torch.randn(31, 4), torch.arange(31) % 3
    settings = TrainingSettings(fisher_kind="exact", fisher_samples=12, trainer="lasgd", workers=3)
    whole = fisher_diagonal(model, [samples], kind="exact")["0.weight"]
    numbers, estimates = [], []

    def noted(*arguments, samples, **options):
        numbers.append(samples)
        return fisher_diagonal(*arguments, samples=samples, **options)

    monkeypatch.setattr(jobs, "fisher_diagonal", noted)
    for seed in range(60):
        share = Share(model, samples, settings, None, (), seed * 10)
        estimates.append(fisher_on_site(Threads(3), share)["0.weight"])
    assert set(numbers) == {4}
    several = torch.stack(estimates)
    error = several.std(0) / len(several) ** 0.5
    assert bool(((several.mean(0) - whole).abs() < 5 * error).all())
    assert bool((error < 0.1 * whole).all())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adagrad", "nadam", "adafactor", "rprop"])
def test_workers_of_a_site_end_with_the_same_model_under_any_optimizer(optimizer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))
    inputs = torch.randn(64, 4)
    samples = inputs, inputs[:, :2].sin()
    settings = TrainingSettings(
        epochs=4, batch_size=8, optimizer=optimizer, lr=0.01, trainer="lasgd", sync_every=4
    )
    check_workers_of_a_site(model, samples, settings)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_workers_of_a_site_have_the_outer_optimizer_and_the_few_bits_of_its_settings(
    optimizer, monkeypatch
):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 50), nn.Tanh(), nn.Linear(50, 2))
    inputs = torch.randn(64, 4)
    options = {"outer": "nesterov", "outer_lr": 0.9, "outer_momentum": 0.3, "compression": "int8"}
    kind, seen = jobs.LASGD, []

    def noted(*arguments, **settings):
        seen.append({name: settings[name] for name in options})
        return kind(*arguments, **settings)

    monkeypatch.setattr(jobs, "LASGD", noted)
    settings = TrainingSettings(
        epochs=4,
        batch_size=8,
        optimizer=optimizer,
        lr=0.01,
        trainer="lasgd",
        sync_every=4,
        **options,
    )
    check_workers_of_a_site(model, (inputs, inputs[:, :2].sin()), settings)
    assert seen == 4 * [options]


def check_workers_of_a_site(model, samples, settings):
    """All end with the same bits, below the loss that they began with."""
    share, inputs = Share(model, samples, settings, nn.MSELoss(), (), 3), samples[0]
    pool = Threads(2)
    one, other = (outcome.value for outcome in pool.run(jobs.train_share, share))
    assert all(torch.equal(one.weights[n], other.weights[n]) for n in one.weights)
    assert one.stats.steps_in_rounds == 4 * 8
    done = train_on_site(pool, share)
    before = float(nn.MSELoss()(model(inputs), samples[1]).detach())
    assert done.num_samples == 64 and done.loss_sum / 64 < before
