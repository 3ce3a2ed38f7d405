"""Runs of a site in virtual time, as a reader of the console sees them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import JustifyMethod
from rich.table import Table

from fedcurv.lasgd.outer import Outer
from fedcurv.lasgd.virtual import Outcome


@dataclass(frozen=True)
class Row:
    """A run and what it was of."""

    method: str
    workers: int
    sync_every: int | None
    lr: float | None
    outer: Outer
    outcome: Outcome

    @property
    def name(self) -> str:
        """The run in a few words."""
        every = "" if self.sync_every is None else f", sync_every {self.sync_every}"
        outer = "" if self.outer.kind is None else f", outer {self.outer_in_words}"
        lr = "" if self.lr is None else f", lr {self.lr:g}"
        return f"{self.method}, {self.workers} workers{every}{outer}{lr}"

    @property
    def outer_in_words(self) -> str:
        """Kind, learning rate and momentum."""
        outer = self.outer
        return "-" if outer.kind is None else f"{outer.kind} {outer.lr:g} {outer.momentum:g}"


def table(rows: Sequence[Row], loss: float) -> Table:
    """Return what a reader of the console sees."""
    shown = Table(box=box.SIMPLE, pad_edge=False, caption_justify="left")
    shown.caption = (
        "Share: of the sum of the workers' speeds. Flight: a worker's steps between its snapshot "
        "and the landing, mean over rounds. Every: sync_every. s, steps: until the test loss was "
        f"{loss:g}. MB: that a worker has put into All-Reduces."
    )
    own = {
        "outer": [row.outer_in_words for row in rows],
        "lr": ["-" if row.lr is None else f"{row.lr:g}" for row in rows],
    }
    own = {heading: values for heading, values in own.items() if {*values} != {"-"}}
    headings = ("method", *own, "workers", "every", "share", "s", "steps", "best", "flight")
    for heading in (*headings, "rounds", "MB"):
        justify: JustifyMethod = "left" if heading in ("method", "outer") else "right"
        shown.add_column(heading, justify=justify, no_wrap=True)
    for row, *values in zip(rows, *own.values(), strict=True):
        outcome, reached = row.outcome, row.outcome.first_below(loss)
        shown.add_row(
            row.method,
            *values,
            str(row.workers),
            "-" if row.sync_every is None else str(row.sync_every),
            f"{outcome.share:.2f}",
            "-" if reached is None else f"{reached.seconds:.1f}",
            "-" if reached is None else str(reached.steps),
            _lowest(outcome),
            f"{outcome.steps_in_flight:.1f}",
            str(len(outcome.landings)),
            f"{outcome.payload_bytes / 1e6:.2f}",
        )
    return shown


def _lowest(outcome: Outcome) -> str:
    if not outcome.landings:
        return "-"
    losses = [landing.loss for landing in outcome.landings if math.isfinite(landing.loss)]
    return f"{min(losses):.3f}" if losses else "not finite"


def left_out(rows: Sequence[Row]) -> list[str]:
    """Return a line for each run whose workers made progress that was not finite."""
    return [
        f"{row.name}: a worker's progress was not finite, and was left out of a round, "
        f"{row.outcome.broken} times in {len(row.outcome.landings)} rounds; "
        "a smaller learning rate may help"
        for row in rows
        if row.outcome.broken
    ]
