"""Count of a round's clients that have trained, for whoever waits."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Message, MessageType

# how many of a round's clients have trained, and how many will
Tell = Callable[[int, int], object]


class Counting:
    """Called by a runner after each message that a client has handled; tells of those that trained.

    Args:
        config: resolved.
        tell: told after each client that has trained.
    """

    def __init__(self, config: Mapping[str, Any], tell: Tell) -> None:
        self._chosen = max(1, int(config["num_clients"] * config["fraction_train"]))
        self._tell, self._done = tell, 0
        self._lock = threading.Lock()  # clients may be trained in several threads

    def __call__(self, message: Message) -> None:
        """Count a client."""
        if message.metadata.message_type == MessageType.TRAIN:
            with self._lock:
                self._done += 1
                self._tell(self._done, max(self._chosen, self._done))

    def begin_round(self) -> None:
        """Count from 0 on: messages do not say of which round they are."""
        with self._lock:
            self._done = 0
