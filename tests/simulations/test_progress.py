"""How far work is, as lines where there is no terminal."""

import io
import time

import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from fedcurv.simulations.configuration import resolve
from fedcurv.simulations.console import progress
from fedcurv.simulations.console.progress import Steps, console
from fedcurv.simulations.experiments.runs import run_to_its_end
from fedcurv.simulations.runners.local import LocalGrid
from fedcurv.simulations.runners.ray import tell_replies
from fedcurv.strategies.flower_private import task_identity
from tests.simulations.test_run import configuration


@pytest.mark.parametrize("runner", ["local", "batched"])
def test_each_client_that_has_trained_is_told_within_its_round(runner):
    config = configuration(
        f"runner={runner}",
        "num_clients=12",
        "num_rounds=2",
        "fraction_train=0.75",
        "strategy=fedavg",
        "data.train_samples=200",
        "partition=iid",
        "client.epochs=1",
    )
    told = []
    run_to_its_end(resolve(config), config.strategy.fedavg, "fedavg", lambda *now: told.append(now))
    expected = []
    for number in (1, 2):
        for done in range(1, 10):
            share = (number - 1 + done / 9) / 2
            expected.append((f"round {number} of 2, {done} of 9 clients", pytest.approx(share)))
        expected.append((f"round {number} of 2 is done", number / 2))
    assert told == [("round 0 of 2 is done", 0.0), *expected]


def test_a_long_step_says_how_far_it_is_and_what_is_left_of_it(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(console, "_file", written)
    monkeypatch.setattr(progress, "_SAY_S", 0.0)
    with Steps("round", 30, finished=2) as steps:
        steps.begin("fedcurv")
        steps._step_began -= 60
        steps.part("3 of 9 clients", 1 / 3)
        deadline = time.monotonic() + 30
        while not written.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    line = written.getvalue().splitlines()[0]
    assert line.startswith("fedcurv: round 3/30: 3 of 9 clients, 1:0")
    assert " so far, 1:5" in line or " so far, 2:00" in line
    assert line.endswith(" left of this round")


def test_replies_are_told_when_they_are_fetched():
    app = ClientApp()
    app.train()(lambda message, context: Message(RecordDict(), reply_to=message))
    told, grid = [], LocalGrid(app, 3)
    tell_replies(grid, lambda reply: told.append(reply.metadata.src_node_id))
    with task_identity(run_id=1, node_id=1):
        messages = [Message(RecordDict(), node, "train") for node in grid.contexts]
    sent = grid.push_messages(messages)
    assert not told
    fetched = grid.pull_messages(sent[1:]) + grid.pull_messages(sent[1:])
    assert told == [reply.metadata.src_node_id for reply in fetched] == [1001, 1002]
