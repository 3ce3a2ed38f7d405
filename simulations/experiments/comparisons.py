"""Every method of an experiment beside every other, seed by seed, at equal costs too."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedcurv.simulations.experiments.runs import Run
from fedcurv.simulations.parts.metrics import Metric
from fedcurv.simulations.reports.statistics import (
    FEWEST_SEEDS,
    Compared,
    holm,
    paired_difference,
    paired_p_value,
    paired_ratio,
)
from fedcurv.simulations.reports.words import in_words

CAPTION = (
    "Ratios are of the means over seeds until the target that was tuned for, differences of mean "
    "scores, both with a 95 % interval from resampling the seeds, which are paired: a seed is the "
    f"same data and first weights for all methods. Below {FEWEST_SEEDS} seeds there is no "
    "interval. Final: of the last five rounds. At equal MB and at equal seconds: after the last "
    "round that the cheaper one's whole run would have paid for, Fisher information and messages "
    "included. p: two-sided, of the rounds, by flipped signs, corrected for the number of rows "
    "(Holm); n seeds give no p below 2 / 2^n times that number."
)


@dataclass(frozen=True)
class Pair:
    """One method beside another in a cell; what cannot be compared is None.

    Attributes:
        cell: in words.
        method: its name.
        against: the other's.
        rounds: to the target, as a ratio.
        megabytes: likewise.
        seconds: likewise.
        p: of the rounds, not corrected.
        final: score of the last five rounds, as a difference.
        equal_megabytes: score after the last round that the smaller traffic of both pays for.
        equal_seconds: likewise.
    """

    cell: str
    method: str
    against: str
    rounds: Compared | None
    megabytes: Compared | None
    seconds: Compared | None
    p: float | None
    final: Compared | None
    equal_megabytes: Compared | None
    equal_seconds: Compared | None


def pairs(runs: Sequence[Run], target: float) -> list[Pair]:
    """Return every method beside every other, in each cell, both ways.

    Args:
        runs: on the test set, of the same seeds for all methods in a cell.
        target: that was tuned for.
    """
    cells: dict[str, dict[str, dict[int, Run]]] = {}
    for run in runs:
        methods = cells.setdefault(in_words(run.plan.cell), {})
        methods.setdefault(run.plan.method, {})[run.plan.seed] = run
    return [
        _pair(cell, methods, method, against, target)
        for cell, methods in cells.items()
        for method, against in itertools.permutations(methods, 2)
    ]


def _pair(
    cell: str,
    methods: dict[str, dict[int, Run]],
    method: str,
    against: str,
    target: float,
) -> Pair:
    seeds = sorted(methods[method].keys() & methods[against].keys())
    of, to = ([methods[name][seed] for seed in seeds] for name in (method, against))

    def reached(cost: Callable[[Run], Sequence[float]]) -> tuple[list[float], list[float]]:
        return _costs(of, target, cost), _costs(to, target, cost)

    rounds = reached(lambda run: range(len(run.scores)))
    return Pair(
        cell,
        method,
        against,
        rounds=paired_ratio(*rounds),
        megabytes=paired_ratio(*reached(lambda run: run.megabytes)),
        seconds=paired_ratio(*reached(lambda run: run.seconds)),
        p=paired_p_value(*rounds),
        final=paired_difference([run.final for run in of], [run.final for run in to]),
        equal_megabytes=_at_equal(of, to, lambda run: run.megabytes),
        equal_seconds=_at_equal(of, to, lambda run: run.seconds),
    )


def _costs(
    runs: Sequence[Run], target: float, cost: Callable[[Run], Sequence[float]]
) -> list[float]:
    reached = [run.cost_to(target, cost(run)) for run in runs]
    return [math.inf if spent is None else float(spent) for spent in reached]


def _at_equal(
    of: Sequence[Run], to: Sequence[Run], cost: Callable[[Run], Sequence[float]]
) -> Compared | None:
    scores: tuple[list[float], list[float]] = [], []
    for both in zip(of, to, strict=True):
        if any(run.failure for run in both):
            return None
        budget = min(cost(run)[-1] for run in both)
        for run, own in zip(both, scores, strict=True):
            own.append(run.score_within(budget, cost(run)))
    return paired_difference(*scores)


def table(pairs: Sequence[Pair], against: str, metric: Metric) -> list[list[str]]:
    """Return a header and a row for each method beside one of them, in each cell.

    Args:
        pairs: of all methods.
        against: the method that the others are set beside.
        metric: that they are judged by.
    """
    shown = [pair for pair in pairs if pair.against == against]
    unit = ", points" if metric.is_share else ""
    header = ["cell", "method", f"rounds / {against}'s", "p", "MB", "seconds"]
    header += [f"final{unit}", f"at equal MB{unit}", f"at equal seconds{unit}"]
    rows = [header]
    for pair, p in zip(shown, holm([pair.p for pair in shown]), strict=True):
        ratios = [pair.rounds, pair.megabytes, pair.seconds]
        rounds, *costs = ["-" if ratio is None else ratio.text() for ratio in ratios]
        differences = [pair.final, pair.equal_megabytes, pair.equal_seconds]
        rows.append(
            [
                *(pair.cell, pair.method, rounds, "-" if p is None else f"{p:.2g}", *costs),
                *(_difference(one, metric) for one in differences),
            ]
        )
    return rows


def _difference(compared: Compared | None, metric: Metric) -> str:
    if compared is None:
        return "-"
    ends = (compared.value, compared.low, compared.high)
    return Compared(*(metric.scale * end for end in ends)).text("+" + metric.form)


def line(pair: Pair) -> dict[str, object]:
    """Return a pair as a line of a CSV file; what cannot be compared is empty."""
    figures: dict[str, object] = {}
    for name in ("rounds", "megabytes", "seconds"):
        figures |= _columns(f"{name}_ratio", getattr(pair, name))
    figures["p_of_rounds"] = "" if pair.p is None else round(pair.p, 6)
    for name in ("final", "equal_megabytes", "equal_seconds"):
        figures |= _columns(f"{name}_difference", getattr(pair, name))
    return {"cell": pair.cell, "method": pair.method, "against": pair.against, **figures}


def _columns(name: str, compared: Compared | None) -> dict[str, object]:
    ends = (math.nan,) * 3 if compared is None else (compared.value, compared.low, compared.high)
    return {
        column: "" if math.isnan(end) else round(end, 6)
        for column, end in zip((name, f"{name}_low", f"{name}_high"), ends, strict=True)
    }
