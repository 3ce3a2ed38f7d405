"""SuperLink and SuperNodes on loopback: processes, as on real devices."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cryptography import x509
from PIL import Image
from sklearn.datasets import load_digits

from fedcurv.clients.site.pool import SitePool
from fedcurv.simulations.console.programs import with_programs
from fedcurv.simulations.deployment import superlink as deployment_module
from fedcurv.simulations.deployment.flower_run import reason_in
from fedcurv.simulations.deployment.keys import write_certificates, write_node_key
from fedcurv.simulations.deployment.superlink import Deployment, DeploymentFailed, free_port
from fedcurv.strategies import JsonLines
from tests.processes import is_alive
from tests.simulations.test_run import rows_of

COMMAND = Path(sys.executable).with_name("fedcurv-trial")


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
def test_secure_sums_on_real_nodes_that_know_each_other_by_their_keys(tmp_path):
    """Each stage is a new process, which finds the round's secrets where the last one left them."""
    site, report = tmp_path / "site", tmp_path / "report"
    said = [
        f"client-id='node-{node}' secure-sums=true secure-key='{site / f'node-{node}'}' "
        f"secure-trusted='{site}'"
        for node in range(3)
    ]
    overrides = (
        "strategy=[secure_fedcurv] num_clients=3 num_rounds=2 client.epochs=1 "
        "client.penalty_mode=proximal strategy.secure_fedcurv.stage_timeout=120"
    )
    with Deployment(site, 3, node_configs=said) as deployment:
        deployment.run(overrides, report, timeout_s=500)
    clients = rows_of(report / "clients.csv")
    assert [row["client"] for row in clients] == ["node-0", "node-1", "node-2"] * 2, clients
    assert {row["status"] for row in clients} == {"ok"}, clients
    assert float(rows_of(report / "metrics.csv")[-1]["accuracy"]) > 0.3


@pytest.mark.slow
def test_the_command_runs_a_secure_federation_and_shows_the_result(tmp_path):
    done = fedcurv_site("--folder", str(tmp_path / "site"), "num_rounds=2", "client.epochs=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"fedcurv +\d\d\.\d\d +\d\d\.\d\d", done.stdout)
    rows = rows_of(tmp_path / "site" / "report" / "metrics.csv")
    assert [row["clients_ok"] for row in rows] == ["0", "2", "2"]
    assert opened_to_others(tmp_path / "site") <= PUBLIC


PUBLIC = {"ca.crt", "server.pem", "node-0.pub", "node-1.pub"}


def opened_to_others(folder: Path) -> set[str]:
    """Return the names of all files and folders that others than the owner may read."""
    return {f.name for f in folder.rglob("*") if f.lstat().st_mode & 0o077 and not f.is_symlink()}


@pytest.mark.slow
def test_the_command_ends_with_a_code_where_flowers_own_does_not(tmp_path):
    data = ["data=device", "data.shape=[1,8,8]", "data.classes=[0,1]", "fraction_evaluate=1"]
    nowhere = ["--node-config", "data-folder='/nowhere'"]
    done = fedcurv_site("--insecure", "--folder", str(tmp_path / "site"), *nowhere, *nowhere, *data)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("fedcurv-trial: ") and "FileNotFoundError in client" in line
    assert "(the run has failed: finished:failed)" in line
    log = (tmp_path / "site" / "run.log").stat()
    assert log.st_mode & 0o077 == 0


def write_pictures(folder: Path, classes: range) -> None:
    """Write the real scans of some digits, every fifth for testing."""
    digits = load_digits()
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if label in classes:
            part = folder / ("train" if index % 5 else "test") / str(label)
            part.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 15).astype("uint8")).save(part / f"{index}.png")


