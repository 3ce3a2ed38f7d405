"""A SuperLink and its SuperNodes on this machine's loopback, as processes of their own."""

import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from fedcurv.private_files import open_private, private_folder
from fedcurv.simulations.console.programs import end_all, found_program, with_programs
from fedcurv.simulations.deployment.flower_run import (
    APP,
    PRIVATE,
    ask_flwr,
    run_app,
    run_config_of,
)
from fedcurv.simulations.deployment.keys import write_certificates, write_node_key

_START_S = 60.0
_END_S = 5.0  # for all processes together; what is left then is killed
_CONNECTION = "here"
# in a SuperNode's log, once the SuperLink has let it in
_ACCEPTED = "SuperNode ID"


class DeploymentFailed(RuntimeError):
    """A process of the deployment has failed."""


class Deployment:
    """Starts a SuperLink and SuperNodes, ends them with the block.

    Args:
        folder: for keys, logs, Flower's own files; empty or missing.
        num_nodes: SuperNodes, with the node configuration ``partition-id`` and ``num-partitions``.
        node_configs: what else is in each node's configuration, as ``flower-supernode`` takes it.
        secure: TLS, and nodes that are registered by their keys.
        environment: variables beside those of this process.

    Raises:
        DeploymentFailed: if a process does not start.
    """

    def __init__(
        self,
        folder: Path,
        num_nodes: int,
        *,
        node_configs: Sequence[str] = (),
        secure: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.num_nodes, self.secure = folder, num_nodes, secure
        self._node_configs = dict(enumerate(node_configs))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}
        self._started = 0
        self._port = free_port()
        self._environment = {
            **with_programs(os.environ),
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            **(environment or {}),
        }

    def __enter__(self) -> Self:
        """Start all processes."""
        try:
            self._start_all()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End them."""
        self.close()

    def _start_all(self) -> None:
        flower = self.folder / "flwr"
        private_folder(self.folder)
        flower.mkdir(mode=0o700)
        security = "insecure = true"
        if self.secure:
            write_certificates(self.folder)
            security = f'root-certificates = "{(self.folder / "ca.crt").absolute()}"'
        text = (
            f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\n'
            f'address = "127.0.0.1:{self._port}"\n{security}\n'
        )
        with open_private(flower / "config.toml", "wb") as file:
            file.write(text.encode())
        self._start(
            "flower-superlink",
            *("--host", "127.0.0.1", "--port", str(self._port)),
            "--disable-runtime-dependency-installation",
            *("--database", str(self.folder / "superlink.db")),
            *self._security_of_superlink(),
        )
        self._wait_for_port()
        for node in range(self.num_nodes):
            if self.secure:
                self.register(f"node-{node}")
            self.start_node(node)

    def _security_of_superlink(self) -> list[str]:
        if not self.secure:
            return ["--insecure"]
        files = {"ca-certfile": "ca.crt", "certfile": "server.pem", "keyfile": "server.key"}
        named = [(f"--ssl-{name}", str(self.folder / file)) for name, file in files.items()]
        return ["--enable-supernode-auth", *(part for pair in named for part in pair)]

    def register(self, name: str) -> None:
        """Make a node's key and register it.

        Raises:
            DeploymentFailed: if the SuperLink refuses.
        """
        write_node_key(self.folder, name)
        key = str(self.folder / f"{name}.pub")
        done = ask_flwr(
            *("supernode", "register", key, _CONNECTION, "--name", name),
            environment=self._environment,
        )
        if done.returncode:
            raise DeploymentFailed(f"{name} was not registered: {done.stdout[-1000:]}")

    def start_node(self, node: int) -> "subprocess.Popen[bytes]":
        """Start a SuperNode."""
        security = ["--insecure"]
        if self.secure:
            security = ["--root-certificates", str(self.folder / "ca.crt")]
            security += ["--auth-supernode-private-key", str(self.folder / f"node-{node}")]
        config = f"partition-id={node} num-partitions={self.num_nodes}"
        self._nodes[node] = self._start(
            "flower-supernode",
            *("--superlink", f"127.0.0.1:{self._port}"),
            *("--host", "127.0.0.1", "--port", str(free_port())),
            *("--node-config", f"{config} {self._node_configs.get(node, '')}".strip()),
            *security,
        )
        return self._nodes[node]

    def restart_node(self, node: int, *, timeout_s: float = 150.0) -> None:
        """Start a SuperNode after :meth:`kill_node`, again and again until it is accepted.

        A SuperLink refuses a key whose node it takes to be connected, for up to a minute after the
        node has died; so whatever supervises SuperNodes on real devices must not give up either.

        Raises:
            DeploymentFailed: if it is not accepted in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            process = self.start_node(node)
            log = self.folder / f"flower-supernode-{self._started}.log"
            while process.poll() is None and time.monotonic() < deadline:
                if _ACCEPTED in log.read_text():
                    return
                time.sleep(0.2)
            self.kill_node(node)
            time.sleep(1.0)
        raise DeploymentFailed(f"node {node} was not accepted again\n{self.logs()}")

    def kill_node(self, node: int) -> None:
        """Kill a SuperNode and all that it has started, as when a device loses its power."""
        process = self._nodes.pop(node)
        end_all([process])
        self._processes.remove(process)

    def run(
        self,
        overrides: str,
        output: Path,
        *,
        resume: bool = False,
        timeout_s: float = 600.0,
    ) -> None:
        """Run the app to its end.

        Args:
            overrides: as on ``fedcurv-simulate``'s command line.
            output: folder for what comes of it.
            resume: go on after the checkpoint in that folder.
            timeout_s: after which the run counts as failed.

        Raises:
            RunFailed: if the run has failed; its log is run.log in the folder.
        """
        settings = run_config_of(
            overrides, str(output.absolute()), resume=resume, checkpoint_every=1
        )
        self.run_app(APP, settings, timeout_s=timeout_s)

    def run_app(self, app: Path, run_config: str, *, timeout_s: float = 600.0) -> None:
        """Run any Flower app to its end.

        Args:
            app: its folder.
            run_config: as ``flwr run`` takes it.
            timeout_s: after which the run counts as failed.

        Raises:
            RunFailed: if the run has failed; its log is run.log in the folder.
        """
        with open_private(self.folder / "run.log", "ab") as log:
            run_app(
                app,
                _CONNECTION,
                run_config,
                environment=self._environment,
                timeout_s=timeout_s,
                echo=lambda line: log.write(f"{line}\n".encode()),
            )

    def logs(self) -> str:
        """Return the ends of all processes' logs."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{file.name}:\n{file.read_text()[-2000:]}" for file in files)

    def close(self) -> None:
        """End all processes, within one limit for all of them."""
        try:
            end_all(self._processes, patience_s=_END_S)
        finally:
            self._processes.clear()

    def _start(self, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        self._started += 1
        with open_private(self.folder / f"{program}-{self._started}.log", "wb") as log:
            process = subprocess.Popen(
                [found_program(program, self._environment), *arguments],
                env=self._environment,
                stdout=log,
                stderr=log,
                umask=PRIVATE,
                start_new_session=True,  # a group of its own, that can be killed whole
            )
        self._processes.append(process)
        return process

    def _wait_for_port(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), 1).close()
                return
            except OSError as error:
                ended = self._processes[0].poll() is not None
                if ended or time.monotonic() > deadline:
                    raise DeploymentFailed(f"the SuperLink did not start\n{self.logs()}") from error
                time.sleep(0.2)


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
