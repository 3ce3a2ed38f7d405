"""SuperLink and SuperNodes on loopback: processes, as on real devices."""

import csv
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedcurv.clients.site import SitePool

APP = Path(__file__).parents[1] / "simulations" / "app"
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Deployment:
    """A SuperLink and its SuperNodes, ended with the block."""

    def __init__(self, folder: Path, num_nodes: int) -> None:
        self.folder, self.processes = folder, []
        self.address = f"127.0.0.1:{free_port()}"
        self.environment = {
            **os.environ,
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "TMPDIR": str(folder / "temporary"),
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        for name in ("flwr", "temporary"):
            (folder / name).mkdir()
        (folder / "flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{self.address}"\n'
            "insecure = true\n"
        )
        port = self.address.rpartition(":")[2]
        self.start(
            "flower-superlink",
            "--insecure",
            *("--host", "127.0.0.1", "--port", port),
            "--disable-runtime-dependency-installation",
            *("--database", str(folder / "superlink.db")),
        )
        self.wait_for_port()
        for node in range(num_nodes):
            self.start(
                "flower-supernode",
                "--insecure",
                *("--superlink", self.address),
                *("--host", "127.0.0.1", "--port", str(free_port())),
                *("--node-config", f"partition-id={node} num-partitions={num_nodes}"),
            )

    def start(self, program: str, *arguments: str) -> None:
        log = (self.folder / f"{program}-{len(self.processes)}.log").open("w")
        command = [str(BIN / program), *arguments]
        self.processes.append(
            subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        )

    def wait_for_port(self) -> None:
        host, _, port = self.address.rpartition(":")
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection((host, int(port)), 1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, self.logs()
                time.sleep(0.2)

    def run(self, overrides: str, output: Path) -> str:
        result = subprocess.run(
            [
                *(str(BIN / "flwr"), "run", str(APP), "here", "--stream"),
                *("--run-config", f'overrides="{overrides}" output="{output}"'),
            ],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return result.stdout + result.stderr

    def logs(self) -> str:
        return "\n".join(p.read_text()[-3000:] for p in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def deployment(tmp_path):
    running = Deployment(tmp_path, 2)
    yield running
    running.close()


@pytest.mark.slow
def test_fedcurv_on_real_nodes_whose_sites_train_by_lasgd(deployment, tmp_path):
    """Each message is a new process; the sites' workers stay."""
    overrides = (
        "strategy=[fedcurv] num_clients=2 num_rounds=3 client.epochs=2 "
        "client.trainer=lasgd client.workers=2"
    )
    printed = deployment.run(overrides, tmp_path / "report")
    for folder in (tmp_path / "temporary").glob("fedcurv-*"):
        SitePool(folder, ["cpu", "cpu"]).close()
    assert (tmp_path / "report" / "clients.csv").exists(), printed + deployment.logs()
    with (tmp_path / "report" / "clients.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["ok"] * 6, rows
    assert sum(int(row["num_examples"]) for row in rows[:2]) == 1437
    assert all(float(row["penalty"]) > 0 for row in rows[2:])
    with (tmp_path / "report" / "metrics.csv").open() as file:
        accuracies = [float(row["accuracy"]) for row in csv.DictReader(file)]
    assert accuracies[-1] > 0.7
