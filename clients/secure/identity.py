"""Who a node is, and whom it believes to be who they say."""

from typing import Protocol


class Identity(Protocol):
    """A node's own key, and those that its owner trusts."""

    def sign(self, statement: bytes) -> bytes:
        """Return a signature; nothing without a key."""
        ...

    def verify(self, client_id: str, statement: bytes, signature: bytes) -> None:
        """Raise a ValueError unless it is the signature of this client, if it need be."""
        ...


class Anybody:
    """No key: whoever the server names is believed."""

    def sign(self, statement: bytes) -> bytes:
        """Return nothing."""
        return b""

    def verify(self, client_id: str, statement: bytes, signature: bytes) -> None:
        """Believe it."""
