"""``fedcurv-experiment``: tuned methods, several seeds, one table; nothing is run twice."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fedcurv.simulations.command import Done, run_command, set_up_flower_log
from fedcurv.simulations.configuration import check_simulation, resolve
from fedcurv.simulations.experiment_report import ended_early, in_words, view, write_report
from fedcurv.simulations.experiment_runs import Plan, Run, Settings, check_plan, run_or_read
from fedcurv.simulations.interruption import going_on_by_repeating
from fedcurv.simulations.progress import Steps
from fedcurv.simulations.rules import is_integer, is_list_of, is_number, require_distinct


def main() -> None:
    """Run the command line."""
    run_command("fedcurv-experiment", "experiments", run_experiment)


def run_experiment(config: DictConfig, folder: Path, command: str) -> Done:
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
    check_simulation(resolved)
    set_up_flower_log(verbose=resolved["verbose"])
    experiment = resolved["experiment"]
    check_experiment(experiment)
    cells, methods = experiment["cells"], chosen(experiment["methods"], experiment.get("only"))
    for cell, (name, grid) in itertools.product(cells, grids(methods).items()):
        for point in grid:
            check_plan(config, Plan(cell, name, point, experiment["seeds"][0], "test"))
            check_plan(config, Plan(cell, name, point, experiment["tuning_seeds"][0], "validation"))
    runs_folder = folder / "runs"
    runs_folder.mkdir(parents=True, exist_ok=True)
    tuned: list[Run] = []
    trials: list[Run] = []
    points = len(next(iter(grids(methods).values())))
    per_method = len(experiment["seeds"]) + points * len(experiment["tuning_seeds"])
    total = len(cells) * len(methods) * per_method
    with going_on_by_repeating(), Steps("training", total, width=44) as steps:

        def done(plan: Plan) -> Run:
            steps.begin(f"{plan.method} {in_words(plan.cell)}")
            result = run_or_read(config, plan, runs_folder, steps.part)
            steps.add("diverged" if result.failure else "")
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
    return Done(view(rows), folder, ended_early(tuned))


def check_experiment(experiment: Settings) -> None:
    """Raise a ValueError that names what an experiment's description lacks or cannot mean."""
    for key in ("seeds", "tuning_seeds"):
        seeds = experiment.get(key)
        if not is_list_of(seeds, lambda seed: is_integer(seed, 0)) or not seeds:
            raise ValueError(
                f"experiment.{key}: expected at least one seed, integers >= 0, got {seeds!r}"
            )
        require_distinct(f"experiment.{key}", seeds)
    target: Any = experiment.get("target")
    if not is_number(target) or not 0 < target <= 1:
        raise ValueError(f"experiment.target must be an accuracy in (0, 1], got {target!r}")
    cells, methods = experiment.get("cells"), experiment.get("methods")
    if not is_list_of(cells, lambda cell: isinstance(cell, Mapping)) or not cells:
        raise ValueError(
            "experiment.cells: expected at least one table of keys and values, such as "
            f"{{client.epochs: 5}}, got {cells!r}"
        )
    require_distinct("experiment.cells", cells)
    if not isinstance(methods, Mapping) or not methods:
        raise ValueError(f"experiment.methods: expected at least one, got {methods!r}")
    for name, method in methods.items():
        grid = method.get("grid") if isinstance(method, Mapping) else None
        if not isinstance(grid, Mapping) or "strategy" not in method:
            raise ValueError(
                f"experiment.methods.{name}: expected strategy and grid, got {method!r}"
            )
        if not isinstance(method.get("set") or {}, Mapping):
            raise ValueError(
                f"experiment.methods.{name}.set: expected a table of keys and values, got "
                f"{method['set']!r}"
            )
        for key, values in grid.items():
            if not is_list_of(values, lambda value: True) or not values:
                raise ValueError(
                    f"experiment.methods.{name}.grid.{key}: expected a list of values, got "
                    f"{values!r}"
                )
    check_budgets(methods)


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


def chosen(methods: Settings, only: Any) -> Settings:
    """Return the methods with these names; all of them for None.

    Raises:
        ValueError: for none, or a name that none has.
    """
    if only is None:
        return methods
    if not is_list_of(only, lambda name: isinstance(name, str) and name in methods) or not only:
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
