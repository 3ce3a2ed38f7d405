"""A command in this process, and pictures that take no time."""

import io
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Ended:
    """What is left of a command: its exit code and what it has printed."""

    code: int
    output: str
    errors: str


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Return what runs a command's main function in an empty folder, as its process would."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(program: str, main: Callable[[], object], *arguments: str) -> Ended:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        finally:  # Hydra's handlers print to this test's output
            root.handlers[:], root.level = handlers, level
        printed = capsys.readouterr()
        if isinstance(code, str):
            return Ended(1, printed.out, f"{printed.err}{code}\n")
        return Ended(code or 0, printed.out, printed.err)

    return run


@pytest.fixture
def quick_pictures(monkeypatch):
    """Draw nothing: a picture takes longer than a small training, and other tests look at it."""

    def draw_nothing(figure, place, **_):
        if isinstance(place, io.StringIO):
            place.write("<svg></svg>")
        else:
            Path(place).touch()

    monkeypatch.setattr(Figure, "savefig", draw_nothing)
