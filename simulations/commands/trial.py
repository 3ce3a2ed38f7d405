"""``fedcurv-trial``: a whole federation of real processes on this machine, for a trial."""

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from fedcurv.private_files import private_folder
from fedcurv.simulations.commands.frame import (
    CONFIGURATION_ERRORS,
    explain,
    find_own_functions,
    set_up_flower_log,
)
from fedcurv.simulations.configuration import composed, only_strategy, resolve
from fedcurv.simulations.console.interruption import interruptible
from fedcurv.simulations.deployment.flower_run import RunFailed
from fedcurv.simulations.deployment.superlink import Deployment, DeploymentFailed
from fedcurv.simulations.federation.run import said_to_clients
from fedcurv.simulations.parts.strategies import make_strategy

PROGRAM = "fedcurv-trial"
DEFAULTS = ("strategy=[fedcurv]", "num_rounds=5")

console = Console(markup=False)  # folders may have brackets


def argument_parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Start a SuperLink and SuperNodes on loopback, with certificates and node keys "
        "made for them, run FedCurv on them, and show the result.",
    )
    parser.add_argument("--nodes", type=int, default=2, help="SuperNodes (default: 2)")
    parser.add_argument(
        "--node-config",
        action="append",
        default=[],
        metavar="TEXT",
        help="a node's configuration, such as \"data-folder='/my/pictures'\"; once for each node",
    )
    parser.add_argument("--insecure", action="store_true", help="no TLS and no node keys")
    parser.add_argument("--folder", type=Path, help="keys, logs and report; by default a new one")
    parser.add_argument(
        "overrides", nargs="*", help="as for fedcurv-simulate, such as num_rounds=10 model=cnn"
    )
    return parser


def environment_of(overrides: Sequence[str], num_nodes: int) -> dict[str, str]:
    """Return what tells the federation's processes of the user's own functions, files and data.

    Raises:
        Exception: one of ``CONFIGURATION_ERRORS``, if the configuration cannot work.
    """
    find_own_functions()
    config = composed(overrides)
    resolved = resolve(config)
    if resolved["num_clients"] != num_nodes:
        raise ValueError(
            f"num_clients must be the number of nodes, {num_nodes}, got {resolved['num_clients']}; "
            "use --nodes"
        )
    _, node = only_strategy(config)
    set_up_flower_log(verbose=resolved["verbose"])
    make_strategy(node, resolved)
    path = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    return {**said_to_clients(resolved), "PYTHONPATH": path}


def main() -> None:
    """Run the command line; end with a line and a code other than 0 if the run has failed."""
    parser = argument_parser()
    options = parser.parse_intermixed_args()  # overrides may stand on both sides of options
    if options.nodes < 1:
        parser.error(f"--nodes must be >= 1, got {options.nodes}")
    if len(options.node_config) not in (0, options.nodes):
        parser.error(
            f"--node-config: expected one for each of {options.nodes} nodes, got "
            f"{len(options.node_config)}"
        )
    overrides = [*DEFAULTS, f"num_clients={options.nodes}", *options.overrides]
    try:
        environment = environment_of(overrides, options.nodes)
    except CONFIGURATION_ERRORS as error:
        sys.exit(f"{PROGRAM}: {explain(error)}")
    folder: Path = options.folder or Path(tempfile.mkdtemp(prefix="fedcurv-trial-"))
    try:
        if folder.exists() and any(folder.iterdir()):
            parser.error(f"--folder must be empty or missing, got {folder}")
        private_folder(folder)
    except OSError as error:
        parser.error(f"--folder must be one that can be written, got {folder}: {error.strerror}")
    try:
        with (
            interruptible(
                PROGRAM, f"its processes have ended too (logs: {folder})", patience_s=None
            ),
            console.status(f"starting a SuperLink and {options.nodes} SuperNodes") as status,
            Deployment(
                folder,
                options.nodes,
                node_configs=options.node_config,
                secure=not options.insecure,
                environment=environment,
            ) as deployment,
        ):
            status.update("the federation trains; each message is a process on a node")
            deployment.run(shlex.join(overrides), folder / "report")
    except (DeploymentFailed, RunFailed) as error:
        sys.exit(f"{PROGRAM}: {error} (logs: {folder})")
    console.print(Markdown((folder / "report" / "summary.md").read_text()))
    console.print(f"written to {folder / 'report'}; keys and logs in {folder}")


if __name__ == "__main__":
    main()
