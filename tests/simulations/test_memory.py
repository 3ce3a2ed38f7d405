"""What a simulation of many clients holds, and what of it is saved."""

import pytest
from flwr.app import ConfigRecord

from fedcurv.simulations.configuration import resolve
from fedcurv.simulations.federation.client_app import app as client_app
from fedcurv.simulations.federation.client_app import make_task
from fedcurv.simulations.federation.saved import SavedStrategy
from fedcurv.simulations.federation.server_app import make_server_app
from fedcurv.simulations.parts.strategies import make_strategy
from fedcurv.simulations.reports.history import History
from fedcurv.simulations.runners.batched.grid import BatchedGrid
from fedcurv.simulations.runners.local import LocalGrid, run_on
from tests.simulations.test_run import configuration

MANY = ["num_clients=40", "num_rounds=6", "fraction_train=0.1", "strategy=fedcurv"]
MANY += ["data.train_samples=200", "partition=iid", "client.epochs=1", "model.hidden=[20]"]


@pytest.mark.parametrize(
    "grid",
    [LocalGrid(client_app, 40), BatchedGrid(client_app, make_task, 40)],
    ids=["local", "batched"],
)
def test_no_more_clients_hold_statistics_than_can_meet_them_again(grid):
    config = configuration(*MANY)
    resolved, history = resolve(config), History("fedcurv")
    strategy = make_strategy(config.strategy.fedcurv, resolved)
    run_on(grid, make_server_app(resolved, strategy, history, []))
    of_rounds = [{client.client_id for client in record.clients} for record in history.rounds[1:]]
    holding = {str(c.node_config["partition-id"]) for c in grid.contexts.values() if c.state}
    assert len(set.union(*of_rounds)) > 10
    # the last round's are in no sums yet, and may be in the next
    assert of_rounds[-1] <= holding <= of_rounds[-1] | of_rounds[-2]


@pytest.mark.parametrize("every", [1, 3])
def test_clients_are_saved_as_they_were_at_the_servers_latest_checkpoint(
    every, tmp_path, monkeypatch
):
    saved, grid = SavedStrategy(tmp_path, "fedcurv", every), LocalGrid(client_app, 2)
    (context, _) = grid.contexts.values()
    for number in range(1, 6):
        context.state["own"] = ConfigRecord({"round": number})
        saved.save_clients(grid, number)
    latest = 5 // every * every
    for checkpoint in (latest, latest - every):  # the server may be killed before it saves its own
        monkeypatch.setattr(saved, "saved_round", lambda checkpoint=checkpoint: checkpoint)
        again = LocalGrid(client_app, 2)
        saved.restore_clients(again)
        states = [dict(c.state.config_records) for c in again.contexts.values()]
        wanted = {"own": ConfigRecord({"round": checkpoint})} if checkpoint else {}
        assert states == [wanted, {}]
