"""One training of an experiment: what is planned, and what came of it, once."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedcurv.errors import error_in
from fedcurv.private_files import replaced
from fedcurv.simulations.configuration import check_simulation, resolve
from fedcurv.simulations.federation.counting import Counting
from fedcurv.simulations.federation.run import run
from fedcurv.simulations.federation.server_app import make_server_app
from fedcurv.simulations.parts.metrics import ACCURACY, Metric
from fedcurv.simulations.parts.strategies import make_strategy
from fedcurv.simulations.parts.tasks import CLASSIFICATION, metric_of
from fedcurv.simulations.reports.history import History
from fedcurv.simulations.reports.over_rounds import megabytes_by, scores, seconds_by
from fedcurv.strategies import RoundFailed
from fedcurv.strategies.loop.rounds import RoundRecord

Settings = Mapping[str, Any]
Show = Callable[[str, float], object]

_OF_STRATEGY = "strategy."
# rounds over which the final score is averaged: one round's is noisy
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
        scores: the metric on the test set by round, 0 before training.
        megabytes: that had travelled by the end of each round, both ways, all clients.
        seconds: that had passed by then, evaluation on the server included.
        failure: why it did not come to its end, as when the training diverges; else empty. Such a
            run counts as one that reached nothing.
        metric: that it is judged by.
        label_noise: the share of labels that were wrong, over all clients; None if it is not known.
    """

    plan: Plan
    scores: list[float]
    megabytes: Sequence[float]
    seconds: Sequence[float]
    failure: str = ""
    metric: Metric = ACCURACY
    label_noise: float | None = None

    def rounds_to(self, target: float) -> int | None:
        """Return the first round that reached a target, or None."""
        if self.failure:
            return None
        reaches = self.metric.reaches
        return next((r for r, s in enumerate(self.scores) if reaches(s, target)), None)

    def cost_to(self, target: float, cost: Sequence[float]) -> float | None:
        """Return what was spent until the first round that reached a target, or None.

        Args:
            target: of the metric.
            cost: ``megabytes`` or ``seconds``.
        """
        reached = self.rounds_to(target)
        return None if reached is None else cost[reached]

    def score_within(self, budget: float, cost: Sequence[float]) -> float:
        """Return the score after the last round that a budget of ``cost`` pays for."""
        if self.failure:
            return self.metric.worst
        return self.scores[max(0, sum(spent <= budget for spent in cost) - 1)]

    @property
    def final(self) -> float:
        """Mean score of the last five rounds; of all where there are fewer."""
        rounds = self.scores[1:]  # without the score before training
        last = [self.metric.worst] if self.failure else rounds[-_LAST:]
        return sum(last) / len(last)

    @property
    def megabytes_a_round(self) -> float:
        """Mean over rounds of what travelled."""
        return self.megabytes[-1] / max(1, len(self.megabytes) - 1) if self.megabytes else 0.0

    @property
    def last(self) -> float:
        """Score after the last round."""
        return self.metric.worst if self.failure else self.scores[-1]

    @property
    def best(self) -> float:
        """Best score of all rounds."""
        worst = self.metric.worst
        return worst if self.failure else self.metric.best(self.scores, default=worst)


def check_plan(config: DictConfig, plan: Plan) -> None:
    """Raise a ValueError or an InstantiationException unless a plan can be run."""
    configured, strategy = configure(config, plan)
    resolved = resolve(configured)
    check_simulation(resolved)
    make_strategy(strategy, resolved)


def can_be_run(config: DictConfig, plan: Plan) -> bool:
    """Return whether a plan can be run."""
    try:
        check_plan(config, plan)
    except (ValueError, InstantiationException):
        return False
    return True


