"""Methods' terms by name, and the one that an app makes for whatever the server runs."""

import os
from collections.abc import Mapping

from flwr.app import Context, Message, RecordDict
from torch import nn

from fedcurv.clients.methods.feddyn import FedDynTerm
from fedcurv.clients.methods.fednova import FedNovaTerm
from fedcurv.clients.methods.scaffold import ScaffoldTerm
from fedcurv.clients.methods.term import MethodTerm
from fedcurv.strategies.wire.methods import method_in

METHODS: Mapping[str, type[MethodTerm]] = {
    term.method: term for term in (FedDynTerm, FedNovaTerm, ScaffoldTerm)
}


class ClientTerm:
    """The client's side of the method that the server runs, in any ClientApp.

    Every step of an optimizer of this model's parameters feels the term from here on, whoever makes
    the optimizer. Under a server with another strategy all of it does nothing, so that one app
    serves all.

    Args:
        message: a training message.
        context: of the ClientApp.
        model: with the weights of the message, and on the device where it will be trained.
        state_dir: remember on disk below this folder what must be remembered; see
            ``fedcurv.clients.state``.

    Raises:
        ValueError: for a method that this version does not know, a message that is not fit for
            use, or a model that has not its weights.
    """

    def __init__(
        self,
        message: Message,
        context: Context,
        model: nn.Module,
        *,
        state_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self._term: MethodTerm | None = None
        name = method_in(message.content)
        if name is None:
            return
        if name not in METHODS:
            raise ValueError(
                f"expected one of the methods {', '.join(METHODS)}, got {name!r:.80}; let server "
                "and clients have the same version of fedcurv"
            )
        self._term = METHODS[name](message, context, model, state_dir=state_dir)
        self._term.require_weights_of(message)
        self._term.attach_to()

    @property
    def method(self) -> str | None:
        """The method's name; None if the server runs none of these."""
        return None if self._term is None else self._term.method

    def report(self, content: RecordDict, model: nn.Module) -> RecordDict:
        """End the training in this round: add to the reply what the strategy must know.

        Args:
            content: of the reply, whose ArrayRecord holds the model as it is now.
            model: as trained.

        Returns:
            ``content``.

        Raises:
            ValueError: if the method does not hold for how the model was trained.
        """
        if self._term is not None:
            self._term.report(content, model)
        return content
