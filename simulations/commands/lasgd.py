"""``fedcurv-lasgd``: LASGD in virtual time, to choose a site's settings before there is one."""

import argparse
import inspect
import itertools
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from fedcurv.errors import in_one_line
from fedcurv.lasgd import virtual
from fedcurv.lasgd.coding import Compression
from fedcurv.lasgd.outer import NONE, Kind, Outer
from fedcurv.lasgd.virtual import Lengths, Link, Plan, Problem, Site
from fedcurv.simulations.commands.frame import explain, find_own_functions
from fedcurv.simulations.own_calls import SAME, call_own
from fedcurv.simulations.reports.site_table import Row, left_out, table
from fedcurv.simulations.reports.timeline import Timeline, picture
from fedcurv.simulations.rules import require_distinct

PROGRAM = "fedcurv-lasgd"
METHODS = ("lasgd", "blocking", "synchronous")
_LENGTHS: dict[str, Callable[..., Lengths]] = {
    "equal": virtual.equal,
    "straggler": virtual.straggler,
    "rotating": virtual.rotating,
    "heavy_tailed": virtual.heavy_tailed,
    "lognormal": virtual.lognormal,
}

# of SGD on the small network
_LR, _MOMENTUM = 0.05, 0.9
# characters that all columns need
_WIDEST = 112

console = Console(markup=False)


def argument_parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Train by LASGD in virtual time: its own arithmetic, while steps and sums take "
        "as long as they are said to. Several values of an option are tried with all others.",
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[4], help="how many (4)")
    parser.add_argument(
        "--steps",
        default="straggler",
        metavar="KIND[:NAME=VALUE,...]",
        help=f"how long steps take: {', '.join(_LENGTHS)}, such as straggler:seconds=0.1,times=4; "
        "or a JSON file with a list of seconds for each worker, taken in turn for more (straggler)",
    )
    parser.add_argument("--link", type=float, default=0.0, help="seconds of an All-Reduce (0)")
    parser.add_argument(
        "--bandwidth", type=float, default=math.inf, help="bytes a second of each worker (no limit)"
    )
    parser.add_argument("--sync-every", type=int, nargs="+", default=[32], help="as LASGD's (32)")
    parser.add_argument("--max-in-flight", type=int, default=16, help="as LASGD's (16)")
    parser.add_argument(
        "--weights", choices=("gradient", "steps", "worker"), default="gradient", help="as LASGD's"
    )
    parser.add_argument(
        "--outer", choices=("none", *get_args(Kind)), nargs="+", default=["none"], help="as LASGD's"
    )
    parser.add_argument("--outer-lr", type=float, nargs="+", default=[Outer.lr], help="of it (0.7)")
    parser.add_argument(
        "--outer-momentum", type=float, nargs="+", default=[Outer.momentum], help="of it (0.9)"
    )
    parser.add_argument("--compression", choices=get_args(Compression), help="as LASGD's (none)")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="which (all)"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of virtual time, at most (60)")
    parser.add_argument("--loss", type=float, default=0.6, help="test loss that is wanted (0.6)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--problem", metavar="MODULE:FUNCTION", help="returns a Problem; by default a small network"
    )
    parser.add_argument("--lr", type=float, nargs="+", help="of SGD on the small network (0.05)")
    parser.add_argument("--momentum", type=float, help="likewise (0.9)")
    parser.add_argument(
        "--lose", action="append", default=[], metavar="WORKER@SECONDS", help="a worker that ends"
    )
    parser.add_argument("--picture", type=Path, help="a file for the timelines, such as site.png")
    return parser


def lengths_of(text: str, workers: int) -> Lengths:
    """Return what the command line says of the steps' lengths.

    Raises:
        ValueError: for another kind or option, or a file that holds none.
    """
    kind, _, options = text.partition(":")
    if kind.endswith(".json"):
        try:
            return virtual.recorded(json.loads(Path(kind).read_text(encoding="utf-8")))
        except (OSError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"--steps {kind}: expected a JSON list of seconds for each worker "
                f"({in_one_line(error)})"
            ) from error
    if kind not in _LENGTHS:
        raise ValueError(f"--steps must be one of {', '.join(_LENGTHS)}, or a .json, got {kind!r}")
    make, known = _LENGTHS[kind], inspect.signature(_LENGTHS[kind]).parameters
    values: dict[str, Any] = {"workers": workers} if "workers" in known else {}
    pairs = [option.partition("=")[::2] for option in options.split(",") if option]
    require_distinct(f"--steps {kind}", [name for name, _ in pairs])
    for name, value in pairs:
        if name not in known:
            raise ValueError(
                f"--steps {kind} has no option {name!r}; its options are {', '.join(known)}"
            )
        try:
            values[name] = float(value)
        except ValueError:
            raise ValueError(f"--steps {kind}: {name} must be a number, got {value!r}") from None
    return make(**values)


