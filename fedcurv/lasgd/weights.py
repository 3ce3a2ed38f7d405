"""Weights of the workers' progress in an average."""

from collections.abc import Sequence
from typing import Literal

from fedcurv.lasgd.header import Report

Weights = Literal["gradient", "steps", "worker"]


def own_weight(weights: Weights, report: Report) -> float:
    """Return what a worker multiplies its progress D_i with before the All-Reduce.

    Args:
        weights: ``gradient`` counts D_i once, ``steps`` n_i times, ``worker`` 1/n_i times.
        report: of that worker.
    """
    if report.steps == 0 or report.broken:
        return 0.0
    return {"gradient": 1.0, "steps": report.steps, "worker": 1.0 / report.steps}[weights]


def common_factor(weights: Weights, reports: Sequence[Report]) -> float:
    """Return what all multiply the sum with, so that it is the progress Δ of the common model.

    ``gradient``: 1/N over the active workers, so that every gradient counts lr/N whatever the pace;
    ``steps``: 1/Σn; ``worker``: the mean progress of a step, times the mean number of steps.
    """
    steps = [r.steps for r in reports if r.steps and not r.broken]
    if not steps:
        return 0.0
    if weights == "gradient":
        return 1.0 / sum(bool(r.active) and not r.broken for r in reports)
    if weights == "steps":
        return 1.0 / sum(steps)
    return sum(steps) / len(steps) ** 2
