"""report.html: a run's page beside its tables, renewed as rounds end."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedcurv.errors import in_one_line
from fedcurv.private_files import made_private
from fedcurv.simulations.console.interruption import Interrupted
from fedcurv.simulations.console.telling import tell_once
from fedcurv.simulations.reports.history import History
from fedcurv.simulations.reports.provenance import circumstances
from fedcurv.simulations.reports.round_files import write_whole
from fedcurv.simulations.reports.run_page import ENDED, RUNNING, run_page

PAGE_FILE = "report.html"
# seconds after which a browser looks again, while a run goes on
RENEW_S = 10
# drawing takes no more than this share of a run's time: short rounds are shown some at a time
_LARGEST_SHARE = 0.05


class LivePage:
    """Keeps report.html in a folder, as a context: how it is left stands in the page.

    Nothing that keeps the page from being written ends the run; it is told once.

    Args:
        folder: existing.
        histories: that the page is made of; others may be added later.
        config: resolved.
        command: by which the run was started.
        private: for its owner alone.
        clock: seconds.
    """

    def __init__(
        self,
        folder: Path,
        histories: Sequence[History],
        config: Mapping[str, Any],
        command: str,
        *,
        private: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._histories, self._config = folder, histories, config
        self._about, self._private, self._clock = circumstances(command), private, clock
        self._next_s = -float("inf")

    def renew(self) -> None:
        """Write the page anew after a round, unless it was a moment ago."""
        began = self._clock()
        if began < self._next_s:
            return
        self._write(RUNNING, RENEW_S)
        ended = self._clock()
        self._next_s = ended + (ended - began) / _LARGEST_SHARE

    def __enter__(self) -> Self:
        """Return the page; it is written when a round ends."""
        return self

    def __exit__(
        self, kind: object, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write how it ended."""
        if error is None:
            self._write(ENDED)
        elif isinstance(error, Interrupted):
            self._write(f"interrupted by {error}; it can go on")
        else:
            self._write(f"ended by an error: {in_one_line(error)}")

    def _write(self, state: str, renew_s: int | None = None) -> None:
        histories = [history for history in self._histories if history.rounds]
        if not histories:
            return
        with made_private() if self._private else nullcontext():
            write_page(
                self._folder,
                lambda: run_page(histories, self._config, self._about, state, renew_s=renew_s),
            )


def write_page(folder: Path, make: Callable[[], str]) -> None:
    """Write report.html; what keeps it from being made or written ends nothing and is told once."""
    path = folder / PAGE_FILE
    try:
        write_whole(path, make())
    except Exception as error:  # whatever a picture or a disk may do
        tell_once(
            f"{path} was not written ({in_one_line(error)}); the work goes on, and its numbers are "
            "in the other files"
        )
