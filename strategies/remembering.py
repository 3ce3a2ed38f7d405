"""Methods whose clients remember something, and whose server knows the sum of it."""

import dataclasses
import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    Bulyan,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    MultiKrum,
    Strategy,
)
from torch import Tensor

from fedcurv.parameters import listed
from fedcurv.strategies.client_sums import ClientSums
from fedcurv.strategies.replies.answered import Reply, widened
from fedcurv.strategies.two_sided import NOT_AROUND, TwoSided, Unfit
from fedcurv.strategies.wire.arrays import read_array
from fedcurv.strategies.wire.methods import Answer, State, Told

logger = logging.getLogger(__name__)

_CHOOSES = "it leaves clients out, which the sum over all of them does not"
NOT_AROUND_MEANS: Unfit = {
    **NOT_AROUND,
    FedMedian: _CHOOSES,
    FedTrimmedAvg: _CHOOSES,
    MultiKrum: _CHOOSES,
    Bulyan: _CHOOSES,
    FedProx: "its term would enter what the clients remember",
}


class Remembering(TwoSided):
    """Knows the sum of what clients remember, and which of its states each client has in it.

    A client is told which one, begins from it, and says so. Where it has lost that state, the sum
    holds something that nobody knows any more: then all clients begin anew at zero, and the log
    says whose fault it was. Every client counts once.

    Args:
        strategy: see :class:`TwoSided`, as for what is not said here.
        num_clients: how many clients there are; None for as many as have been connected at once.
        unfit: see there.
        max_examples: see there.
        fedavg_options: see there.
    """

    counts_alike = True

    def __init__(
        self,
        strategy: Strategy | None,
        *,
        num_clients: int | None,
        unfit: Unfit,
        max_examples: float | None,
        fedavg_options: Mapping[str, Any],
    ) -> None:
        self._sums = ClientSums(num_clients)
        self._clients_of_nodes: dict[int, str] = {}
        super().__init__(
            strategy, unfit=unfit, max_examples=max_examples, fedavg_options=fedavg_options
        )

    def _begin_round(self, grid: Grid) -> None:
        self._sums.see(grid)

    def _told_to(self, node: int, told: Told) -> Told:
        # what a node said with its last reply, before what it said when it was asked
        client = self._clients_of_nodes.get(node, self._known.get(node, f"node-{node}"))
        return dataclasses.replace(
            told, known=self._sums.known(client), saved=self._sums.saved(client)
        )

    def _check_state(self, client: str, node: int, answer: Answer) -> None:
        self._clients_of_nodes[node] = client
        self._sums.require_own_state(client, answer)

    def _use(
        self, server_round: int, replies: Sequence[Reply]
    ) -> Callable[[ArrayRecord], ArrayRecord]:
        if lost := [r.client for r in replies if self._sums.has_lost(r.client, r.answer)]:
            self._sums.begin_anew()
            logger.warning(
                "round %d: client %s has lost what it remembered, without which the sum over all "
                "clients is not right: %s begins anew, at zero at every client",
                server_round,
                listed(lost),
                type(self).__name__,
            )
            return self._after(server_round)
        start = {name: _double(widened(read_array(name, self._sent[name]))) for name in self._names}
        for reply in replies:
            change = {
                name: self._change(name, _double(reply.read(name)) - start[name], reply.answer)
                for name in self._names
            }
            self._sums.add(reply.client, State(server_round, reply.answer.message_id), change)
        return self._after(server_round)

    @abstractmethod
    def _change(self, name: str, way: Tensor, answer: Answer) -> Tensor:
        """Return by how much what a client remembers for a parameter has changed.

        Args:
            name: of the parameter.
            way: from the model that was sent to the client's own, in double precision.
            answer: the client's.
        """

    def _after(self, server_round: int) -> Callable[[ArrayRecord], ArrayRecord]:
        """Return what is to be done with the clients' mean."""
        return lambda arrays: arrays

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold; clients are told to keep what belongs to it."""
        return {**super().state_dict(), **self._sums.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned; a ValueError changes nothing."""
        sums = ClientSums()
        sums.load_state_dict(state)  # raises first
        super().load_state_dict(state)
        self._sums.load_state_dict(state)


def _double(numbers: Any) -> Tensor:
    return torch.from_numpy(numbers)
