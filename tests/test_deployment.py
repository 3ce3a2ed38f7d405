"""SuperLink and SuperNodes on loopback: processes, as on real devices."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedcurv.clients.site import SitePool
from fedcurv.simulations.deployment import Deployment, DeploymentFailed
from fedcurv.simulations.keys import write_certificates, write_node_key

COMMAND = Path(sys.executable).with_name("fedcurv-site")


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return list(csv.DictReader(lines))


def fedcurv_site(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(COMMAND), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_fedcurv_on_real_nodes_whose_sites_train_by_lasgd(tmp_path):
    """Each message is a new process; the sites' workers stay."""
    overrides = (
        "strategy=[fedcurv] num_clients=2 num_rounds=3 client.epochs=2 "
        "client.trainer=lasgd client.workers=2"
    )
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    report = tmp_path / "report"
    environment = {"TMPDIR": str(temporary)}
    with Deployment(tmp_path / "site", 2, secure=False, environment=environment) as deployment:
        deployment.run(overrides, report)
    for folder in temporary.glob("fedcurv-*"):
        SitePool(folder, ["cpu", "cpu"]).close()
    clients = rows_of(report / "clients.csv")
    assert [row["status"] for row in clients] == ["ok"] * 6, clients
    assert sum(int(row["num_examples"]) for row in clients[:2]) == 1437
    assert all(float(row["penalty"]) > 0 for row in clients[2:])
    assert float(rows_of(report / "metrics.csv")[-1]["accuracy"]) > 0.7


@pytest.mark.slow
def test_the_command_runs_a_secure_federation_and_shows_the_result(tmp_path):
    done = fedcurv_site("--folder", str(tmp_path / "site"), "num_rounds=2", "client.epochs=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"fedcurv +\d\d\.\d\d +\d\d\.\d\d", done.stdout)
    rows = rows_of(tmp_path / "site" / "report" / "metrics.csv")
    assert [row["clients_ok"] for row in rows] == ["0", "2", "2"]
    assert (tmp_path / "site" / "node-0").stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_the_command_ends_with_a_code_where_flowers_own_does_not(tmp_path):
    done = fedcurv_site("--insecure", "--folder", str(tmp_path / "site"), "client.lr=-1")
    assert done.returncode == 1
    assert "fedcurv-site: the run has failed" in done.stderr
    assert "lr must be > 0" in done.stderr


@pytest.mark.slow
def test_a_node_whose_key_is_not_registered_is_refused(tmp_path):
    with Deployment(tmp_path, 1) as deployment:
        write_node_key(tmp_path, "node-7")
        stranger = deployment.start_node(7)
        assert stranger.wait(120) != 0
        assert "failed to activate supernode" in deployment.logs().lower()


@pytest.mark.slow
def test_a_node_does_not_trust_another_certificate(tmp_path):
    with Deployment(tmp_path / "site", 0) as deployment:
        other = tmp_path / "other"
        other.mkdir()
        write_certificates(other)
        deployment.register("node-0")
        (other / "ca.crt").replace(tmp_path / "site" / "ca.crt")
        node = deployment.start_node(0)
        assert node.wait(120) != 0
        assert "certificate" in deployment.logs().lower()


def test_a_folder_that_is_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine").touch()
    done = fedcurv_site("--folder", str(tmp_path))
    assert done.returncode == 2
    assert "--folder must be empty or missing" in done.stderr


def test_a_superlink_that_does_not_start_is_told(tmp_path):
    deployment = Deployment(tmp_path / "site", 1, environment={"PATH": str(tmp_path)})
    program = tmp_path / "flower-superlink"
    program.write_text("#!/bin/sh\necho no such luck\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(DeploymentFailed, match=r"(?s)the SuperLink did not start.*no such luck"):
        deployment.__enter__()
