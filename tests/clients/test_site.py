"""A site's workers: real processes that outlive whoever asks them."""

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import torch
from torch import nn

from fedcurv import Curvature, fisher_diagonal
from fedcurv.clients.settings import TrainingSettings
from fedcurv.clients.site.jobs import Share, fisher_on_site, train_on_site
from fedcurv.clients.site.pool import SiteFailed, SitePool
from fedcurv.clients.terms import ProximalTerm, PullTerm
from fedcurv.clients.training import evaluate
from fedcurv.losses import RegularizedCrossEntropy
from fedcurv.simulations.commands.simulate import simulate
from tests.simulations.test_run import configuration, rows_of

pytestmark = pytest.mark.slow


def pids(place):
    return os.getpid()


def ranks_and_sizes(place, what):
    return place.rank, place.size, place.device, what


def fail(place, ranks):
    if place.rank in ranks:
        raise ZeroDivisionError("mine")
    return place.rank


def die(place, ranks):
    if place.rank in ranks:
        os.kill(os.getpid(), signal.SIGKILL)
    return place.rank


def freeze(place):
    if place.rank:
        os.kill(os.getpid(), signal.SIGSTOP)
    return place.rank


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("site") / "site"


@pytest.fixture(scope="module")
def pool(folder):
    """One site for all tests: two processes take longer to start than most jobs."""
    workers = SitePool(folder, ["cpu", "cpu"], patience_s=10)
    yield workers
    workers.close()


def test_every_worker_does_the_job_at_its_place(pool):
    outcomes = pool.run(ranks_and_sizes, "what")
    assert [o.value for o in outcomes] == [(0, 2, "cpu", "what"), (1, 2, "cpu", "what")]


def test_workers_are_the_same_for_another_process(pool, folder):
    before = [o.value for o in pool.run(pids)]
    code = (
        "import sys; from fedcurv.clients.site.pool import SitePool;"
        "from tests.clients.test_site import pids;"
        "print([o.value for o in SitePool(sys.argv[1], ['cpu', 'cpu']).run(pids)])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert result.stdout.strip() == str(before)


def test_an_error_is_told_and_the_others_results_stand(pool):
    one, failed = pool.run(fail, [1])
    assert one.value == 0
    assert "ZeroDivisionError: mine" in failed.error
    with pytest.raises(SiteFailed, match=r"(?s)no worker has done its job.*ZeroDivisionError"):
        pool.run(fail, [0, 1])


def test_a_worker_that_dies_is_replaced(pool):
    before = [o.value for o in pool.run(pids)]
    one, dead = pool.run(die, [1])
    assert one.value == 0
    assert "the process has ended, exit code -9" in dead.error
    after = [o.value for o in pool.run(pids)]
    assert after[0] == before[0] and after[1] != before[1]


def test_a_worker_that_hangs_is_replaced(tmp_path):
    pool = SitePool(tmp_path, ["cpu", "cpu"], patience_s=15)
    try:
        one, frozen = pool.run(freeze)
        assert one.value == 0
        assert "no answer for 15 s" in frozen.error
        assert [o.value for o in pool.run(fail, [])] == [0, 1]
    finally:
        pool.close()


def test_an_idle_host_ends_itself(tmp_path):
    pool = SitePool(tmp_path, ["cpu"], idle_s=0.5)
    deadline = time.monotonic() + 60
    while (tmp_path / "address.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with pytest.raises(SiteFailed, match="have ended; make the pool anew"):
        pool.run(pids)


def test_what_others_could_read_is_not_the_key(pool, folder):
    assert (folder / "address.json").stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0


def test_other_devices_than_those_that_run_are_refused(pool, folder):
    with pytest.raises(ValueError, match=r"those that run there have \['cpu', 'cpu'\]"):
        SitePool(folder, ["cpu"])


def share(**changes):
    torch.manual_seed(0)
    inputs = torch.randn(200, 5)
    targets = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))
    settings = TrainingSettings(epochs=20, batch_size=8, lr=0.5, trainer="lasgd", workers=2)
    return Share(model, (inputs, targets), settings, None, (), 3, **changes)


def test_a_site_trains_and_estimates(pool):
    """The estimate is the one of a single process."""
    work = share()
    done = train_on_site(pool, work)
    work.model.load_state_dict(done.weights)
    _, accuracy, _ = evaluate(work.model, [work.samples])
    assert accuracy > 0.85
    assert done.stats.steps_in_rounds == 20 * 25
    assert done.num_samples == 200
    assert 0 < done.loss_sum / done.num_samples < 0.5
    alone = fisher_diagonal(work.model, [work.samples])
    for name, value in fisher_on_site(pool, work).items():
        torch.testing.assert_close(value, alone[name], rtol=1e-5, atol=1e-9)


def test_penalties_and_losses_work_on_a_site(pool):
    work = share()
    away = {name: torch.full_like(p, 1.0) for name, p in work.model.named_parameters()}
    pull = Curvature({n: 1e3 * v for n, v in away.items()}, {n: 1e3 * v for n, v in away.items()})
    settings = dataclasses.replace(work.settings, penalty_mode="proximal")
    pulled = dataclasses.replace(work, terms=[PullTerm(pull, 10.0)], settings=settings)
    for value in train_on_site(pool, pulled).weights.values():
        torch.testing.assert_close(value, torch.ones_like(value), rtol=0, atol=0.01)
    # logits are squeezed to almost nothing
    robust = dataclasses.replace(work, criterion=RegularizedCrossEntropy("logit", 1000.0))
    work.model.load_state_dict(train_on_site(pool, robust).weights)
    logits = work.model(work.samples[0])
    assert (logits - logits.mean(1, keepdim=True)).abs().max() < 0.2
    slow = dataclasses.replace(settings, lr=0.005)
    held = dataclasses.replace(work, terms=[ProximalTerm(100.0)], settings=slow)
    start = {name: value.clone() for name, value in work.model.state_dict().items()}
    for name, value in train_on_site(pool, held).weights.items():
        torch.testing.assert_close(value, start[name], rtol=0, atol=0.05)


def test_a_simulation_trains_by_a_site(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    config = configuration(
        "num_rounds=3",
        "num_clients=2",
        "strategy=[fedavg,fedcurv]",
        "client.trainer=lasgd",
        "client.workers=2",
        "client.epochs=2",
    )
    try:
        simulate(config, tmp_path / "report", command="command")
    finally:
        (folder,) = (tmp_path / "temporary").glob("fedcurv-*-cpu-cpu")
        SitePool(folder, ["cpu", "cpu"]).close()
    rows = rows_of(tmp_path / "report" / "metrics.csv")
    assert float(rows[-1]["accuracy"]) > 0.7
    assert all(int(row["clients_failed"]) == 0 for row in rows)
    clients = rows_of(tmp_path / "report" / "clients.csv")
    assert any(float(row["penalty"] or 0) > 0 for row in clients if row["strategy"] == "fedcurv")
