"""A CSV file with a sample in each row, as tensors."""

import csv
import math
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

# what Python's float takes beside this (1_000, other scripts' digits) was hardly meant
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_LARGEST = torch.finfo(torch.float32).max
_LONGEST_TEXT = 60


def read_rows(
    file: Path, label: str, classes: Sequence[str], number: int
) -> tuple[Tensor, Tensor] | None:
    """Return the numbers of all rows and the numbers of their classes, or None for no rows.

    Args:
        file: in UTF-8, with a header.
        label: the column with the class.
        classes: their names, in the order of their numbers.
        number: how many other columns there must be.

    Returns:
        float32 of shape (N, number), and labels of shape (N,).

    Raises:
        ValueError: naming the line and the column where something else was expected.
        FileNotFoundError: if there is no such file.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines, strict=True)
            return _read(_Rows(file, label, classes, number), reader)
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected text in UTF-8: {error}") from error
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: no CSV: {error}") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error


class _Rows:
    """What a file's rows must be."""

    def __init__(self, file: Path, label: str, classes: Sequence[str], number: int) -> None:
        self.file, self.label, self.number = file, label, number
        self.numbers = {name: number for number, name in enumerate(classes)}

    def columns(self, header: list[str]) -> list[str]:
        """Return the names of all columns, checked."""
        others = [name for name in header if name != self.label]
        if self.label not in header or len(others) != self.number:
            raise ValueError(
                f"{self.file}: expected a header with a column {self.label!r} and "
                f"{self.number} others (data.shape), got {len(others)} others"
            )
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise ValueError(f"{self.file}: expected each column once, got {_short(twice)} twice")
        return header

    def class_in(self, text: str | None, where: str) -> int:
        """Return a class's number."""
        if text not in self.numbers:
            raise ValueError(
                f"{where}: expected one of data.classes ({', '.join(self.numbers)}), got "
                f"{_short(text)}"
            )
        return self.numbers[text]


def _read(rows: _Rows, reader: "Iterator[list[str]]") -> tuple[Tensor, Tensor] | None:
    columns = rows.columns(next(reader, []))
    at = columns.index(rows.label)
    numbers, labels = array("f"), array("q")
    for row in reader:
        if not row:  # an empty line
            continue
        where = f"{rows.file}, line {reader.line_num}"  # type: ignore[attr-defined]
        if len(row) > len(columns):
            raise ValueError(f"{where}: expected {len(columns)} fields, got {len(row)}")
        fields: list[str | None] = [*row, *[None] * (len(columns) - len(row))]
        labels.append(rows.class_in(fields.pop(at), where))
        names = columns[:at] + columns[at + 1 :]
        numbers.extend(_finite(text, where, name) for text, name in zip(fields, names, strict=True))
    if not labels:
        return None
    inputs = torch.frombuffer(numbers, dtype=torch.float32).reshape(len(labels), -1)
    return inputs, torch.frombuffer(labels, dtype=torch.int64)


def _finite(text: str | None, where: str, column: str) -> float:
    number = float(text) if text is not None and _NUMBER.fullmatch(text) else math.nan
    if not abs(number) <= _LARGEST:
        raise ValueError(
            f"{where}, {_cut(column)}: expected a finite number, got {_short(text)}"
            f"{', beyond float32' if not math.isnan(number) else ''}"
        )
    return number


def _short(text: str | None) -> str:
    return repr(text if text is None else _cut(text))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."
