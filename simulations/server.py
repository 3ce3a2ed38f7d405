"""The experiments' ServerApp: one strategy, evaluated on the test set after each round."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from fedcurv.clients.training import InMemoryBatches, evaluate
from fedcurv.simulations.client import describe_task, load_data, make_model
from fedcurv.strategies import start
from fedcurv.strategies.rounds import RoundRecord

_EVALUATION_BATCH_SIZE = 1024


@dataclass
class History:
    """What happened in one strategy's run.

    Attributes:
        strategy: its name in the configuration.
        rounds: in order, the evaluation before the first round included.
    """

    strategy: str
    rounds: list[RoundRecord] = field(default_factory=list)


def make_server_app(
    config: dict[str, Any],
    strategy: Strategy,
    history: History,
    on_round: Callable[[RoundRecord], None],
) -> ServerApp:
    """Return a ServerApp that runs the strategy and fills ``history``.

    Args:
        config: resolved.
        strategy: to run.
        history: gets every round.
        on_round: called after each round, for a progress bar.
    """
    server_app = ServerApp()

    def note(record: RoundRecord) -> None:
        history.rounds.append(record)
        on_round(record)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        data = load_data(config)
        # all strategies start from the same weights
        with torch.random.fork_rng():
            torch.manual_seed(config["seed"])
            model = make_model(config, data)
        inputs, targets = data.test_samples()
        batches = InMemoryBatches(inputs, targets, _EVALUATION_BATCH_SIZE)

        def evaluate_on_test_set(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            model.load_state_dict(arrays.to_torch_state_dict())
            loss, accuracy, _ = evaluate(model, batches)
            return MetricRecord({"loss": loss, "accuracy": accuracy})

        start(
            strategy,
            grid,
            ArrayRecord(model.state_dict()),
            num_rounds=config["num_rounds"],
            timeout=config["round_timeout"],
            train_config=describe_task(config),
            evaluate_fn=evaluate_on_test_set,
            wait_for_nodes=config["num_clients"],
            seed=config["seed"],
            on_round=note,
        )

    return server_app
