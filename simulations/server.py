"""The experiments' ServerApp: one strategy, evaluated on the test set after each round."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedcurv.clients.training import InMemoryBatches, evaluate
from fedcurv.global_state import seeded
from fedcurv.simulations.client import described_data, make_model
from fedcurv.simulations.data import ImageData
from fedcurv.simulations.device import DeviceData, load_test_set
from fedcurv.simulations.task_description import describe_task
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

    def note(self, record: RoundRecord) -> None:
        """Add a round, in the place of what an interrupted run made of it."""
        self.rounds = [r for r in self.rounds if r.server_round < record.server_round]
        self.rounds.append(record)


def make_server_app(
    config: dict[str, Any],
    strategy: Strategy,
    history: History,
    watchers: Sequence[Callable[[RoundRecord], object]],
    **start_options: Any,
) -> ServerApp:
    """Return a ServerApp that runs the strategy and fills ``history``.

    Args:
        config: resolved.
        strategy: to run.
        history: gets every round.
        watchers: called after each round, for a progress bar.
        **start_options: of ``fedcurv.strategies.start``.
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
        start(
            strategy,
            grid,
            ArrayRecord(model.state_dict()),
            num_rounds=config["num_rounds"],
            timeout=config["round_timeout"],
            train_config=task,
            evaluate_config=ConfigRecord(dict(task)),
            evaluate_fn=None if test_samples is None else _evaluation(model, test_samples, device),
            wait_for_nodes=config["num_clients"],
            seed=config["seed"],
            on_round=[history.note, *watchers],
            **start_options,
        )

    return server_app


def _test_samples(
    config: Mapping[str, Any], data: ImageData | DeviceData
) -> tuple[Tensor, Tensor] | None:
    """Return the server's test set, or None if it has none."""
    if isinstance(data, ImageData):
        return data.test_samples()
    return load_test_set(config["data"]["test"], data)


def _device(config: Mapping[str, Any]) -> torch.device:
    """Return the server's own GPU if it has one, unless the clients are told to use none."""
    usable = config["client"]["device"] != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if usable else "cpu")


def _evaluation(
    model: nn.Module, samples: tuple[Tensor, Tensor], device: torch.device
) -> Callable[[int, ArrayRecord], MetricRecord]:
    model.to(device)
    inputs, targets = samples
    batches = InMemoryBatches(inputs.to(device), targets.to(device), _EVALUATION_BATCH_SIZE)

    def evaluate_on_test_set(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy, _ = evaluate(model, batches)
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    return evaluate_on_test_set
