"""Ctrl-C and SIGTERM: work stops, what is finished is kept, and the process ends in time."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# after which a process ends in any case: threads of an engine may never give up
_PATIENCE_S = 4.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM has come.

    Attributes:
        exit_code: 130 or 143, as shells count signals.
        how_to_go_on: what the user may do now; added by whoever knows.
        said: whether its line was printed.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number
        self.how_to_go_on = "what was finished is kept"
        self.said = False

    def in_words(self) -> str:
        """Return one line."""
        return f"interrupted by {self}; {self.how_to_go_on}"


@contextmanager
def interruptible(program: str) -> Iterator[None]:
    """Raise Interrupted in the main thread at the first signal; end the process soon after it.

    Args:
        program: its name, for the last line if the process must be ended by force.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = threading.Event()

    def interrupt(signal_number: int, frame: FrameType | None) -> None:
        if came.is_set():
            return  # on the way already
        came.set()
        interrupted = Interrupted(signal_number)
        threading.Thread(target=_end_late, args=(program, interrupted), daemon=True).start()
        raise interrupted

    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def going_on_by_repeating() -> Iterator[None]:
    """Tell who interrupts that the same command goes on, as finished trainings are kept."""
    try:
        yield
    except Interrupted as interrupted:
        interrupted.how_to_go_on = "go on with the same command: finished trainings are kept"
        raise


def _end_late(program: str, interrupted: Interrupted) -> None:
    threading.Event().wait(_PATIENCE_S)
    if not interrupted.said:
        print(f"{program}: {interrupted.in_words()}", file=sys.stderr, flush=True)
    os._exit(interrupted.exit_code)
