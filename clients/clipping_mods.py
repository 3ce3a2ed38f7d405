"""Flower's mods for clipping at the client, beside FedCurv: they see the model and nothing else."""

from flwr.app import Context, Message, RecordDict
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable, Mod

from fedcurv.strategies.flower_private import let_unmoved_models_be_clipped
from fedcurv.strategies.wire.bounds import BOUND
from fedcurv.strategies.wire.identity import CONFIG
from fedcurv.strategies.wire.sums import STATISTICS

_OURS = frozenset({CONFIG, BOUND, *STATISTICS})


def fixed_clipping_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Clip the model as Flower's ``fixedclipping_mod`` does, with FedCurv's records kept apart.

    For ``FedCurv(DifferentialPrivacyClientSideFixedClipping(...), private_sums=...)``, whose
    statistics :class:`ClientCurvature` clips itself.
    """
    return _apart(fixedclipping_mod, message, context, call_next)


def adaptive_clipping_mod(
    message: Message, context: Context, call_next: ClientAppCallable
) -> Message:
    """Clip the model as Flower's ``adaptiveclipping_mod`` does; see ``fixed_clipping_mod``."""
    return _apart(adaptiveclipping_mod, message, context, call_next)


def _apart(mod: Mod, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Call a mod that sees no record of FedCurv's, around an app that sees all of them."""
    let_unmoved_models_be_clipped()
    aside = _taken(message.content)
    answered = RecordDict()

    def app(message: Message, context: Context) -> Message:
        message.content.update(aside)
        reply = call_next(message, context)
        if reply.has_content():
            answered.update(_taken(reply.content))
        _taken(message.content)
        return reply

    reply = mod(message, context, app)
    if reply.has_content():
        reply.content.update(answered)
    return reply


def _taken(content: RecordDict) -> RecordDict:
    """Take FedCurv's records out of a message and return them."""
    return RecordDict({name: content.pop(name) for name in list(content) if name in _OURS})
