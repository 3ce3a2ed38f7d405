"""One training of an experiment: what is planned, and what came of it, once."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedcurv.private_files import replaced
from fedcurv.simulations.report import accuracies, summarise
from fedcurv.simulations.run import resolve
from fedcurv.simulations.runners import run
from fedcurv.simulations.server import History, make_server_app
from fedcurv.simulations.strategy import make_strategy
from fedcurv.strategies import RoundFailed

Settings = Mapping[str, Any]

_OF_STRATEGY = "strategy."
# rounds over which the final accuracy is averaged: one round's is noisy
_LAST = 5


@dataclass(frozen=True)
class Plan:
    """One training: a method with one of its settings, in a cell, with a seed.

    Attributes:
        cell: what the experiment varies.
        method: its name.
        settings: that are being tuned.
        seed: of data, clients and training.
        evaluate_on: ``validation`` while tuning, else ``test``.
    """

    cell: Settings
    method: str
    settings: Settings
    seed: int
    evaluate_on: str


@dataclass(frozen=True)
class Run:
    """What came of a plan.

    Attributes:
        plan: what was run.
        accuracy: by round, 0 before training.
        megabytes: that travelled in a round, both ways, all clients, mean over rounds.
        seconds: that all rounds took.
        failure: why it did not come to its end, as when the training diverges; else empty. Such a
            run counts as one that reached nothing.
    """

    plan: Plan
    accuracy: list[float]
    megabytes: float
    seconds: float
    failure: str = ""

    def rounds_to(self, target: float) -> int | None:
        """Return the first round that reached an accuracy, or None."""
        if self.failure:
            return None
        return next((r for r, a in enumerate(self.accuracy) if a >= target), None)

    @property
    def final(self) -> float:
        """Mean accuracy of the last five rounds."""
        last = [0.0] if self.failure else self.accuracy[-_LAST:]
        return sum(last) / len(last)

    @property
    def best(self) -> float:
        """Highest accuracy of all rounds."""
        return 0.0 if self.failure else max(self.accuracy)


def run_or_read(config: DictConfig, plan: Plan, folder: Path) -> Run:
    """Return what came of a plan: read, if the same configuration was run before, else run.

    Raises:
        ValueError: if the configuration cannot work.
    """
    configured, strategy = configure(config, plan)
    resolved = resolve(configured)
    of_run = {k: v for k, v in resolved.items() if k not in ("experiment", "strategy", "verbose")}
    of_run["data"] = {k: v for k, v in of_run["data"].items() if k not in ("root", "download")}
    described = json.dumps([of_run, OmegaConf.to_container(strategy, resolve=True)], sort_keys=True)
    file = folder / f"{hashlib.sha256(described.encode()).hexdigest()[:20]}.json"
    if file.exists():
        table = json.loads(file.read_text(encoding="utf-8"))
        return Run(
            plan,
            table["accuracy"],
            table["megabytes"],
            table["seconds"],
            table.get("failure", ""),
        )
    result = _run(plan, resolved, strategy)
    with replaced(file) as out:
        out.write(json.dumps({**asdict(result), "configuration": described}, indent=1).encode())
    return result


def _run(plan: Plan, resolved: dict[str, Any], strategy: DictConfig) -> Run:
    history, failure = History(plan.method), ""
    server_app = make_server_app(resolved, make_strategy(strategy, resolved), history, [])
    try:
        run(server_app, resolved)
    except RoundFailed as error:
        failure = str(error).strip().splitlines()[-1]
    taken = summarise(history, ())
    return Run(
        plan,
        accuracy=list(accuracies(history).values()),
        megabytes=(taken.bytes_down + taken.bytes_up) / 1e6,
        seconds=taken.seconds,
        failure=failure,
    )


def configure(config: DictConfig, plan: Plan) -> tuple[DictConfig, DictConfig]:
    """Return the configuration of one training, and the description of its strategy.

    Raises:
        ValueError: for a setting that does not exist.
    """
    configured = config.copy()
    method = configured.experiment.methods[plan.method]
    if method.strategy not in configured.strategy:
        raise ValueError(
            f"experiment.methods.{plan.method}.strategy must be one of "
            f"{', '.join(map(str, configured.strategy))}, got {method.strategy!r}"
        )
    changes = {**plan.cell, **dict(method.get("set") or {}), **plan.settings}
    changes |= {"seed": plan.seed, "data.evaluate_on": plan.evaluate_on}
    for key, value in changes.items():
        path = key
        if key.startswith(_OF_STRATEGY):
            path = f"strategy.{method.strategy}.{key.removeprefix(_OF_STRATEGY)}"
        OmegaConf.update(configured, path, value, merge=False)
    return configured, configured.strategy[method.strategy]
