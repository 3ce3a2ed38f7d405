"""``python -m fedcurv.simulations.reports.results``: one page of all experiments that were run.

Every folder below has what ``fedcurv-experiment`` wrote. ``introduction.md`` and ``conclusions.md``
beside them are written by hand; a table of FedCurv beside what it was put around stands between.
"""

import argparse
import csv
import itertools
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from fedcurv.simulations.reports.comparison import markdown_table
from fedcurv.simulations.reports.statistics import FEWEST_SEEDS, paired_ratio

INTRODUCTION, CONCLUSIONS = "introduction.md", "conclusions.md"

# a method, and the same with FedCurv around it
_PAIRS = (
    ("fedavg", "fedcurv-auto"),
    ("fedavg", "fedcurv"),
    ("fedadam", "fedcurv-fedadam"),
    ("fedadam", "fedcurv-fedadam-exact"),
    ("fedavg", "32-bits"),
    ("fedavg", "8-bits"),
    ("fedavg", "4-bits"),
    ("ce-fedavg", "ce-fedcurv"),
    ("gce-fedavg", "gce-fedcurv"),
    ("nce-rce-fedavg", "nce-rce-fedcurv"),
)

# of an experiment, and what a line is there; not all have all
_FILES = {
    "results.csv": "",
    "trials.csv": "every trial of ",
    "comparisons.csv": "every method beside every other of ",
}

_GLANCE_HEADER = (
    *("experiment", "cell", "method", "with FedCurv", "to"),
    *("rounds", "ratio", "sooner", "MB ratio", "final"),
)

_GLANCE_CAPTION = (
    "Rounds: mean over the seeds, without and with FedCurv, to the accuracy that was tuned for. "
    "Sooner: the seeds with which FedCurv got there in fewer rounds. MB: what all clients receive "
    "and send until then. Final: mean test accuracy in % of the last five rounds, without and "
    "with FedCurv. A ratio is given where every seed got there, with a 95 % interval from "
    f"{FEWEST_SEEDS} seeds on."
)


def page(folder: Path, beside: Path) -> str:
    """Return the page.

    Args:
        folder: with a folder for each experiment.
        beside: where the page will stand, for its links.

    Raises:
        FileNotFoundError: if there is no experiment, no introduction or no conclusions.
    """
    experiments = sorted(path.parent for path in folder.glob("*/summary.md"))
    if not experiments:
        raise FileNotFoundError(f"{folder}: expected a folder with summary.md for each experiment")
    parts = [
        "# When FedCurv pays: results",
        (folder / INTRODUCTION).read_text(encoding="utf-8").strip(),
        "## At a glance",
        "\n".join(markdown_table(glance(experiments))),
        _GLANCE_CAPTION,
        "## Conclusions",
        (folder / CONCLUSIONS).read_text(encoding="utf-8").strip(),
    ]
    for experiment in experiments:
        link = Path(os.path.relpath(experiment, beside)).as_posix()
        parts += [
            f"## {experiment.name}",
            f"![Test accuracy over rounds]({link}/accuracy.png)",
            (experiment / "summary.md").read_text(encoding="utf-8").strip(),
            f"Every run is a line of {_linked(experiment, link)}, "
            f"{_minutes(experiment):.0f} minutes in all; [config.yaml]({link}/config.yaml).",
        ]
    return "\n\n".join(parts) + "\n"


def glance(experiments: Sequence[Path]) -> list[list[str]]:
    """Return a header and a row for each method that ran both without and with FedCurv.

    Args:
        experiments: folders with results.csv and config.yaml.
    """
    rows = [list(_GLANCE_HEADER)]
    for experiment in experiments:
        target = OmegaConf.load(experiment / "config.yaml").experiment.target
        outcomes = _outcomes(experiment / "results.csv", f"rounds_to_{target:g}")
        cells = dict.fromkeys(cell for cell, _ in outcomes)
        for cell, (method, fedcurv) in itertools.product(cells, _PAIRS):
            if (cell, method) in outcomes and (cell, fedcurv) in outcomes:
                compared = _compared(outcomes[cell, method], outcomes[cell, fedcurv])
                rows.append(
                    [experiment.name, cell, method, fedcurv, f"{100 * target:g} %", *compared]
                )
    return rows


@dataclass(frozen=True)
class _Outcome:
    """What came of a method in a cell, a value for each seed; infinite where it never got there."""

    rounds: list[float]
    megabytes: list[float]
    final: list[float]


def _lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _linked(experiment: Path, link: str) -> str:
    """Return an experiment's tables with links to them."""
    there = [name for name in _FILES if (experiment / name).exists()]
    return ", ".join(f"{_FILES[name]}[{name}]({link}/{name})" for name in there)


def _minutes(experiment: Path) -> float:
    files = [experiment / name for name in ("results.csv", "trials.csv")]
    runs = [run for path in files if path.exists() for run in _lines(path)]
    return sum(float(run["seconds"]) for run in runs) / 60


def _outcomes(results: Path, rounds_to: str) -> dict[tuple[str, str], _Outcome]:
    outcomes: dict[tuple[str, str], _Outcome] = {}
    for run in _lines(results):
        own = outcomes.setdefault((run["cell"], run["method"]), _Outcome([], [], []))
        own.rounds.append(float(run[rounds_to] or math.inf))
        # experiments of earlier versions tell a round's mean only
        mean = own.rounds[-1] * float(run["megabytes_a_round"])
        spent = run.get(rounds_to.replace("rounds", "megabytes"), mean)
        own.megabytes.append(float(spent or math.inf))
        own.final.append(100 * float(run["final"]))
    return outcomes


def _compared(without: _Outcome, fedcurv: _Outcome) -> list[str]:
    sooner = sum(b < a for a, b in zip(without.rounds, fedcurv.rounds, strict=True))
    return [
        _both(without.rounds, fedcurv.rounds),
        _ratio(without.rounds, fedcurv.rounds),
        f"{sooner} of {len(without.rounds)}",
        _ratio(without.megabytes, fedcurv.megabytes),
        _both(without.final, fedcurv.final),
    ]


def _both(without: Sequence[float], fedcurv: Sequence[float]) -> str:
    means = [statistics.mean(values) for values in (without, fedcurv)]
    return " → ".join(f"{mean:.1f}" if math.isfinite(mean) else "-" for mean in means)


def _ratio(without: Sequence[float], fedcurv: Sequence[float]) -> str:
    compared = paired_ratio(fedcurv, without)
    return "-" if compared is None else compared.text()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fedcurv.simulations.reports.results",
        description="Write one page of all experiments that were run.",
    )
    parser.add_argument("folder", type=Path, help="with a folder for each experiment")
    parser.add_argument("page", type=Path, help="to write, such as docs/results.md")
    options = parser.parse_args()
    text = page(options.folder, options.page.parent)
    options.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
