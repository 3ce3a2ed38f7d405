"""How far work is: a bar on a terminal, lines in a log."""

import sys
import threading
import time
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

# where no terminal sets the width, as in a log, an experiment's table should not be folded; names
# of strategies and folders have brackets, and are no markup
console = Console(width=None if sys.stdout.isatty() else 200, markup=False)

# who speaks, where several write to one place
_speaker = ""

# the longest silence
_SAY_S = 30.0
# what is done sooner was there already, and is not worth a line
_AT_ONCE_S = 0.02


def speak_as(name: str) -> None:
    """Write lines from now on, not bars, each with a name before it: others may write as well."""
    global _speaker
    _speaker = f"{name} "


class Steps:
    """Shows finished steps, such as rounds, with the time that is left.

    On a terminal that is a bar; elsewhere, and where other processes write too, a line for each
    step, and one every 30 seconds while a step goes on.

    Args:
        unit: what a step is called.
        total: how many there are.
        finished: of them, before this began.
        width: of the description beside the bar.
    """

    def __init__(self, unit: str, total: int, *, finished: int = 0, width: int = 16) -> None:
        self._unit, self._total, self._finished = unit, total, finished
        self._at_first, self._began = finished, time.monotonic()
        self._description = self._part = ""
        self._said = self._step_began = self._began
        self._expected_s: float | None = None  # of the present step
        self._over, self._lock = threading.Event(), threading.Lock()
        columns: list[ProgressColumn] = [
            TextColumn(f"{{task.description:<{width}}}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.fields[part]}"),
        ]
        self._bar: Progress | None = None
        if console.is_terminal and not _speaker:
            self._bar = Progress(*columns, console=console)
        if self._bar is not None:
            self._task = self._bar.add_task("", total=total, completed=finished, note="", part="")

    def __enter__(self) -> Self:
        """Show the bar, or begin to write lines."""
        if self._bar is not None:
            self._bar.start()
        threading.Thread(target=self._go_on_saying, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._over.set()
        if self._bar is not None:
            self._bar.stop()

    def begin(self, description: str) -> None:
        """Name what goes on now."""
        self._description, self._step_began = description, time.monotonic()
        self._part, self._expected_s = "", None
        if self._bar is not None:
            self._bar.update(self._task, description=description)

    def part(self, text: str, share: float = 0.0) -> None:
        """Say how far the present step is.

        Args:
            text: in words.
            share: of it that is done, from 0 for an unknown one to 1.
        """
        took = time.monotonic() - self._step_began
        self._part, self._expected_s = text, took / share if share else None

    def done(self, finished: int, note: str = "") -> None:
        """Note how many steps are finished now.

        Args:
            finished: that many.
            note: what came of the last.
        """
        took = time.monotonic() - self._step_began
        self._finished, self._step_began = finished, time.monotonic()
        self._part, self._expected_s = "", None
        if self._bar is not None:
            self._bar.update(self._task, completed=finished, note=note, part="")
        elif took > _AT_ONCE_S or finished == self._total:
            self._say(f"{note + ', ' if note else ''}{self._left()}")

    def add(self, note: str = "") -> None:
        """Note that one more step is finished."""
        self.done(self._finished + 1, note)

    def _left(self) -> str:
        new = self._finished - self._at_first
        if new <= 0:
            return f"{self._total - self._finished} to go"
        each = (time.monotonic() - self._began) / new
        return f"{clock(each * (self._total - self._finished))} left"

    def _say(self, text: str, step: int | None = None) -> None:
        with self._lock:
            self._said = time.monotonic()
            number = self._finished if step is None else step
            print(
                f"{_speaker}{self._description}: {self._unit} {number}/{self._total}: {text}",
                file=console.file,
                flush=True,
            )

    def _of_step(self) -> str:
        took, expected_s = time.monotonic() - self._step_began, self._expected_s
        told = [self._part] if self._part else []
        told.append(f"{clock(took)} so far")
        if expected_s is not None:
            told.append(f"{clock(max(0.0, expected_s - took))} left of this {self._unit}")
        return ", ".join(told)

    def _go_on_saying(self) -> None:
        while not self._over.wait(1.0):
            if self._finished >= self._total:
                continue
            text = self._of_step()
            if self._bar is not None:
                self._bar.update(self._task, part=text)
            elif time.monotonic() - self._said >= _SAY_S:
                self._say(text, self._finished + 1)


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss, without the hours if there are none."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
