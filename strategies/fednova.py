"""FedNova around any Flower strategy that averages (arXiv 2007.07481)."""

from collections.abc import Callable, Sequence
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedcurv.strategies.replies.answered import Reply, narrowed, widened
from fedcurv.strategies.two_sided import NOT_AROUND, TwoSided
from fedcurv.strategies.wire.arrays import read_array


class FedNova(TwoSided):
    """Averages the clients' ways per step, so that who steps more often does not count more.

    x ← x − τ Σ p_i (x − y_i)/τ_i with τ = Σ p_i τ_i; p_i are the shares in the examples of the
    round's repliers. τ_i is how far client i's optimizer goes under gradients of 1: its steps of
    SGD, each times its learning rate; with momentum, and with FedProx's term, as long as a gradient
    goes on to act. Weight decay is part of the objective. What is no parameter (BatchNorm's
    statistics) is averaged.

    A reply goes to the wrapped strategy as x − (τ/τ_i)(x − y_i): where all τ_i are equal that is
    the wrapped strategy bit for bit.

    Args:
        strategy: to wrap; by default ``FedAvg(**fedavg_options)``. Around ``FedProx`` the term
            counts in τ_i.
        max_examples: the largest weight that a reply may have, see ``FedCurv``.
        **fedavg_options: ``FedAvg``'s own, only without ``strategy``.

    Raises:
        TypeError: for q-FedAvg, trees and strategies whose clients have another term, and as
            ``FedCurv`` does.

    Source: arXiv 2007.07481. That τ_i has the learning rates in it, so that they may differ, is
    ours.
    """

    method = "fednova"

    def __init__(
        self,
        strategy: Strategy | None = None,
        *,
        max_examples: float | None = None,
        **fedavg_options: Any,
    ) -> None:
        super().__init__(
            strategy, unfit=NOT_AROUND, max_examples=max_examples, fedavg_options=fedavg_options
        )

    def _use(
        self, server_round: int, replies: Sequence[Reply]
    ) -> Callable[[ArrayRecord], ArrayRecord]:
        total = sum(reply.weight for reply in replies)
        first = replies[0].answer.progress
        # of differences to the first: where all are equal it is that one to the bit
        above = sum(reply.weight * (reply.answer.progress - first) for reply in replies)
        effective = first + above / total
        for reply in replies:
            factor = effective / reply.answer.progress
            if factor != 1.0:
                changed = {}
                for name in reply.answer.parameters:
                    start = widened(read_array(name, self._sent[name]))
                    way = reply.read(name) - start
                    changed[name] = narrowed(start + factor * way, self._sent[name])
                reply.replace(changed)
        return lambda arrays: arrays
