"""A store that listens where it should: torch's own listens on every interface."""

import socket
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

_WAITING_CLIENTS = 1024


def host_store(host: str = "127.0.0.1", *, timeout_s: float = 300.0) -> TCPStore:
    """Return a store for workers, hosted by this process on a free port of one address.

    Args:
        host: name or address of this machine by which the workers reach it.
        timeout_s: of its calls.

    Returns:
        the store; its ``port`` is what workers need beside the host:
        ``TCPStore(host, port, is_master=False)``.

    Raises:
        OSError: if the host is not an address of this machine.
    """
    with socket.socket() as listening:
        listening.bind((host, 0))
        listening.listen(_WAITING_CLIENTS)
        port = listening.getsockname()[1]
        return TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
            master_listen_fd=listening.detach(),
        )
