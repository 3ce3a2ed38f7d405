"""A method with two sides in one file: a strategy, and its term in the clients' objective.

Clients train under an L1 term, which pulls small weights to nought. The server lets it grow from
round to round, and learns from each reply how many weights are next to nought.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedcurv.clients import LocalTerm, TrainingSettings

NAME = "sparse"
SMALL = 1e-2


class SparseAverage(FedAvg):
    """FedAvg whose clients train under strength·‖w‖₁, with a strength that grows over rounds."""

    def __init__(self, growth: float = 1e-4, **options: object) -> None:
        super().__init__(**options)
        self.growth = growth

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Name the term, and tell its strength in this round."""
        config["local-term"] = NAME
        config["sparse-strength"] = self.growth * server_round
        return super().configure_train(server_round, arrays, config, grid)


@dataclass(frozen=True)
class SparseTerm(LocalTerm):
    """strength·‖w‖₁ of all trainable parameters."""

    strength: float

    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, settings: TrainingSettings
    ) -> object:
        """Add the term's gradient before every step."""
        parameters = [p for p in model.parameters() if p.requires_grad]

        @torch.no_grad()
        def shrink(*_: object) -> None:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.sign(), alpha=self.strength)

        return optimizer.register_step_pre_hook(shrink)

    def report(self, content: RecordDict, model: nn.Module) -> None:
        """Tell the share of weights that are next to nought, in [0, 1]."""
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        content.metric_records["metrics"]["small-share"] = float(
            (weights.abs() < SMALL).float().mean()
        )


def make_term(message: Message, context: Context, model: nn.Module) -> SparseTerm:
    """Return the term of the round that a message begins."""
    return SparseTerm(float(message.content.config_records["config"]["sparse-strength"]))
