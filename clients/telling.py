"""Warnings that a client gives once in its life, though a deployed one is a new process a round."""

import logging
from collections.abc import Callable

from flwr.app import ConfigRecord, Context

from fedcurv.penalty import CurvaturePenalty
from fedcurv.strategies.wire.records import client_id_of

logger = logging.getLogger(__name__)

# in Context.state, what this client has been told
_TOLD = "fedcurv.told"
# by federation, what a client in this process has been told
_told_here: set[tuple[str, str]] = set()


def tell_once(context: Context, what: str, text: str) -> None:
    """Log a text unless this client has been told of it before."""
    told = context.state.setdefault(_TOLD, ConfigRecord())
    if isinstance(told, ConfigRecord) and what not in told:
        told[what] = True
        logger.warning("client %s: %s", client_id_of(context), text)


def once_a_run(context: Context | None, federation: str, what: str) -> Callable[[str], None]:
    """Return what logs a text as ``tell_once`` does, for the first client of a run alone.

    That is the first in this process. It is for texts that are nearly the same for all clients.

    Args:
        context: of the client; None in a worker of its site, which has none.
        federation: that the run is of, as the server says; nothing where it does not say.
        what: the text is about.
    """

    def tell(text: str) -> None:
        if (federation, what) not in _told_here:
            if federation:
                _told_here.add((federation, what))
            if context is None:
                logger.warning("%s", text)
            else:
                tell_once(context, what, text)

    return tell


def tell_of_pull(
    context: Context, federation: str, penalty: CurvaturePenalty, *, attached: bool
) -> None:
    """Log what was wrong with the pull in a round that ends: nothing felt it, or too strongly."""
    if attached and not penalty.found_optimizer:
        logger.warning(
            "the penalty was attached, but no optimizer stepped with the model's parameters: "
            "was another model trained, or a copy of this one?"
        )
    if said := penalty.too_strong():
        once_a_run(context, federation, "pull")(said)
