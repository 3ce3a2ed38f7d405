"""The experiments' ServerApp: one strategy, evaluated on the test set after each round."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedcurv.global_state import seeded
from fedcurv.simulations.build import described_data, make_model
from fedcurv.simulations.data.owner import DeviceData, load_test_set
from fedcurv.simulations.data.samples import DataSet
from fedcurv.simulations.federation.evaluation import Evaluation
from fedcurv.simulations.federation.task_description import describe_task
from fedcurv.simulations.parts.metrics import metric_function
from fedcurv.simulations.parts.tasks import metric_of
from fedcurv.simulations.reports.history import History
from fedcurv.strategies import start
from fedcurv.strategies.loop.rounds import RoundRecord


class KeepsClients(Protocol):
    """Saves what the clients of a simulation remember, and gives it back."""

    def restore_clients(self, grid: Grid) -> None:
        """Give the clients back what they knew after the last saved round."""
        ...

    def save_clients(self, grid: Grid, server_round: int) -> None:
        """Save what they know after a round, before the server's state is saved."""
        ...


def make_server_app(
    config: dict[str, Any],
    strategy: Strategy,
    history: History,
    watchers: Sequence[Callable[[RoundRecord], object]],
    *,
    clients: KeepsClients | None = None,
    **start_options: Any,
) -> ServerApp:
    """Return a ServerApp that runs the strategy and fills ``history``.

    Args:
        config: resolved.
        strategy: to run.
        history: gets every round.
        watchers: called after each round, for a progress bar.
        clients: keeps what they remember, so that the run can go on later.
        **start_options: of ``fedcurv.strategies.start``.

    The ServerApp raises Diverged after the round in which the model's numbers are not finite any
    more, or its loss on the server's test set is not or is 1,000 times that of guessing.
    """
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        data = described_data(config)
        test_samples = _test_samples(config, data)
        # all strategies start from the same weights
        with seeded(config["seed"]):
            model = make_model(config, data)
        task, device = describe_task(config), _device(config)
        evaluate = None
        if test_samples is not None:
            metric, function = metric_of(config), metric_function(config.get("metric"))
            evaluate = Evaluation(
                model,
                test_samples,
                data.task,
                num_outputs=data.num_outputs,
                metric=metric,
                function=function,
                device=device,
            )
        if clients is not None:
            clients.restore_clients(grid)

        def evaluate_and_save(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics = None if evaluate is None else evaluate(server_round, arrays)
            if clients is not None:
                clients.save_clients(grid, server_round)
            return metrics

        start(
            strategy,
            grid,
            ArrayRecord(model.state_dict()),
            num_rounds=config["num_rounds"],
            timeout=config["round_timeout"],
            train_config=task,
            evaluate_config=ConfigRecord(dict(task)),
            evaluate_fn=evaluate_and_save,
            wait_for_nodes=config["num_clients"],
            seed=config["seed"],
            on_round=[history.note, *watchers, *([] if evaluate is None else [evaluate.check])],
            **start_options,
        )

    return server_app


def _test_samples(
    config: Mapping[str, Any], data: DataSet | DeviceData
) -> tuple[Tensor, Tensor] | None:
    """Return the server's test set, or None if it has none."""
    if isinstance(data, DataSet):
        return data.test_samples()
    return load_test_set(config["data"]["test"], data)


def _device(config: Mapping[str, Any]) -> torch.device:
    """Return the server's own GPU if it has one, unless the clients are told to use none."""
    usable = config["client"]["device"] != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if usable else "cpu")
