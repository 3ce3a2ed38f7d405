"""Sum of what clients remember, formed from how their models moved: nothing of it is sent."""

import logging
from collections.abc import Mapping
from typing import Any

from flwr.serverapp import Grid
from torch import Tensor

from fedcurv.strategies.wire.arrays import pack_tensors, unpack_floats
from fedcurv.strategies.wire.methods import Answer, State

logger = logging.getLogger(__name__)


class ClientSums:
    """Σ_k s_k over all clients, and which of its states each of them has in it.

    Args:
        num_clients: how many clients there are, those that never come included; None for as many
            as have been connected at once.

    Raises:
        ValueError: if that is not an integer >= 1.
    """

    def __init__(self, num_clients: int | None = None) -> None:
        is_number = isinstance(num_clients, int) and not isinstance(num_clients, bool)
        if num_clients is not None and (not is_number or num_clients < 1):
            raise ValueError(
                f"num_clients must be an integer >= 1, or None for as many as connect, got "
                f"{num_clients!r}"
            )
        self._given, self._most, self._told = num_clients, 0, False
        self._total: dict[str, Tensor] = {}
        self._latest: dict[str, State] = {}
        self._saved: dict[str, State] = {}

    def see(self, grid: Grid) -> None:
        """Count the clients that are connected."""
        if self._given is None:
            self._most = max(self._most, len(list(grid.get_node_ids())))

    @property
    def number(self) -> int:
        """How many clients there are."""
        number = self._most if self._given is None else self._given
        if self._given is not None and len(self._latest) > number and not self._told:
            self._told = True
            logger.warning(
                "num_clients=%d, but %d clients have taken part, %s among them: that many are "
                "counted; were nodes started anew without a client-id of their own?",
                number,
                len(self._latest),
                list(self._latest)[-1],
            )
        return max(number, len(self._latest), 1)

    def known(self, client: str) -> State | None:
        """Return which of a client's states is in the sum."""
        return self._latest.get(client)

    def saved(self, client: str) -> State | None:
        """Return which was when the latest checkpoint was saved."""
        return self._saved.get(client)

    def require_own_state(self, client: str, answer: Answer) -> None:
        """Raise a ValueError for a client that began from a state that it was not told of."""
        known = self.known(client)
        if answer.began_from and (known is None or answer.began_from != known.message_id):
            raise ValueError(
                "expected training that began from the client's state in the server's sum, or from "
                "zero, got another state; does a mod on the way change messages?"
            )

    def has_lost(self, client: str, answer: Answer) -> bool:
        """Return whether a client began at zero though the sum holds a state of it."""
        return self.known(client) is not None and not answer.began_from

    def add(self, client: str, state: State, change: Mapping[str, Tensor]) -> None:
        """Add how what a client remembers has changed by this state, in double precision."""
        for name, one in change.items():
            total = self._total.get(name)
            self._total[name] = one.clone() if total is None else total.add_(one)
        self._latest[client] = state

    def mean(self) -> dict[str, Tensor]:
        """Return the mean over all clients, in double precision; nothing while it is zero."""
        number = self.number
        return {name: total / number for name, total in self._total.items()}

    def begin_anew(self) -> None:
        """Forget everything: all clients begin at zero."""
        self._total, self._latest = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold; clients are told to keep what belongs to it."""
        self._saved = dict(self._latest)
        return {
            "sum": pack_tensors(self._total) if self._total else None,
            "latest": {
                client: [state.server_round, state.message_id]
                for client, state in self._latest.items()
            },
            "most-clients": self._most,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned.

        Raises:
            ValueError: if it cannot have been returned; nothing is changed.
        """
        latest, most = {}, state["most-clients"]
        for client, (server_round, message_id) in state["latest"].items():
            if type(server_round) is not int or not isinstance(message_id, str):
                raise ValueError(f"expected a round and a message of client {client}")
            latest[client] = State(server_round, message_id)
        if type(most) is not int or most < 0:
            raise ValueError(f"expected a number of clients, got {most!r}")
        total = {} if state["sum"] is None else unpack_floats(state["sum"])
        if not all(bool(tensor.isfinite().all()) for tensor in total.values()):
            raise ValueError("expected finite sums")
        self._total = {name: tensor.double().clone() for name, tensor in total.items()}
        self._latest, self._saved, self._most = latest, dict(latest), most
