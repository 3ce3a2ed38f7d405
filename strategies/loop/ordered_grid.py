"""A view of a Grid in which nodes and replies come in the order of stable client ids.

Flower's node ids are random in each run, and replies arrive in any order: without this, one seed
neither samples the same clients nor sums them in the same order.
"""

import logging
import math
import time
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedcurv.strategies.flower_private import Run
from fedcurv.strategies.wire import records
from fedcurv.strategies.wire.arrays import reason_of

logger = logging.getLogger(__name__)

_QUERY_TIMEOUT_S = 300.0
# for a node that has answered before: of a dead one Flower says so within a minute, and one that
# lives may take as long to begin a process under load
_SECOND_QUERY_TIMEOUT_S = 120.0
# how often to look for nodes that are waited for, and how often to say so
_LOOK_S, _SAY_S = 0.2, 30.0
# how long to wait between two looks for a reply: doubled from the first to the second
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 1.0


class NodesMissing(TimeoutError):
    """Fewer nodes are connected than the strategy wants, or the caller."""


@runtime_checkable
class RepliesOneByOne(Protocol):
    """A Grid that can hand out replies before all are there."""

    def replies(self, messages: Sequence[Message], *, timeout: float | None) -> Iterator[Message]:
        """Send the messages and yield the replies in their order, without those that are late."""
        ...


def require_number_or_ids(wanted: object) -> None:
    """Raise a TypeError unless nodes can be waited for so: by number, or by clients' ids."""
    if isinstance(wanted, int):
        return
    ids = wanted if isinstance(wanted, Collection) and not isinstance(wanted, str) else [None]
    if not all(isinstance(client_id, str) for client_id in ids):
        raise TypeError(
            "wait_for_nodes: expected a number, or a list of client ids, which are texts, got "
            f"{wanted!r:.80}"
        )


