"""``fedcurv-experiment``: tuned methods, several seeds, one table; nothing is run twice."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table

from fedcurv.simulations.experiment_report import view, write_report
from fedcurv.simulations.experiment_runs import Plan, Run, Settings, run_or_read
from fedcurv.simulations.run import (
    counting_progress,
    require_simulated_data,
    resolve,
    run_command,
    set_up_flower_log,
)


def main() -> None:
    """Run the command line."""
    run_command("fedcurv-experiment", "experiments", run_experiment)


def run_experiment(config: DictConfig, folder: Path, command: str) -> Table:
    """Tune, run and tabulate what ``experiment`` describes; what is in ``folder`` is not repeated.

    For every cell and method, each point of the method's grid is run on the validation split, with
    each of the tuning seeds. The one that reaches ``target`` in the fewest rounds and still has it
    in the last five, or else ends best, is run with each of the seeds and evaluated on the test
    set.

    Args:
        config: as conf/experiments.yaml has it.
        folder: of this experiment.
        command: for the report.

    Raises:
        ValueError: if the configuration cannot work, or methods have budgets of other sizes.
        OSError: if the folder cannot be written.
    """
    resolved = resolve(config)
    require_simulated_data(resolved)
    set_up_flower_log(verbose=resolved["verbose"])
    experiment = resolved["experiment"]
    check_budgets(experiment["methods"])
    runs_folder = folder / "runs"
    tuned: list[Run] = []
    trials: list[Run] = []
    cells, methods = experiment["cells"], chosen(experiment["methods"], experiment["only"])
    with counting_progress(44) as progress:
        points = len(next(iter(grids(methods).values())))
        per_method = len(experiment["seeds"]) + points * len(experiment["tuning_seeds"])
        task = progress.add_task("", total=len(cells) * len(methods) * per_method)

        def done(plan: Plan) -> Run:
            progress.update(task, description=f"{plan.method} {plan.cell}")
            result = run_or_read(config, plan, runs_folder)
            progress.advance(task)
            return result

        for cell, (name, grid) in itertools.product(cells, grids(methods).items()):
            tuning = [
                [
                    done(Plan(cell, name, point, seed, "validation"))
                    for seed in experiment["tuning_seeds"]
                ]
                for point in grid
            ]
            trials += itertools.chain(*tuning)
            best = min(tuning, key=lambda tried: worth(tried, experiment["target"]))
            for seed in experiment["seeds"]:
                tuned.append(done(Plan(cell, name, best[0].plan.settings, seed, "test")))
            rows = write_report(folder, tuned, trials, resolved, command)
    return view(rows)


def worth(tried: Sequence[Run], target: float) -> tuple[float, float]:
    """Return what is smaller for a better setting: the target reached early, and kept.

    Args:
        tried: one setting with each of the tuning seeds.
        target: accuracy in [0, 1].
    """
    rounds = [run.rounds_to(target) if run.final >= target else None for run in tried]
    reached = [number for number in rounds if number is not None]
    mean = sum(reached) / len(reached) if len(reached) == len(tried) else math.inf
    return mean, -sum(run.final for run in tried) / len(tried)


def grids(methods: Settings) -> dict[str, list[Settings]]:
    """Return every method's points: all combinations of its grid's values."""
    return {
        name: [
            dict(zip(method["grid"], values, strict=True))
            for values in itertools.product(*method["grid"].values())
        ]
        for name, method in methods.items()
    }


def chosen(methods: Settings, only: Sequence[str] | None) -> Settings:
    """Return the methods with these names; all of them for None.

    Raises:
        ValueError: for none, or a name that none has.
    """
    if only is None:
        return methods
    if not only or not set(only) <= methods.keys():
        raise ValueError(f"experiment.only must name some of {', '.join(methods)}, got {only!r}")
    return {name: method for name, method in methods.items() if name in only}


def check_budgets(methods: Settings) -> None:
    """Raise a ValueError unless all methods have the same number of trials."""
    sizes = {name: len(points) for name, points in grids(methods).items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(
            "experiment.methods: expected the same number of trials for every method, as a method "
            f"that is tuned more looks better than it is, got {sizes}"
        )


if __name__ == "__main__":
    main()
