"""LASGD with and without an outer optimizer, and in few bits: real processes on digits.

    python -m tests.benchmarks.lasgd_options --outer none nesterov:1:0.3 --lr 0.05 0.1
    python -m tests.benchmarks.lasgd_options --compression none int8 int4

The workers, the digits and the straggler are those of ``tests.benchmarks.lasgd``; a sum in floating
point takes 0.2 s, and one of fewer bytes as much less.
"""

import argparse
import itertools
from typing import Any

from tests.benchmarks.lasgd import BATCH, TARGET_LOSS, Case, judge, run

COST_S, SECONDS = 0.2, 15


def options_of(outer: str, compression: str) -> tuple[tuple[str, Any], ...]:
    """Return LASGD's settings from ``none`` or ``kind:lr:momentum``, and ``none`` or bits."""
    settings: dict[str, Any] = {}
    if outer != "none":
        kind, lr, momentum = outer.split(":")
        settings |= {"outer": kind, "outer_lr": float(lr), "outer_momentum": float(momentum)}
    if compression != "none":
        settings["compression"] = compression
    return tuple(settings.items())


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="LASGD's further settings")
    parser.add_argument("--outer", nargs="+", default=["none"])
    parser.add_argument("--compression", nargs="+", default=["none"])
    parser.add_argument("--lr", nargs="+", type=float, default=[0.05])
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    tried = itertools.product(options.outer, options.compression, options.lr, options.seeds)
    for outer, compression, lr, seed in tried:
        case = Case(
            "lasgd",
            "fixed",
            COST_S,
            SECONDS,
            seed,
            lr=lr,
            momentum=options.momentum,
            options=options_of(outer, compression),
        )
        result = judge(case, run(case))
        samples = result.steps_to_target and BATCH * result.steps_to_target
        lowest = min(loss for _, loss in result.curve)
        print(
            f"outer {outer}, {compression} bits, lr {lr:g}, seed {seed}: to {TARGET_LOSS} "
            f"{result.seconds_to_target} s, {samples} samples; lowest {lowest:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
