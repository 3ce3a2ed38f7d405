"""The key-value store of a site's workers, and what its end means."""

from datetime import timedelta
from typing import Any, Protocol, Self

from torch.distributed import DistNetworkError


class Store(Protocol):
    """What is used of ``torch.distributed.Store``: TCPStore, HashStore, PrefixStore."""

    def set(self, key: str, value: str) -> None:
        """Write a value."""

    def get(self, key: str) -> bytes:
        """Return a value, once it is there."""

    def add(self, key: str, amount: int) -> int:
        """Add to a number, 0 at first, and return the sum."""

    def check(self, keys: list[str]) -> bool:
        """Return whether all are there."""

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        """Wait until all are there; a RuntimeError if they do not come."""

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        """Write if the value is as expected, "" for none; return what stands then."""

    def delete_key(self, key: str) -> bool:
        """Delete a value."""

    def clone(self) -> Self:
        """Return another client of the same store."""


class WorkerLost(RuntimeError):
    """This worker was taken for dead by the others, or has lost them."""


class Asked:
    """A store whose end is told as what it is."""

    def __init__(self, store: Store, worker: int) -> None:
        self._store, self._worker = store, worker

    def __getattr__(self, name: str) -> Any:
        """Return the store's own method, with its end told as what it is."""
        method = getattr(self._store, name)

        def ask(*arguments: Any) -> Any:
            try:
                return method(*arguments)
            except DistNetworkError as error:
                who = "the newcomer" if self._worker < 0 else f"worker {self._worker}"
                raise WorkerLost(
                    f"{who} has lost the workers' store: the process that keeps it (the launcher, "
                    "or worker 0) has ended or cannot be reached; start all workers anew, from "
                    "their last saved state"
                ) from error

        return ask
