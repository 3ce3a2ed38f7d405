"""SCAFFOLD around any Flower strategy that averages (arXiv 1910.06378, option II)."""

from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedcurv.strategies.remembering import NOT_AROUND_MEANS, Remembering
from fedcurv.strategies.wire.methods import CONTROL, Answer, pack_control


class Scaffold(Remembering):
    """Takes the clients' drift off their gradients, by control variates.

    Client i of N steps y ← y − lr (g − c_i + c), K times from x, and then has
    c_i⁺ = c_i − c + (x − y)/(K lr). The server averages, x ← x + mean(y − x), and has
    c ← c + (1/N) Σ (c_i⁺ − c_i). It forms c_i⁺ − c_i = (x − y)/(K lr) − c from the reply's arrays
    and K lr, so that a reply is as large as FedAvg's; c travels to the clients beside the model.

    For a step of the server's own, η, wrap ``FedAvgM(server_learning_rate=η)``.

    Args:
        strategy: to wrap; by default ``FedAvg(**fedavg_options)``.
        num_clients: N, clients that never come included; None for as many as have been connected
            at once.
        max_examples: the largest weight that a reply may have, see ``FedCurv``.
        **fedavg_options: ``FedAvg``'s own, only without ``strategy``.

    Raises:
        ValueError: if ``num_clients`` is not an integer >= 1.
        TypeError: for strategies that leave clients out or whose clients have another term, and as
            ``FedCurv`` does.

    Source: arXiv 1910.06378. That every client counts once, whatever its number of examples, is the
    paper's; that K lr is the sum of the steps' learning rates, so that these may differ, is ours.
    """

    method = "scaffold"

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        num_clients: int | None = None,
        max_examples: float | None = None,
        **fedavg_options: Any,
    ) -> None:
        self._control: dict[str, Tensor] = {}
        super().__init__(
            strategy,
            num_clients=num_clients,
            unfit=NOT_AROUND_MEANS,
            max_examples=max_examples,
            fedavg_options=fedavg_options,
        )

    def _begin_round(self, grid: Grid) -> None:
        super()._begin_round(grid)
        # as clients get it, so that both sides reckon with the same numbers
        self._control = {name: mean.float() for name, mean in self._sums.mean().items()}

    def _records_for_all(self) -> Mapping[str, ArrayRecord]:
        return {CONTROL: pack_control(self._control)} if self._control else {}

    def _change(self, name: str, way: Tensor, answer: Answer) -> Tensor:
        change = way / -answer.progress
        return change - self._control[name].double() if self._control else change
