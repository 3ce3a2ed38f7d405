"""A Ray cluster of two machines, which are two ``ray start`` on this one's loopback."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from fedcurv.simulations.console.programs import end_all
from fedcurv.simulations.deployment.superlink import free_port
from tests.simulations.test_run import SMALL, accuracies, rows_of, run

# `ray start`, which would take the loopback's address for this machine's in a network
RAY = """
from ray._private import services
services.resolve_ip_for_localhost = lambda host: host
services.get_node_ip_address = lambda address=None: "127.0.0.1"
from ray.scripts.scripts import main
main()
"""
# of each a CPU, and ports that nobody else has
OPTIONS = ["--num-cpus=1", "--object-store-memory=100000000", "--node-ip-address=127.0.0.1"]
OPTIONS += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
OPTIONS += ["--disable-usage-stats", "--block"]


@pytest.fixture
def cluster(tmp_path):
    """Return the address of a cluster of two nodes; nothing of it is left afterwards."""
    address = f"127.0.0.1:{free_port()}"
    started = []
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray") as short:  # for names of sockets
        head = ["--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"]
        roles = ([*head, f"--temp-dir={short}"], [f"--address={address}"])
        try:
            for number, role in enumerate(roles):
                output = tmp_path / f"node-{number}.txt"
                with output.open("w") as file:
                    node = subprocess.Popen(
                        [sys.executable, "-c", RAY, "start", *role, *OPTIONS],
                        cwd=short,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                started.append(node)
                deadline = time.monotonic() + 120
                while "Ray runtime started" not in output.read_text():
                    told = output.read_text()
                    assert node.poll() is None and time.monotonic() < deadline, told
                    time.sleep(0.1)
            yield address
        finally:
            end_all(started, patience_s=20.0)


@pytest.mark.slow
def test_a_cluster_writes_the_same_accuracies_as_this_process(cluster, tmp_path, monkeypatch):
    generator = np.random.default_rng(1)
    inputs, targets = generator.normal(size=(80, 6)), np.arange(80) % 4
    arrays = {"train_inputs": inputs, "train_targets": targets}
    monkeypatch.chdir(tmp_path)
    # the nodes were started elsewhere
    np.savez("own.npz", **arrays, test_inputs=inputs, test_targets=targets)
    choices = ["data=arrays", "data.file=own.npz", "strategy=fedcurv", "fraction_train=0.67"]
    run(tmp_path / "local", *choices)
    command = [sys.executable, "-m", "fedcurv.simulations", *SMALL, *choices, "runner=ray"]
    command += [f"+runner.init_args.address={cluster}", f"hydra.run.dir={tmp_path / 'ray'}"]
    # the loopback again
    stay = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run(
        command, env={**os.environ, **stay}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert accuracies(tmp_path / "local") == accuracies(tmp_path / "ray")
    for column in ("client", "train_loss", "penalty"):
        one, other = (
            [row[column] for row in rows_of(Path(runner) / "clients.csv")]
            for runner in ("local", "ray")
        )
        assert one == other
