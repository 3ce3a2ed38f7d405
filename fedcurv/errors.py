"""Errors as one line of a message."""


def first_line(error: BaseException) -> str:
    """Return what an error says first; the name of its class if it says nothing."""
    line = (str(error).splitlines() or [""])[0] or type(error).__name__
    return f"no {line}" if isinstance(error, KeyError) else line


def in_one_line(error: BaseException) -> str:
    """Return an error's class and its text, without line ends."""
    return " ".join(f"{type(error).__name__}: {error}".split())
