"""Warnings that a client gives once in its life, though a deployed one is a new process a round."""

import logging

from flwr.app import ConfigRecord, Context

from fedcurv.strategies.wire.records import client_id_of

logger = logging.getLogger(__name__)

# in Context.state, what this client has been told
_TOLD = "fedcurv.told"


def tell_once(context: Context, what: str, text: str) -> None:
    """Log a text unless this client has been told of it before."""
    told = context.state.setdefault(_TOLD, ConfigRecord())
    if isinstance(told, ConfigRecord) and what not in told:
        told[what] = True
        logger.warning("client %s: %s", client_id_of(context), text)
