"""``fedcurv-experiment``: methods, tuned or not, several seeds, one table; no run is repeated."""

import itertools
import shlex
from pathlib import Path

from omegaconf import DictConfig

from fedcurv.simulations.commands.frame import Done, run_command, set_up_flower_log
from fedcurv.simulations.configuration import check_simulation, resolve
from fedcurv.simulations.console.interruption import going_on_by_repeating
from fedcurv.simulations.console.progress import Steps
from fedcurv.simulations.experiments.plans import (
    check_experiment,
    chosen,
    grids,
    require_effective,
)
from fedcurv.simulations.experiments.report import ended_early, view, write_report
from fedcurv.simulations.experiments.runs import (
    Plan,
    Run,
    Settings,
    can_be_run,
    check_plan,
    run_or_read,
)
from fedcurv.simulations.experiments.tuning import best_of, tune
from fedcurv.simulations.parts.tasks import metric_of
from fedcurv.simulations.reports.words import in_words


def main() -> None:
    """Run the command line."""
    run_command("fedcurv-experiment", "experiments", run_experiment)


def run_experiment(config: DictConfig, folder: Path, command: str) -> Done:
    """Tune, run and tabulate what ``experiment`` describes; what is in ``folder`` is not repeated.

    For every cell and method, each point of the method's grid is run on the validation split, with
    each of the tuning seeds, and then as many further points as ``more_trials`` says, see
    ``tuning.next_point``. The one that reaches ``target`` in the fewest rounds and still has it in
    the last five, or else ends best, is run with each of the seeds and evaluated on the test set.
    With one point for each method and no tuning seeds, nothing is tuned, and no validation split is
    needed.

    Args:
        config: as conf/experiments.yaml has it.
        folder: of this experiment.
        command: for the report.

    Raises:
        ValueError: if the configuration cannot work, or methods have budgets of other sizes.
        OSError: if the folder cannot be written.
    """
    resolved = resolve(config)
    check_simulation(resolved)
    set_up_flower_log(verbose=resolved["verbose"])
    experiment = resolved["experiment"]
    metric = metric_of(resolved)
    check_experiment(experiment, metric)
    target = experiment["target"]
    require_effective(shlex.split(command), experiment)
    tuning_seeds = experiment.get("tuning_seeds") or []
    cells, methods = experiment["cells"], chosen(experiment["methods"], experiment.get("only"))
    for cell, (name, grid) in itertools.product(cells, grids(methods).items()):
        for point in grid:
            check_plan(config, Plan(cell, name, point, experiment["seeds"][0], "test"))
            if tuning_seeds:
                check_plan(config, Plan(cell, name, point, tuning_seeds[0], "validation"))
    runs_folder = folder / "runs"
    runs_folder.mkdir(parents=True, exist_ok=True)
    tuned: list[Run] = []
    trials: list[Run] = []
    more = experiment.get("more_trials", 0) if tuning_seeds else 0
    points = len(next(iter(grids(methods).values()))) + more
    per_method = len(experiment["seeds"]) + points * len(tuning_seeds)
    total = len(cells) * len(methods) * per_method
    with going_on_by_repeating(), Steps("training", total, width=44) as steps:

        def done(plan: Plan) -> Run:
            steps.begin(f"{plan.method} {in_words(plan.cell)}")
            result = run_or_read(config, plan, runs_folder, steps.part)
            steps.add("diverged" if result.failure else "")
            return result

        for cell, (name, grid) in itertools.product(cells, grids(methods).items()):
            settings = grid[0]
            if tuning_seeds:

                def tried(point: Settings, cell: Settings = cell, name: str = name) -> list[Run]:
                    plans = [Plan(cell, name, point, seed, "validation") for seed in tuning_seeds]
                    return [done(plan) for plan in plans]

                def fits(point: Settings, cell: Settings = cell, name: str = name) -> bool:
                    return can_be_run(
                        config, Plan(cell, name, point, tuning_seeds[0], "validation")
                    )

                tuning = tune(grid, more, target, tried, fits)
                trials += itertools.chain(*tuning)
                settings = best_of(tuning, target)
            for seed in experiment["seeds"]:
                tuned.append(done(Plan(cell, name, settings, seed, "test")))
            rows = write_report(folder, tuned, trials, resolved, command)
    return Done(view(rows, metric, experiment.get("table")), folder, ended_early(tuned))


if __name__ == "__main__":
    main()