@pytest.mark.slow
def test_the_commands_of_the_page_run_as_they_stand(tmp_path):
    """Keys, SuperLink, two devices with their own pictures, a run, and its resumption."""
    page = (Path(__file__).parents[1] / "docs" / "deployment.md").read_text(encoding="utf-8")
    script = "".join(re.findall(r"```bash\n(.*?)```", page, re.DOTALL))
    for port in ("18443", "19094", "19095"):
        assert port in script
        script = script.replace(port, str(free_port()))
    write_pictures(tmp_path / "data" / "kitchen", range(5))
    write_pictures(tmp_path / "data" / "cellar", range(5, 10))
    with subprocess.Popen(
        ["bash", "-e", "-c", script],
        cwd=tmp_path,
        env=with_programs({**os.environ, "FLWR_TELEMETRY_ENABLED": "0"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            # the processes behind keep the pipe open: what the shell printed is read to its end
            code = shell.wait(520)
        finally:
            os.killpg(shell.pid, signal.SIGTERM)
        printed = shell.communicate(timeout=60)[0]
    assert code == 0, printed
    results = tmp_path / "results"
    rounds = JsonLines.read(results / "rounds.jsonl")
    assert [r.server_round for r in rounds] == [0, 1, 2, 3]
    assert [[c.client_id for c in r.clients] for r in rounds[1:]] == [["cellar", "kitchen"]] * 3
    assert all(c.metrics["penalty"] > 0 for r in rounds[2:] for c in r.clients)
    assert float(str(rounds[3].client_metrics["accuracy"])) > 0.7
    # the report of the run that went on has the rounds of the first too
    assert [row["round"] for row in rows_of(results / "metrics.csv")] == ["0", "1", "2", "3"]
    assert torch.load(results / "best.pt", weights_only=True)
    page = results / "report.html"
    assert "round 3 of 3" in page.read_text() and page.stat().st_mode & 0o077 == 0


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


def test_the_reason_begins_with_the_last_exception_of_the_log():
    log = [
        "a: ValueError: not at the beginning",
        "KeyError: 'first'",
        "The above exception was the direct cause",
        "fedcurv.strategies.replies.check.RoundFailed: round 1: all failed; the first said:",
        "Traceback",
        "  OSError: lost",
        "\x1b[91mERROR [0m:     Exit Code: 201",
    ]
    assert reason_in(log) == "OSError: lost (RoundFailed: round 1: all failed)"
    at_the_margin = [line.strip(" ") for line in log]
    assert reason_in(at_the_margin) == "OSError: lost (RoundFailed: round 1: all failed)"
    assert reason_in(["Traceback", "AssertionError", "\x1b[91mERROR"]) == "AssertionError"
    assert reason_in([*log[:2], "\x1b[92mINFO: later"]) == "KeyError: 'first'"
    assert reason_in(["╭─ Error ─╮", "│ no such │", "╰─────────╯"]) == "Error no such"


def test_a_connection_that_is_not_configured_is_told_in_one_line(tmp_path):
    done = subprocess.run(
        [str(COMMAND.with_name("fedcurv-run")), "nowhere"],
        env={**os.environ, "FLWR_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.search(r"fedcurv-run: .*'nowhere' not found.*\(the run did not start\)$", line)


def test_an_output_folder_must_be_absolute():
    """The server's process has a working directory of its own."""
    done = subprocess.run(
        [str(COMMAND.with_name("fedcurv-run")), "home", "--output", "results"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "--output must be an absolute folder on the server, got results" in done.stderr


def test_there_is_a_configuration_for_every_node():
    done = fedcurv_site("--node-config", "data-folder='/a'")
    assert done.returncode == 2
    assert "--node-config: expected one for each of 2 nodes, got 1" in done.stderr


def test_certificates_name_the_servers_hosts(tmp_path):
    command = [sys.executable, "-m", "fedcurv.simulations.deployment.keys", str(tmp_path / "keys")]
    options = ["--host", "fl.example.org", "--host", "10.0.0.7", "--node", "a", "--days", "3"]
    assert subprocess.run([*command, *options], timeout=120, check=False).returncode == 0
    server = x509.load_pem_x509_certificate((tmp_path / "keys" / "server.pem").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]
    assert (server.not_valid_after_utc - server.not_valid_before_utc).days == 3
    files = sorted(f.name for f in (tmp_path / "keys").iterdir())
    assert files == ["a", "a.pub", "ca.crt", "server.key", "server.pem"]
    assert subprocess.run([*command, *options], timeout=120, check=False).returncode == 2


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


def stubborn_program(folder: Path, name: str) -> None:
    """Write a program that does not end by itself, nor does its child in a session of its own."""
    program = folder / name
    program.write_text(
        f"#!/bin/sh\ntrap '' TERM INT\nsetsid sleep 300 &\necho $$ $! > '{folder}/pids.part'\n"
        f"mv '{folder}/pids.part' '{folder}/pids'\nwait\n"
    )
    program.chmod(0o755)


PROGRAMS = {
    "fedcurv-run": ("run", "flwr", ["home"], "a run that had started goes on"),
    "fedcurv-trial": ("trial", "flower-superlink", ["--insecure"], "its processes have ended too"),
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_signal_ends_a_command_and_what_it_has_started_in_one_line(program, number, tmp_path):
    module, flowers, arguments, afterwards = PROGRAMS[program]
    stubborn_program(tmp_path, flowers)
    code = (
        f"import sys; from fedcurv.simulations.commands.{module} import main; "
        f"sys.executable = {str(tmp_path / 'python')!r}; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        try:
            wait_for(tmp_path / "pids")
            command.send_signal(number)
            # ten seconds at most are promised; a machine under load gets some more
            command.wait(20)
        finally:
            command.kill()
        (line,) = command.stderr.read().splitlines()
    assert line.startswith(f"{program}: ended by {number.name}; {afterwards}")
    assert command.returncode == 128 + number
    for pid in (tmp_path / "pids").read_text().split():
        assert not is_alive(int(pid))


def wait_for(file: Path, timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not file.exists():
        assert time.monotonic() < deadline, f"no {file}"
        time.sleep(0.05)


def test_all_processes_share_one_limit_at_the_end(tmp_path):
    stubborn_program(tmp_path, "stubborn")
    deployment = Deployment(tmp_path, 0, environment={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    for _ in range(8):
        deployment._start("stubborn")
    wait_for(tmp_path / "pids")
    begin = time.monotonic()
    deployment.close()
    assert time.monotonic() - begin < 3 * deployment_module._END_S  # and not 8 times


def test_what_a_deployment_writes_is_its_owners_alone(tmp_path):
    site = tmp_path / "site"
    site.mkdir(mode=0o755)
    log = site / "flower-superlink-1.log"
    log.touch(mode=0o644)
    program = tmp_path / "flower-superlink"
    program.write_text(
        '#!/bin/sh\nmkdir "$FLWR_HOME/apps"\ntouch "$FLWR_HOME/apps/x" "$7"\nexit 1\n'
    )
    program.chmod(0o755)
    before = os.umask(0o022)
    try:
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        with pytest.raises(DeploymentFailed):
            Deployment(site, 1, environment=environment).__enter__()
        write_node_key(site, "node-0")
    finally:
        os.umask(before)
    assert {"superlink.db", "apps", "x"} <= {f.name for f in site.rglob("*")}
    assert opened_to_others(site) == PUBLIC - {"node-1.pub"}


def test_a_key_takes_no_older_files_mode(tmp_path):
    (tmp_path / "server.key").touch(mode=0o644)
    (tmp_path / "node").touch(mode=0o644)
    write_certificates(tmp_path)
    write_node_key(tmp_path, "node")
    for name in ("server.key", "node"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
