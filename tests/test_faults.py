"""Nodes and servers that die, lie and come back: real processes, with keys and certificates."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from fedcurv.simulations.deployment.flower_run import RunFailed
from fedcurv.simulations.deployment.superlink import Deployment
from fedcurv.simulations.runners.local import run_local
from fedcurv.strategies import JsonLines
from tests.apps.faults.witness import SECRET, SPOILS, client_app, server_app

APP = Path(__file__).parent / "apps" / "faults"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Site:
    """A federation of some nodes, and the folder of their notes."""

    def __init__(self, folder: Path, deployment: Deployment) -> None:
        self.notes, self.deployment = folder / "notes", deployment
        self.notes.mkdir()

    def run_config(self, **more: object) -> str:
        settings = {"num-nodes": self.deployment.num_nodes, **more}
        texts = {key: str(value).lower() for key, value in settings.items()}
        return " ".join([f'notes="{self.notes}"', *(f"{k}={v}" for k, v in texts.items())])

    def run(self, **more: object) -> None:
        self.deployment.run_app(APP, self.run_config(**more))

    @contextmanager
    def running(self, **more: object) -> Iterator[list[RunFailed]]:
        """Run beside the block; what the run failed with is in the list afterwards."""
        failures: list[RunFailed] = []

        def run() -> None:
            try:
                self.run(**more)
            except RunFailed as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield failures
        finally:
            for order in self.notes.glob("hold-*"):
                order.unlink()
            thread.join(600)

    def order(self, name: str, text: str = "") -> None:
        (self.notes / name).write_text(text)

    def countermand(self, name: str) -> None:
        (self.notes / name).unlink()

    def await_note(self, name: str) -> str:
        """Return a note once it is there; it is never empty."""
        path = self.notes / name
        until(lambda: path.exists() and bool(path.read_text()), name)
        return path.read_text()

    def numbers(self, kind: str, server_round: int, client: str) -> np.ndarray:
        return np.load(self.notes / f"{kind}-{server_round}-{client}.npy")

    def statuses(self) -> dict[int, dict[str, str]]:
        rounds = JsonLines.read(self.notes / "rounds.jsonl")
        return {r.server_round: {c.client_id: c.status for c in r.clients} for r in rounds}

    def reasons(self, client: str) -> dict[int, str]:
        rounds = JsonLines.read(self.notes / "rounds.jsonl")
        return {
            r.server_round: c.reason for r in rounds for c in r.clients if c.client_id == client
        }

    def assert_every_client_felt_exactly_the_others(self) -> None:
        statuses = self.statuses()
        for server_round in sorted(statuses)[2:]:
            before = [c for c, s in statuses[server_round - 1].items() if s == "ok"]
            for client in statuses[server_round]:
                others = [c for c in before if c != client]
                if not others:
                    continue
                expected = sum(
                    self.numbers("sent", server_round - 1, c).astype(float) for c in others
                )
                np.testing.assert_allclose(
                    self.numbers("seen", server_round, client), expected, rtol=1e-5, atol=1e-7
                )


def until(holds: Callable[[], bool], what: str, seconds: float = 360.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"no {what} within {seconds:g} s"
        time.sleep(0.1)


@contextmanager
def site(folder: Path, num_nodes: int, **more: Sequence[str]) -> Iterator[Site]:
    with Deployment(folder / "site", num_nodes, **more) as deployment:
        yield Site(folder, deployment)


def test_a_node_killed_while_it_trains_comes_back_and_subtracts_what_is_in_the_sum(tmp_path):
    with site(tmp_path, 3) as here:
        here.order("hold-2-2")
        here.order("hold-server-2")
        with here.running(**{"num-rounds": 4}) as failures:
            here.await_note("holding-2-2")
            here.deployment.kill_node(2)
            here.await_note("server-2")
            here.deployment.restart_node(2)
            here.countermand("hold-2-2")
            here.countermand("hold-server-2")
        assert not failures, failures
        everyone = {"0": "ok", "1": "ok", "2": "ok"}
        assert here.statuses()[1] == here.statuses()[3] == here.statuses()[4] == everyone
        assert here.statuses()[2] == {"0": "ok", "1": "ok", "2": "failed"}
        assert "Node Unavailable" in here.reasons("2")[2]
        here.assert_every_client_felt_exactly_the_others()


def test_a_killed_server_and_a_round_without_nodes_are_survived(tmp_path):
    with site(tmp_path, 2) as here:
        # the server dies between two rounds
        here.order("hold-server-2")
        with here.running(**{"num-rounds": 5}) as failures:
            os.kill(int(here.await_note("server-2")), signal.SIGKILL)
        assert failures and "the run has failed" in str(failures[0])
        # both nodes die in round 4, of the run that goes on
        for node in (0, 1):
            here.order(f"hold-4-{node}")
        with here.running(**{"num-rounds": 5, "resume": True}) as failures:
            for node in (0, 1):
                here.await_note(f"holding-4-{node}")
            for node in (0, 1):
                here.deployment.kill_node(node)
        assert re.search("round 4: (all 2 clients failed|no client replied)", str(failures[0]))
        for node in (0, 1):
            here.deployment.restart_node(node)
        here.run(**{"num-rounds": 5, "resume": True})
        assert here.statuses()[5] == {"0": "ok", "1": "ok"}
        here.assert_every_client_felt_exactly_the_others()
        survived = torch.load(here.notes / "model.pt", weights_only=True)
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    run_config = {"notes": str(undisturbed), "num-nodes": 2, "num-rounds": 5, "features": 6}
    run_local(
        server_app, client_app, 2, run_config={**run_config, "timeout": 60.0, "resume": False}
    )
    for name, expected in torch.load(undisturbed / "model.pt", weights_only=True).items():
        torch.testing.assert_close(survived[name], expected)


def test_what_a_node_must_not_send_is_refused_by_name_and_the_run_goes_on(tmp_path):
    """From round 2 on, a second node says that it is client 1."""
    reasons = {
        "NaN": "NaN or inf in bias",
        "a huge array": r"'bias' has shape \(5,\).*\(5000000,\)",
        "an enormous precision": r"'bias' is .*above 1e\+06",
        "somebody else's stamp": "those that answer another",
        "a pickle": "array 'bias' cannot be read",
        "an exception": "FileNotFoundError in client 1; the device's own log has the text",
    }
    assert reasons.keys() == SPOILS.keys()
    with site(tmp_path, 2, node_configs=["", "", "client-id=1"]) as here:
        for server_round, how in enumerate(reasons, start=2):
            here.order(f"spoil-{server_round}-1", how)
        here.order("hold-server-1")
        with here.running(**{"num-rounds": len(reasons) + 2}) as failures:
            here.await_note("server-1")
            here.deployment.register("node-2")
            here.deployment.restart_node(2)
            here.countermand("hold-server-1")
        assert not failures, failures
        statuses = here.statuses()
        assert {s["0"] for r, s in statuses.items() if r} == {"ok"}
        for server_round, (how, reason) in enumerate(reasons.items(), start=2):
            assert statuses[server_round]["1"] == ("failed" if how == "an exception" else "refused")
            assert re.search(reason, here.reasons("1")[server_round])
        assert statuses[1]["1"] == statuses[len(reasons) + 2]["1"] == "ok"
        here.assert_every_client_felt_exactly_the_others()
        assert not list(here.notes.glob("sent-*-2.npy")), "the namesake takes no part"
        rounds = (here.notes / "rounds.jsonl").read_text()
        refusal = "several nodes say that they are client 1, here"
        assert rounds.count(refusal) == len(reasons) + 1
        own_log, *others = sorted(
            ((SECRET in f.read_text(), f.name) for f in here.deployment.folder.glob("*.log")),
            reverse=True,
        )
        assert own_log[0] and "supernode" in own_log[1]
        assert not any(found for found, _ in others) and len(others) == 4
        assert SECRET not in rounds


def test_a_large_models_state_survives_rounds_and_the_restart_of_a_node(tmp_path):
    """25 million parameters: 200 MB of state, more than Flower's own keeps."""
    with site(tmp_path, 2) as here:
        here.order("hold-server-2")
        with here.running(**{"num-rounds": 3, "features": 5000}) as failures:
            here.await_note("server-2")
            here.deployment.kill_node(0)
            here.deployment.restart_node(0)
            here.countermand("hold-server-2")
        assert not failures, failures
        assert here.statuses()[3] == {"0": "ok", "1": "ok"}
        here.assert_every_client_felt_exactly_the_others()
        states = list((here.notes / "disk-0").rglob("*.npz"))
        assert len(states) == 2  # of the last round, and of the round in the server's checkpoint
        assert all(state.stat().st_size > 190e6 for state in states)
