"""Errors, and values that are wrong, as one line of a message."""

# characters of an error that are told
_LONGEST = 500


def first_line(error: BaseException) -> str:
    """Return what an error says first; the name of its class if it says nothing."""
    line = (str(error).splitlines() or [""])[0] or type(error).__name__
    return f"no {line}" if isinstance(error, KeyError) else line


def in_one_line(error: BaseException) -> str:
    """Return an error's class and its text, without line ends."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def error_in(text: str) -> str:
    """Return the error that a traceback's text ends with, class and message in one line.

    Text that is no traceback is returned in one line, and cut where it is long.
    """
    lines = text.strip().splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    if frames:
        rest = lines[frames[-1] :]
        # below a frame its source is indented; the message may be, but not its first line
        begin = next((n for n, line in enumerate(rest) if line[:1].strip()), len(rest) - 1)
        lines = rest[begin:]
    told = " ".join(" ".join(lines).split())
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST]}..."


def told(value: object) -> str:
    """Return a value in one line; of an object its class."""
    plain = value is None or isinstance(value, bool | int | float | str | bytes)
    return repr(value)[:80] if plain else f"one of class {type(value).__name__}"