def run_or_read(
    config: DictConfig,
    plan: Plan,
    folder: Path,
    show: Show = lambda text, share: None,
) -> Run:
    """Return what came of a plan: read, if the same configuration was run before, else run.

    Args:
        config: as conf/experiments.yaml has it.
        plan: what to run.
        folder: of all runs.
        show: told how far it is, and which share of it is done.

    Raises:
        ValueError: if the configuration cannot work.
    """
    configured, strategy = configure(config, plan)
    resolved = resolve(configured)
    no_matter = ("experiment", "strategy", "verbose", "checkpoint_every", "resume")
    of_run = {k: v for k, v in resolved.items() if k not in no_matter}
    # only what is said beside the defaults: earlier versions' runs had no other tasks
    if metric_of(resolved) is ACCURACY and resolved["task"] == CLASSIFICATION.name:
        of_run = {k: v for k, v in of_run.items() if k not in ("task", "metric")}
    of_run["data"] = {k: v for k, v in of_run["data"].items() if k not in ("root", "download")}
    if of_run["data"].get("test_samples") is None:
        of_run["data"].pop("test_samples", None)
    described = json.dumps([of_run, OmegaConf.to_container(strategy, resolve=True)], sort_keys=True)
    file = folder / f"{hashlib.sha256(described.encode()).hexdigest()[:20]}.json"
    if file.exists():
        return _read(file, plan, metric_of(resolved))
    result = _run(plan, resolved, strategy, show)
    with replaced(file) as out:
        written = {**asdict(result), "metric": result.metric.name, "configuration": described}
        out.write(json.dumps(written, indent=1).encode())
    return result


def _read(file: Path, plan: Plan, metric: Metric) -> Run:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        scored = table["scores"] if "scores" in table else table["accuracy"]  # of earlier versions
        megabytes, seconds = table["megabytes"], table["seconds"]
        if not len(megabytes) == len(seconds) == len(scored):
            raise ValueError("a cost for each score")
        return Run(
            plan,
            scored,
            megabytes,
            seconds,
            table.get("failure", ""),
            metric,
            table.get("label_noise"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file}: expected what came of a training ({type(error).__name__}: {error}); remove "
            "the file to train again"
        ) from error


def _run(plan: Plan, resolved: dict[str, Any], strategy: DictConfig, show: Show) -> Run:
    history = run_to_its_end(resolved, strategy, plan.method, show)
    failure = error_in(history.failure) if history.failure else ""
    metric = metric_of(resolved)
    scored = scores(history, metric)
    noise = history.rounds[-1].train_metrics.get("label-noise") if history.rounds else None
    return Run(
        plan,
        scores=list(scored.values()),
        megabytes=megabytes_by(history, scored),
        seconds=seconds_by(history, scored),
        failure=failure,
        metric=metric,
        label_noise=None if noise is None else float(str(noise)),
    )


def run_to_its_end(resolved: dict[str, Any], strategy: Any, name: str, show: Show) -> History:
    """Run one strategy; its history tells if the training diverged or all clients failed.

    Args:
        resolved: configuration.
        strategy: its description.
        name: of the history.
        show: told after each round and each client how far it is, and which share of it is done.
    """
    history, rounds = History(name), resolved["num_rounds"]

    def say(record: RoundRecord) -> None:
        show(f"round {record.server_round} of {rounds} is done", record.server_round / rounds)

    def part_of_round(done: int, of: int) -> None:
        finished = history.rounds[-1].server_round if history.rounds else 0
        text = f"round {finished + 1} of {rounds}, {done} of {of} clients"
        show(text, (finished + done / of) / rounds)

    clients = Counting(resolved, part_of_round)
    watchers = [say, lambda record: clients.begin_round()]
    server_app = make_server_app(resolved, make_strategy(strategy, resolved), history, watchers)
    try:
        run(server_app, resolved, clients)
    except RoundFailed as error:
        history.failure = str(error)
    return history


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
        try:
            OmegaConf.update(configured, path, value, merge=False)
        except (OmegaConfBaseException, AttributeError, TypeError) as error:
            raise ValueError(
                f"experiment: {key!r} of method {plan.method} in cell {dict(plan.cell)} is no key "
                "of the configuration"
            ) from error
    return configured, configured.strategy[method.strategy]