class OrderedGrid(Grid):
    """Asks every node once for its client id and sorts by it.

    Nodes that do not answer the question (an app without the query) are named after their node id
    and come last. Of several nodes that say that they are the same client one takes part.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._client_ids: dict[int, str] = {}
        self._deadline = math.inf
        # nodes that take no part: namesakes of others, by reason, and those whose place was taken
        self._refused: dict[int, str] = {}
        self._replaced: set[int] = set()

    def client_id(self, node_id: int) -> str:
        """Return a node's stable id, as far as it is known."""
        return self._client_ids.get(node_id, f"node-{node_id}")

    def known(self) -> dict[int, str]:
        """Return the stable ids of all nodes that have been asked."""
        return dict(self._client_ids)

    def get_node_ids(self) -> list[int]:
        """Return the connected nodes in the order of their client ids, one for each client.

        Raises:
            NodesMissing: if a strategy still asks after the time that :meth:`sampling` gave it.
        """
        nodes = sorted(self._usable(), key=self._order)
        if time.monotonic() > self._deadline:
            raise NodesMissing(
                f"the strategy waits for more nodes than are connected: {self._named(nodes)}; "
                "start the missing ones, or lower its min_available_nodes and min_train_nodes"
            )
        return nodes

    def refused(self) -> dict[int, str]:
        """Return why connected nodes take no part, by node id."""
        connected = set(self._grid.get_node_ids())
        return {node: reason for node, reason in self._refused.items() if node in connected}

    def _usable(self) -> list[int]:
        left_out = self._replaced | self._refused.keys()
        return [node for node in self._grid.get_node_ids() if node not in left_out]

    @contextmanager
    def sampling(self, timeout: float) -> Iterator[None]:
        """Bound how long a strategy may wait for nodes: by themselves Flower's wait for ever."""
        self._deadline = time.monotonic() + timeout
        try:
            yield
        finally:
            self._deadline = math.inf

    def wait_for(self, wanted: int | Collection[str], timeout: float) -> None:
        """Wait for a number of nodes, or for clients by their ids, and say meanwhile who is there.

        Raises:
            NodesMissing: if they do not connect in time.
        """
        deadline, said = time.monotonic() + timeout, -math.inf
        while missing := self._missing(wanted):
            now = time.monotonic()
            nodes = self.get_node_ids()
            if now >= deadline:
                expected = f"{wanted} nodes" if isinstance(wanted, int) else "all clients"
                raise NodesMissing(
                    f"expected {expected} within {timeout:g} s, got {self._named(nodes)}, and not "
                    f"{missing}; start the missing ones, or change wait_for_nodes"
                )
            if now >= said + _SAY_S:
                self.learn_client_ids()
                logger.warning("waiting for %s; connected: %s", missing, self._named(nodes))
                said = now
            time.sleep(min(_LOOK_S, max(0.0, deadline - now)))

    def _missing(self, wanted: int | Collection[str]) -> str:
        """Return who is missing, in words; nothing if nobody is."""
        if isinstance(wanted, int):
            number = wanted - len(self._usable())
            return f"{number} more" if number > 0 else ""
        self.learn_client_ids()
        connected = {self.client_id(node) for node in self._usable()}
        missing = sorted(set(wanted) - connected, key=records.client_id_order)
        return ", ".join(f"client {client_id}" for client_id in missing)

    def _named(self, nodes: Sequence[int]) -> str:
        known = ", ".join(self.client_id(node) for node in nodes[:10])
        more = f" and {len(nodes) - 10} more" if len(nodes) > 10 else ""
        return f"{len(nodes)} ({known}{more})" if nodes else "none"

    def learn_client_ids(self) -> None:
        """Ask the connected nodes that have not been asked yet."""
        unknown = {node for node in self._grid.get_node_ids() if node not in self._client_ids}
        if unknown:
            self._ask(unknown)
        self._settle_namesakes(unknown)

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

    def _ask(self, node_ids: Collection[int]) -> None:
        told = self._ids_told_by(node_ids, _QUERY_TIMEOUT_S)
        for node_id in sorted(node_ids):
            self._client_ids[node_id] = told.get(node_id, f"node-{node_id}")

    def _settle_namesakes(self, asked: Set[int]) -> None:
        """Let one of the nodes that say that they are the same client be it: the first.

        If it does not answer any more, the node that came after it was started in its place.
        """
        by_client: dict[str, list[int]] = {}
        connected = set(self._grid.get_node_ids()) - self._replaced
        for node, client_id in self._client_ids.items():  # in the order in which they came
            if node in connected:
                by_client.setdefault(client_id, []).append(node)
        refused = {}
        for client_id, nodes in by_client.items():
            was_first = nodes[0] not in asked and not asked.isdisjoint(nodes)
            if len(nodes) > 1 and was_first and not self._answers(nodes[0], client_id):
                logger.warning(
                    "node %d takes the place of node %d, which does not answer, as client %s",
                    nodes[1],
                    nodes[0],
                    client_id,
                )
                self._replaced.add(nodes.pop(0))
            for node in nodes[1:]:
                refused[node] = (
                    f"several nodes say that they are client {client_id}, here {nodes[0]} and "
                    f"{node}: the first takes part; give each its own client-id in its node "
                    "configuration"
                )
        for node, reason in refused.items():
            if node not in self._refused:
                logger.error("refused node %d: %s", node, reason)
        self._refused = refused

    def _answers(self, node: int, client_id: str) -> bool:
        return self._ids_told_by([node], _SECOND_QUERY_TIMEOUT_S).get(node) == client_id

    def _ids_told_by(self, node_ids: Iterable[int], timeout: float) -> dict[int, str]:
        questions = [
            Message(RecordDict(), dst_node_id=node_id, message_type=records.CLIENT_ID_QUERY)
            for node_id in node_ids
        ]
        told = {}
        for reply in self._grid.send_and_receive(questions, timeout=timeout):
            try:
                client_id = records.unpack_client_id(reply.content) if reply.has_content() else None
            except Exception as error:  # whatever it holds, the node has a number to go by
                logger.warning(
                    "node-%d does not tell its client id: %s",
                    reply.metadata.src_node_id,
                    reason_of(error),
                )
                continue
            if client_id:
                told[reply.metadata.src_node_id] = client_id
        return told

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
