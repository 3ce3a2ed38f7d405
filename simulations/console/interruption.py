"""Ctrl-C and SIGTERM: work stops, what is finished is kept, and the process ends in time."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_PATIENCE_S = 4.0
KEPT = "what was finished is kept"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM has come; no handler of errors may take it for one.

    Attributes:
        exit_code: 130 or 143, as shells count signals.
        how_to_go_on: what the user should know or may do now; replaced by whoever knows more.
        said: whether its line was printed.
    """

    def __init__(self, signal_number: int, how_to_go_on: str = KEPT) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number
        self.how_to_go_on = how_to_go_on
        self.said = False

    def say(self, program: str) -> None:
        """Print one line, once."""
        if not self.said:
            self.said = True
            print(f"{program}: ended by {self}; {self.how_to_go_on}", file=sys.stderr, flush=True)


@contextmanager
def interruptible(
    program: str, afterwards: str = KEPT, *, patience_s: float | None = _PATIENCE_S
) -> Iterator[None]:
    """End the program at Ctrl-C or SIGTERM with one line, after the block has cleaned up.

    The first signal raises Interrupted in the main thread, which leaves with 130 or 143. Signals
    that come after it do nothing, so that nothing breaks off the cleaning up.

    Args:
        program: its name.
        afterwards: what the user should know then, unless the block knows more.
        patience_s: after which the process ends in any case, as threads of an engine may never give
            up. None where the block ends processes of its own, in bounded time: none may be left.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = threading.Event()

    def interrupt(signal_number: int, frame: FrameType | None) -> None:
        if came.is_set():
            return  # on the way already
        came.set()
        interrupted = Interrupted(signal_number, afterwards)
        if patience_s is not None:
            arguments = (program, interrupted, patience_s)
            threading.Thread(target=_end_late, args=arguments, daemon=True).start()
        raise interrupted

    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    except Interrupted as interrupted:
        interrupted.say(program)
        raise SystemExit(interrupted.exit_code) from None
    finally:
        if not came.is_set():  # else the process ends now
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


def _end_late(program: str, interrupted: Interrupted, patience_s: float) -> None:
    threading.Event().wait(patience_s)
    interrupted.say(program)
    os._exit(interrupted.exit_code)
