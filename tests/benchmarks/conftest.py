"""Collects what the benchmarks measured and writes it as a table."""

import os
import platform
import shlex
import sys
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from fedcurv.global_state import num_threads
from fedcurv.simulations.reports.comparison import markdown_table
from fedcurv.simulations.reports.provenance import processor

FILE = Path("outputs") / "benchmarks" / "costs.md"


class Tables:
    """Markdown tables, one for each kind of benchmark."""

    def __init__(self) -> None:
        self._rows: dict[str, list[dict[str, str]]] = {}

    def add(self, title: str, **cells: object) -> None:
        """Add a line to a table; the names of its cells are the header."""
        row = {name.replace("_", " "): str(cell) for name, cell in cells.items()}
        self._rows.setdefault(title, []).append(row)
        print(f"\n{title}: " + ", ".join(f"{name} {cell}" for name, cell in row.items()))

    def markdown(self) -> str:
        lines = []
        for title, rows in self._rows.items():
            header = list(rows[0])
            cells = [[row[name] for name in header] for row in rows]
            lines += [f"## {title}", "", *markdown_table([header, *cells]), ""]
        return "\n".join([*lines, *_circumstances()])

    def __len__(self) -> int:
        return len(self._rows)


def _circumstances() -> list[str]:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "flwr", "numpy"))
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "CUDA: not measured"
    return [
        f"Command: `{shlex.join(['python', '-m', 'pytest', *sys.argv[1:]])}`  ",
        f"Date: {date.today()}  ",
        f"Versions: Python {platform.python_version()}, {packages}  ",
        f"Machine: {processor()}, {os.cpu_count()} cores, {cuda}",
        "",
    ]


@pytest.fixture(scope="session")
def tables() -> Iterator[Tables]:
    """Lines that are added stand in outputs/benchmarks/costs.md in the end."""
    tables = Tables()
    yield tables
    if len(tables):
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text(tables.markdown(), encoding="utf-8")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with num_threads(1):
        yield
