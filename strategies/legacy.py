"""Legacy words of Flower's API, and what they are called now."""

import difflib
import inspect
from collections.abc import Iterable

from flwr.serverapp.strategy import FedAvg, Strategy

# of flwr.server.strategy.FedAvg, and of FedProx beside it
_NOW = {
    "fraction_fit": "fraction_train",
    "fraction_eval": "fraction_evaluate",
    "min_fit_clients": "min_train_nodes",
    "min_evaluate_clients": "min_evaluate_nodes",
    "min_eval_clients": "min_evaluate_nodes",
    "min_available_clients": "min_available_nodes",
    "fit_metrics_aggregation_fn": "train_metrics_aggr_fn, a function of contents and their weights'"
    " key",
    "evaluate_metrics_aggregation_fn": "evaluate_metrics_aggr_fn, a function of contents and their "
    "weights' key",
    "evaluate_fn": "evaluate_fn of start(strategy, grid, arrays, evaluate_fn=...), a function of "
    "round and arrays",
    "eval_fn": "evaluate_fn of start(strategy, grid, arrays, evaluate_fn=...)",
    "on_fit_config_fn": "train_config of start(strategy, grid, arrays, train_config=...), or, for "
    "values that change, configure_train of a class of your own",
    "on_evaluate_config_fn": "evaluate_config of start(strategy, grid, arrays, "
    "evaluate_config=...), or, for values that change, configure_evaluate of a class of your own",
    "initial_parameters": "the arrays of start(strategy, grid, arrays)",
    "accept_failures": "nothing: rounds go on without clients that fail, and end the run if all do",
    "inplace": "nothing: leave it out",
    "proximal_mu": "proximal_mu of FedProx: FedCurv(FedProx(proximal_mu=...), ...)",
}


def refuse_unknown_words(
    options: Iterable[str], own: Iterable[str], strategy: str = "FedCurv"
) -> None:
    """Raise a TypeError for options that FedAvg has not: what they are called now, or near words.

    Args:
        options: names that are meant for FedAvg.
        own: names of the options beside them, which may have been meant.
        strategy: that they were given to.
    """
    options = list(options)
    if legacy := [name for name in options if name in _NOW]:
        raise TypeError(
            "expected options of flwr.serverapp.strategy.FedAvg, got words of Flower's legacy API: "
            + "; ".join(f"{name!r} is now {_NOW[name]}" for name in legacy)
        )
    known = [name for name in inspect.signature(FedAvg).parameters if name != "strategy"]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *own], n=2)
            raise TypeError(
                f"{strategy} and FedAvg have no option {name!r}; "
                + (f"is {' or '.join(near)} meant?" if near else f"FedAvg's are {', '.join(known)}")
            )


def refuse_legacy_strategy(strategy: object) -> None:
    """Raise a TypeError for what is no strategy of the Message API."""
    if isinstance(strategy, Strategy):
        return
    if isinstance(strategy, type):
        raise TypeError(f"expected a strategy, got the class {strategy.__name__}; construct it")
    kind = type(strategy)
    raise TypeError(
        f"expected a strategy of flwr.serverapp.strategy, got {kind.__module__}.{kind.__qualname__}"
        "; Flower's legacy strategies have successors of the same names there"
    )
