"""A picture of LASGD in virtual time: who computes when, and what the common model is worth."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from fedcurv.lasgd.virtual import Outcome
from fedcurv.simulations.reports.pictures import Curve, draw

# of a run, so that bars can be seen
_SHOWN_STEPS = 40
_SHOWN_WORKERS = 16


@dataclass(frozen=True)
class Timeline:
    """A run under a name."""

    name: str
    outcome: Outcome


def picture(runs: Sequence[Timeline], loss: float) -> Figure:
    """Return losses over time, and below them the first steps of each run's first workers.

    Args:
        runs: in the order in which they are shown.
        loss: that was wanted.
    """
    figure = Figure(figsize=(10, 3.5 + 1.6 * len(runs)), layout="constrained")
    above, *lines = figure.subplots(1 + len(runs), 1, height_ratios=[3.5, *[1.6] * len(runs)])
    for number, run in enumerate(runs):
        landings = run.outcome.landings
        draw(
            above,
            Curve(run.name, [one.seconds for one in landings], [one.loss for one in landings]),
            number,
        )
    above.axhline(loss, color="grey", linewidth=0.5)
    above.set(xlabel="seconds", ylabel="test loss", yscale="log")
    above.legend(fontsize="small")
    until = max(_seconds_of_first_steps(run.outcome) for run in runs)
    for axes, run in zip(lines, runs, strict=True):
        shown = run.outcome.spans[:_SHOWN_WORKERS]
        for worker, spans in enumerate(shown):
            bars = [(begin, end - begin) for begin, end in spans if begin < until]
            axes.broken_barh(bars, (worker - 0.4, 0.8), edgecolor="white", linewidth=0.5)
        for landing in run.outcome.landings:
            if landing.seconds < until:
                axes.axvline(landing.seconds, color="black", linewidth=0.6)
        axes.set_title(run.name, fontsize="small", loc="left")
        axes.set(ylabel="worker", xlim=(0, until), ylim=(len(shown) - 0.5, -0.5))
    lines[-1].set(xlabel="seconds: bars are steps, lines are common models")
    return figure


def _seconds_of_first_steps(outcome: Outcome) -> float:
    return max(spans[:_SHOWN_STEPS][-1][1] for spans in outcome.spans if spans) / 4
