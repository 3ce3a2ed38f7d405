"""Errors on a device as the server learns of them: the class, and the text if the owner allows it.

An exception's text names folders and files, on a hospital's device patients' files. Flower sends it
to the server, where it stands in logs and reports.
"""

import logging
import sys
from collections.abc import Callable
from typing import NoReturn

from flwr.app import Context, Error, Message

from fedcurv.clients.owner import owner_allows
from fedcurv.strategies.wire.records import client_id_of

logger = logging.getLogger(__name__)

SEND_ERRORS_VARIABLE = "FEDCURV_SEND_ERRORS"
SEND_ERRORS = "send-errors"


class ClientFailed(RuntimeError):
    """Something has failed on a client; what, only the client's own log says."""


def private_errors_mod(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """Withhold the text of a client's errors from the server; a mod, to be the outermost.

    ``ClientApp(mods=[private_errors_mod, ...])`` does it for any app; :func:`client_app` has it.
    That is what is raised, and what mods further inside return as an error of Flower's, as its own
    mods for differential privacy do.
    The device's own log has the whole traceback. The text is sent where the device's owner allows
    it, by ``FEDCURV_SEND_ERRORS=1`` in the SuperNode's environment or ``send-errors=true`` in its
    configuration, and in simulations, where client and server are one.

    Raises:
        ClientFailed: with the class of what was raised, the client's id and nothing else.
    """
    try:
        reply = call_next(message, context)
    except Exception as error:
        if _may_send(context):
            raise
        _withhold(error, context)
    if reply is None or not reply.has_error() or _may_send(context):
        return reply
    code = reply.error.code
    logger.error("a mod answers with error code %d: %s", code, reply.error.reason)
    return Message(Error(code, _told(f"error code {code}", context)), reply_to=message)


def _withhold(error: Exception, context: Context) -> NoReturn:
    # Flower logs what is raised here with its cause, which is the whole traceback
    raise ClientFailed(_told(type(error).__name__, context)) from error


def _told(what: str, context: Context) -> str:
    return (
        f"{what} in client {client_id_of(context)}; the device's own log has the text (its owner "
        f"may let it be sent: {SEND_ERRORS_VARIABLE}=1)"
    )


def _may_send(context: Context) -> bool:
    allowed = owner_allows(context.node_config, SEND_ERRORS, SEND_ERRORS_VARIABLE)
    return allowed or _in_flowers_engine()


def _in_flowers_engine() -> bool:
    """Return whether this process is a worker of Flower's simulation engine."""
    ray = sys.modules.get("ray")
    actor = sys.modules.get("flwr.simulation.ray_transport.ray_actor")
    return ray is not None and actor is not None and bool(ray.is_initialized())
