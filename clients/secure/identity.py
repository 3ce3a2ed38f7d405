"""Who a node is, and whom it believes to be who they say."""

from typing import Protocol


class Identity(Protocol):
    """A node's own key, and those that its owner trusts."""

    @property
    def knows_others(self) -> bool:
        """Whether members must be known by their keys."""
        ...

    def sign(self, statement: bytes) -> bytes:
        """Return a signature; nothing without a key."""
        ...

    def verify(self, client_id: str, statement: bytes, signature: bytes) -> None:
        """Raise a ValueError unless it is the signature of this client, if it need be."""
        ...


class Anybody:
    """No key: whoever the server names is believed."""

    knows_others = False

    def sign(self, statement: bytes) -> bytes:
        """Return nothing."""
        return b""

    def verify(self, client_id: str, statement: bytes, signature: bytes) -> None:
        """Believe it."""
