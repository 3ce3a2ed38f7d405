"""FedDyn around a strategy that takes the clients' mean (arXiv 2111.04263)."""

import math
from collections.abc import Callable
from typing import Any

from flwr.app import Array, ArrayRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi, Strategy
from torch import Tensor

from fedcurv.strategies.remembering import NOT_AROUND_MEANS, Remembering
from fedcurv.strategies.replies.answered import narrowed, widened
from fedcurv.strategies.two_sided import Unfit
from fedcurv.strategies.wire.arrays import read_array
from fedcurv.strategies.wire.methods import Answer

_OWN_STEP = "its own step would go by the mean, which FedDyn moves"
_NOT_AROUND: Unfit = {
    **NOT_AROUND_MEANS,
    **dict.fromkeys((FedAdam, FedYogi, FedAdagrad, FedAvgM), _OWN_STEP),
}


class FedDyn(Remembering):
    """Gives every client a linear term that grows until all agree on one optimum.

    Client k minimises L_k(θ) − ⟨g_k, θ⟩ + (α/2)‖θ − θ_t‖² from θ_t and then has
    g_k ← g_k − α(θ_k − θ_t). The server has h ← h − α (1/m) Σ (θ_k − θ_t) over the round's repliers
    with m all clients, which is the mean of all g_k, and sets θ = mean θ_k − h/α. Messages and
    replies are FedAvg's: g_k stays with the client, and the server forms its change from θ_k.

    Args:
        strategy: to wrap; by default ``FedAvg(**fedavg_options)``.
        alpha: α > 0; the paper takes 0.1, 0.01 and 0.001.
        num_clients: m, clients that never come included; None for as many as have been connected at
            once.
        max_examples: the largest weight that a reply may have, see ``FedCurv``.
        **fedavg_options: ``FedAvg``'s own, only without ``strategy``.

    Raises:
        ValueError: if ``alpha`` is not above 0 and finite, or ``num_clients`` not an integer >= 1.
        TypeError: for strategies with a step of their own, that leave clients out or whose clients
            have another term, and as ``FedCurv`` does.

    Source: arXiv 2111.04263. That every client counts once, whatever its number of examples, is the
    paper's.
    """

    method = "feddyn"

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        alpha: float,
        num_clients: int | None = None,
        max_examples: float | None = None,
        **fedavg_options: Any,
    ) -> None:
        self.alpha = self._number = _checked(alpha)
        super().__init__(
            strategy,
            num_clients=num_clients,
            unfit=_NOT_AROUND,
            max_examples=max_examples,
            fedavg_options=fedavg_options,
        )

    def _begin_round(self, grid: Grid) -> None:
        super()._begin_round(grid)
        self._number = _checked(self.alpha)

    def _change(self, name: str, way: Tensor, answer: Answer) -> Tensor:
        return -self._number * way

    def _after(self, server_round: int) -> Callable[[ArrayRecord], ArrayRecord]:
        alpha, mean = self._number, self._sums.mean()

        def moved(name: str, array: Array) -> Array:
            if name not in mean:
                return array
            numbers = widened(read_array(name, array)) - mean[name].numpy() / alpha
            return narrowed(numbers, self._sent[name])

        return lambda arrays: ArrayRecord({n: moved(n, a) for n, a in arrays.items()})


def _checked(alpha: float) -> float:
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not is_number or not 0.0 < alpha < math.inf:
        raise ValueError(
            f"alpha must be > 0 and finite, got {alpha!r}; the paper takes 0.1, 0.01 and 0.001"
        )
    return float(alpha)
