"""An app of tests/apps as it is, or with a page's changes, run in this process and looked at."""

import importlib
import math
import re
import shutil
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from flwr.app import Array, Context, Message, MessageType

from fedcurv.simulations.runners.local import run_local
from fedcurv.strategies.wire.records import PRECISION
from tests.oracles import codes

ROOT = Path(__file__).parents[1]
APPS = ROOT / "tests" / "apps"
PAGES = [ROOT / "docs" / "existing_apps.md", ROOT / "docs" / "existing_apps_more.md"]


def diffs() -> dict[str, str]:
    """Return the pages' changes, by the file that they are of."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES if page.exists())
    blocks = "".join(re.findall(r"^```diff\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    _, *files = re.split(r"^--- a/(\S+)\n\+\+\+ b/\S+\n", blocks, flags=re.MULTILINE)
    changes = list(zip(files[::2], files[1::2], strict=True))
    assert len(dict(changes)) == len(changes)
    return dict(changes)


def added(diff: str) -> list[str]:
    """Return the lines that a change adds."""
    return re.findall(r"^\+(.*)", diff, re.MULTILINE)


def apply(diff: str, file: Path) -> None:
    """Make a change, whose context must be there once."""
    text = file.read_text()
    for hunk in re.split(r"^@@.*@@\n", diff, flags=re.MULTILINE)[1:]:
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        assert text.count(before) == 1, hunk
        text = text.replace(before, after)
    file.write_text(text)


def copied(app: str, folder: Path, *, changed: Iterable[str] = ()) -> Path:
    """Return the folder of a copy of the app, with the pages' changes to these of its files."""
    copy = folder / f"{app}-{len(list(folder.iterdir()))}"
    shutil.copytree(APPS / app, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name in changed:
        apply(diffs()[name], copy / name)
    return copy


@dataclass(frozen=True)
class Visit:
    """What one client got and sent in one round.

    Attributes:
        precision: what it reported; None if nothing.
        sums: the precision that the server sent; None if nothing.
        arrays: the names of the arrays that it sent.
        metrics: that it sent.
    """

    server_round: int
    partition: int
    precision: dict[str, torch.Tensor] | None
    sums: dict[str, torch.Tensor] | None
    arrays: frozenset[str]
    metrics: Mapping[str, Any]


def visits_to(folder: Path, *, num_nodes: int = 3) -> list[Visit]:
    """Run a copy of an app as `flwr run` would, without Flower's engine; return what happened."""
    config = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    visits: list[Visit] = []
    with modules_of(folder):
        client_app = named(config["components"]["clientapp"])

        def watched(message: Message, context: Context) -> Message:
            if message.metadata.message_type != MessageType.TRAIN:
                return client_app(message, context)
            server_round = message.content["config"]["server-round"]
            sums = tensors(message, PRECISION)  # which the client takes out
            reply = client_app(message, context)
            visits.append(
                Visit(
                    server_round,
                    context.node_config["partition-id"],
                    tensors(reply, PRECISION),
                    sums,
                    frozenset(reply.content["arrays"]),
                    dict(reply.content["metrics"]),
                )
            )
            return reply

        server_app = named(config["components"]["serverapp"])
        run_local(server_app, watched, num_nodes, run_config=config.get("config"))
    return visits


def tensors(message: Message, record: str) -> dict[str, torch.Tensor] | None:
    content = message.content
    return {n: read(a) for n, a in content[record].items()} if record in content else None


def read(array: Array) -> torch.Tensor:
    """Return an array's numbers, of codes with 8 bits too."""
    if array.stype != "fedcurv.precision-8":
        return torch.from_numpy(array.numpy())
    levels = codes.precision_levels(8)
    numbers = codes.read(array.data, math.prod(array.shape), 8, levels)
    return torch.tensor(numbers).view(tuple(array.shape))


@contextmanager
def modules_of(folder: Path) -> Iterator[None]:
    """Let the app in the folder be imported, and forget it at the end."""
    name = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["name"]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for module in [m for m in sys.modules if m.split(".")[0] == name]:
            del sys.modules[module]


def named(place: str) -> Any:
    """Return what is at ``module:attribute``."""
    module, attribute = place.split(":")
    loaded: ModuleType = importlib.import_module(module)
    return getattr(loaded, attribute)
