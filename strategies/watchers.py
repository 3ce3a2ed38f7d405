"""What may be given to ``start(on_round=...)`` besides functions of one's own."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedcurv.strategies.rounds import RoundRecord


class JsonLines:
    """Writes a line of JSON for each round, with every client's part, as soon as it is over.

    A resumed run appends. Numbers that are not finite become null, which JSON has no other word
    for.

    Args:
        path: of the file; its folder is made if it is missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, record: RoundRecord) -> None:
        """Append a round."""
        line = json.dumps(_plain(asdict(record)), allow_nan=False)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
