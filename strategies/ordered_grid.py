"""A view of a Grid in which nodes and replies come in the order of stable client ids.

Flower's node ids are random in each run, and replies arrive in any order: without this, one seed
neither samples the same clients nor sums them in the same order.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedcurv.strategies import records
from fedcurv.strategies.flower_private import Run

_QUERY_TIMEOUT_S = 300.0
# how long to wait between two looks for a reply: doubled from the first to the second
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 1.0


@runtime_checkable
class RepliesOneByOne(Protocol):
    """A Grid that can hand out replies before all are there."""

    def replies(self, messages: Sequence[Message], *, timeout: float | None) -> Iterator[Message]:
        """Send the messages and yield the replies in their order, without those that are late."""
        ...


class OrderedGrid(Grid):
    """Asks every node once for its client id and sorts by it.

    Nodes that do not answer the question (an app without the query) are named after their node id
    and come last.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._client_ids: dict[int, str] = {}

    def client_id(self, node_id: int) -> str:
        """Return a node's stable id, as far as it is known."""
        return self._client_ids.get(node_id, f"node-{node_id}")

    def get_node_ids(self) -> list[int]:
        """Return the connected nodes in the order of their client ids."""
        return sorted(self._grid.get_node_ids(), key=self._order)

    def learn_client_ids(self) -> None:
        """Ask the connected nodes that have not been asked yet."""
        unknown = [node for node in self._grid.get_node_ids() if node not in self._client_ids]
        if unknown:
            self._ask(unknown)

    def replies(self, messages: Iterable[Message], *, timeout: float | None) -> Iterator[Message]:
        """Send the messages and yield the replies in the order of client ids, one by one.

        A reply is fetched when it is its turn. One that comes early stays where it is, outside of
        this process, so that no more than one reply need be held at a time.

        Args:
            messages: to any nodes.
            timeout: seconds; what has not come by then is left out. None waits for all.
        """
        ordered = sorted(messages, key=lambda m: self._order(m.metadata.dst_node_id))
        if isinstance(self._grid, RepliesOneByOne):
            yield from self._grid.replies(ordered, timeout=timeout)
            return
        pushed = set(self._grid.push_messages(ordered))
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        for message_id in [m.metadata.message_id for m in ordered]:
            if message_id in pushed:
                yield from self._reply_to(message_id, deadline)

    def _reply_to(self, message_id: str, deadline: float) -> Iterable[Message]:
        wait = _FIRST_WAIT_S
        while not (found := list(self._grid.pull_messages([message_id]))):
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            time.sleep(min(wait, left))
            wait = min(2 * wait, _LONGEST_WAIT_S)
        return found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send and return the replies in the order of their client ids."""
        return list(self.replies(messages, timeout=timeout))

    def _order(self, node_id: int) -> tuple[tuple[int, int, str], int]:
        return records.client_id_order(self.client_id(node_id)), node_id

    def _ask(self, node_ids: list[int]) -> None:
        questions = [
            Message(RecordDict(), dst_node_id=node_id, message_type=records.CLIENT_ID_QUERY)
            for node_id in node_ids
        ]
        for reply in self._grid.send_and_receive(questions, timeout=_QUERY_TIMEOUT_S):
            if reply.has_content() and (client_id := records.unpack_client_id(reply.content)):
                self._client_ids[reply.metadata.src_node_id] = client_id
        for node_id in node_ids:
            self._client_ids.setdefault(node_id, f"node-{node_id}")

    # the rest is handed on

    def set_run(self, run: Run) -> None:
        """Set the run of the grid behind."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run of the grid behind."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message with the grid behind."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages to the grid behind."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull messages from the grid behind."""
        return self._grid.pull_messages(message_ids)
