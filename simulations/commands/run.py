"""``fedcurv-run``: `flwr run` on this project's app, with a code at the end if it has failed."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from fedcurv.simulations.console.interruption import interruptible
from fedcurv.simulations.console.programs import with_programs
from fedcurv.simulations.deployment.flower_run import APP, RunFailed, run_app, run_config_of


def argument_parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = argparse.ArgumentParser(
        prog="fedcurv-run",
        description="Run FedCurv on the SuperNodes of a SuperLink, and end with a code other than "
        "0 if the run has failed.",
    )
    parser.add_argument("superlink", help="a connection's name in Flower's config.toml")
    parser.add_argument(
        "--output", default="", help="absolute folder on the server for what comes of the run"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on after the checkpoint in that folder"
    )
    parser.add_argument(
        "--checkpoint-every", type=int, default=1, metavar="K", help="rounds (default: 1)"
    )
    parser.add_argument(
        "overrides", nargs="*", help="as for fedcurv-simulate, such as num_clients=8 model=cnn"
    )
    return parser


def main() -> None:
    """Run the command line."""
    parser = argument_parser()
    options = parser.parse_intermixed_args()  # overrides may stand on both sides of options
    if options.output and not Path(options.output).is_absolute():
        parser.error(f"--output must be an absolute folder on the server, got {options.output}")
    if options.checkpoint_every < 1:
        parser.error(f"--checkpoint-every must be >= 1, got {options.checkpoint_every}")
    settings = run_config_of(
        shlex.join(["strategy=[fedcurv]", *options.overrides]),
        options.output,
        resume=options.resume,
        checkpoint_every=options.checkpoint_every,
    )
    environment = with_programs({"FLWR_DISABLE_UPDATE_CHECK": "1", **os.environ})
    going_on = f"a run that had started goes on: `flwr list {options.superlink}` names it"
    try:
        with interruptible("fedcurv-run", f"{going_on}, `flwr stop` ends it", patience_s=None):
            run_app(APP, options.superlink, settings, environment=environment, echo=print)
    except RunFailed as error:
        sys.exit(f"fedcurv-run: {error}")


if __name__ == "__main__":
    main()
