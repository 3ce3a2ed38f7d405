"""An in-process Grid: any ServerApp and ClientApp without Ray, in a fixed order."""

import copy
import itertools
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedcurv.clients.errors import SEND_ERRORS
from fedcurv.clients.state import forget_others
from fedcurv.strategies.flower_private import (
    CLIENT_APP_RAISED_EXCEPTION,
    Run,
    empty_run,
    set_message_id,
    task_identity,
)
from fedcurv.strategies.wire.records import rounds_told_of

_SERVER_NODE_ID = 1
_FIRST_NODE_ID = 1000


def run_local(
    server_app: ServerApp,
    client_app: ClientApp,
    num_nodes: int,
    *,
    run_config: Mapping[str, Any] | None = None,
    run_id: int = 1,
    on_reply: Callable[[Message], object] = lambda message: None,
) -> None:
    """Run a federation in this process, one client after the other.

    Args:
        server_app: gets a :class:`LocalGrid`.
        client_app: handles every node's messages; what it raises becomes an error reply.
        num_nodes: >= 1; each gets ``partition-id``, ``num-partitions`` and ``send-errors``
            in its node configuration.
        run_config: of the ServerApp's and every ClientApp's context.
        run_id: of all contexts.
        on_reply: called after each message that was handled.

    Raises:
        ValueError: if ``num_nodes`` < 1.
        Exception: whatever the ServerApp raises.
    """
    if num_nodes < 1:
        raise ValueError(f"num_nodes must be >= 1, got {num_nodes}")
    grid = LocalGrid(client_app, num_nodes, run_config=run_config, run_id=run_id, on_reply=on_reply)
    run_on(grid, server_app, run_config=run_config, run_id=run_id)


def run_on(
    grid: Grid,
    server_app: ServerApp,
    *,
    run_config: Mapping[str, Any] | None = None,
    run_id: int = 1,
) -> None:
    """Run a ServerApp on a Grid of this process; see :func:`run_local`."""
    context = Context(run_id, _SERVER_NODE_ID, {}, RecordDict(), dict(run_config or {}))
    with task_identity(run_id=run_id, node_id=_SERVER_NODE_ID):
        server_app(grid, context)


class LocalGrid(Grid):
    """Handles each message at once, in this thread, with the node's own lasting Context.

    Messages and replies are copied on their way, so that no side can change what the other holds.

    Args:
        client_app: handles the messages.
        num_nodes: how many nodes there are; node i has ``partition-id`` i.
        run_config: of every node's context.
        run_id: of the run.
        on_reply: called after each message that was handled.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int,
        *,
        run_config: Mapping[str, Any] | None = None,
        run_id: int = 1,
        on_reply: Callable[[Message], object] = lambda message: None,
    ) -> None:
        self._client_app, self._on_reply = client_app, on_reply
        self._run = empty_run(run_id)
        # of this grid alone: nodes that remember on disk must not take a later grid's for these
        self._series, self._message_ids = uuid4().hex[:12], itertools.count(1)
        self._replies: dict[str, Message] = {}
        self._known: tuple[int, frozenset[int]] | None = None
        self.contexts = {
            _FIRST_NODE_ID + partition: Context(
                run_id,
                _FIRST_NODE_ID + partition,
                {"partition-id": partition, "num-partitions": num_nodes, SEND_ERRORS: True},
                RecordDict(),
                dict(run_config or {}),
            )
            for partition in range(num_nodes)
        }

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return all nodes."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Handle the messages in their order and keep the replies."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return and forget the replies to these messages."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Handle the messages in their order; those not begun within the timeout get no reply."""
        return list(self.replies(messages, timeout=timeout))

    def replies(self, messages: Iterable[Message], *, timeout: float | None) -> Iterator[Message]:
        """Handle each message when its reply is asked for."""
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        for message in messages:
            if time.monotonic() < deadline:
                yield from self.pull_messages([self._push(message)])
            else:
                self._name(message)

    def _name(self, message: Message) -> str:
        # of one length, so that a run that goes on sends as many bytes as one that was never ended
        message_id = f"message-{self._series}-{next(self._message_ids):08}"
        set_message_id(message, message_id)
        return message_id

    def _forget(self, message: Message) -> None:
        """Let go of what clients have contributed to sums that none of them can meet again.

        Else every client that ever took part would hold two models.
        """
        told = rounds_told_of(message.content)
        if told is None or told == self._known:
            return
        self._known = told
        for context in self.contexts.values():
            forget_others(context, *told)

    def _push(self, message: Message) -> str:
        self._forget(message)
        self._name(message)
        context = self.contexts[message.metadata.dst_node_id]
        received = copy.deepcopy(message)
        message_id = self._keep(received, context, lambda: self._client_app(received, context))
        self._on_reply(received)
        return message_id

    def _keep(
        self, received: Message, context: Context, answer: Callable[[], Message | None]
    ) -> str:
        """Keep the reply to a message, or the error that comes in its place; return its id."""
        message_id = received.metadata.message_id
        before = RecordDict(dict(context.state))
        try:
            reply = copy.deepcopy(answer())
        except Exception:
            context.state = before
            reason = traceback.format_exc()
            reply = Message(Error(CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=received)
        if reply is not None:  # a handler may stay silent
            set_message_id(reply, f"reply-to-{message_id}")
            self._replies[message_id] = reply
        return message_id