def lost_of(words: Sequence[str]) -> dict[int, float]:
    """Return when workers end, from words such as ``3@20.5``.

    Raises:
        ValueError: for words of another form.
    """
    lost: dict[int, float] = {}
    for word in words:
        worker, _, seconds = word.partition("@")
        try:
            number, when = int(worker), float(seconds)
        except ValueError:
            raise ValueError(
                f"--lose must be WORKER@SECONDS, such as 3@20.5, got {word!r}"
            ) from None
        if number in lost:
            raise ValueError(f"--lose: expected a worker once, got {number} twice")
        lost[number] = when
    return lost


def run_all(options: argparse.Namespace) -> list[Row]:
    """Return every method with every number of workers, LASGD's with every ``sync_every``.

    Raises:
        ValueError: for options that cannot be meant.
    """
    for name in ("workers", "sync_every", "outer", "outer_lr", "outer_momentum", "methods", "lr"):
        require_distinct(f"--{name.replace('_', '-')}", getattr(options, name) or ())
    if options.problem and (options.lr or options.momentum is not None):
        raise ValueError(
            "--lr and --momentum are of the small network; with --problem they are your function's"
        )
    outers = _outers(options)
    problems = {lr: _problem(options.problem, lr, options.momentum) for lr in options.lr or [None]}
    link, lost = Link(options.link, options.bandwidth), lost_of(options.lose)
    if lost and "synchronous" in options.methods:
        raise ValueError(
            "--lose: synchronous SGD ends with its first lost worker; leave it out by "
            "--methods lasgd blocking"
        )
    rows = []
    for lr, workers, method in itertools.product(problems, options.workers, options.methods):
        problem = problems[lr]
        is_lasgd = method != "synchronous"
        for sync_every, outer in itertools.product(
            options.sync_every if is_lasgd else [None], outers if is_lasgd else [NONE]
        ):
            lengths = lengths_of(options.steps, workers)
            until = {"seconds": options.seconds, "loss": options.loss}
            if sync_every is None:
                outcome = virtual.synchronous(
                    problem, workers, lengths, link, seed=options.seed, **until
                )
            else:
                plan = Plan(
                    workers,
                    sync_every,
                    overlap=method == "lasgd",
                    weights=options.weights,
                    outer=outer,
                    compression=options.compression,
                    max_in_flight=options.max_in_flight,
                )
                site = Site(problem, plan, lengths, link, seed=options.seed, lost=lost)
                outcome = site.run(**until)
            rows.append(Row(method, workers, sync_every, lr, outer, outcome))
    return rows


def _outers(options: argparse.Namespace) -> list[Outer]:
    kinds = [None if kind == "none" else kind for kind in options.outer]
    if kinds == [None]:
        return [Outer(None, lr, momentum) for lr, momentum in _of_outer(options)]
    outers = []
    for kind in kinds:
        every = _of_outer(options) if kind else [(Outer.lr, Outer.momentum)]
        outers += [Outer(kind, lr, momentum) for lr, momentum in every]
    return outers


def _of_outer(options: argparse.Namespace) -> list[tuple[float, float]]:
    return list(itertools.product(options.outer_lr, options.outer_momentum))


def _problem(place: str | None, lr: float | None, momentum: float | None) -> Problem:
    if place is None:
        return virtual.taught(
            _LR if lr is None else lr, _MOMENTUM if momentum is None else momentum
        )
    problem = call_own("--problem", place, SAME)
    if not isinstance(problem, Problem):
        raise ValueError(
            f"--problem {place}: expected a fedcurv.lasgd.virtual.Problem, got "
            f"{type(problem).__name__}"
        )
    return problem


def main() -> None:
    """Run the command line; end with a line and a code other than 0 if it cannot be run."""
    options = argument_parser().parse_args()
    find_own_functions()
    try:
        rows = run_all(options)
        if options.picture is not None:
            lines = [Timeline(row.name, row.outcome) for row in rows]
            picture(lines, options.loss).savefig(options.picture, dpi=150)
    except (ValueError, OSError) as error:
        sys.exit(f"{PROGRAM}: {explain(error)}")
    console.width = max(console.width, _WIDEST)  # a narrow one would cut the names of the runs
    console.print(table(rows, options.loss))
    for line in left_out(rows):
        console.print(line, soft_wrap=True)
    if options.picture is not None:
        console.print(f"written to {options.picture}")


if __name__ == "__main__":
    main()
