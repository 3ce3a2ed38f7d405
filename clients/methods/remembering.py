"""Terms of methods whose clients remember something from round to round."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from flwr.app import Context, Message
from torch import Tensor, nn

from fedcurv.clients.disk_state import Parts
from fedcurv.clients.methods.term import MethodTerm
from fedcurv.clients.state import folder_for
from fedcurv.curvature import require_same_shapes, shapes_of
from fedcurv.parameters import refuse_complex

logger = logging.getLogger(__name__)

_PLACES = ("fedcurv.state", "fedcurv.state-1", "fedcurv.state-2")


class RememberingTerm(MethodTerm):
    """Remembers a tensor for each parameter, in float32; zero until it has been trained once.

    The server says which of the client's states its sum holds: the client begins from that one.
    It keeps beside the latest, whose reply may still be refused or lost, the one that it began from
    and the one in the server's latest checkpoint. A client that has not what the server names
    begins at zero, and says so.
    """

    part: ClassVar[str]

    def __init__(
        self,
        message: Message,
        context: Context,
        model: nn.Module,
        *,
        state_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(message, context, model, state_dir=state_dir)
        parameters = dict(zip(self.names, self._steppable.parameters, strict=True))
        refuse_complex(parameters.items(), self.method)
        self._shapes = shapes_of(parameters)
        self._start = {name: p.detach().clone() for name, p in parameters.items()}
        size = sum(4 * p.numel() for p in parameters.values())
        self._folder = folder_for(
            context,
            len(_PLACES) * size,
            None if state_dir is None else Path(state_dir),
            self._told,
            places=_PLACES,
            parts=(self.part,),
        )
        self._own, self._began_from = self._remembered()

    def _remembered(self) -> tuple[Mapping[str, Tensor], str]:
        """Return what the server's sum holds of this client, and after which message."""
        known = self._told.known
        if known is None:
            return {}, ""
        found = self._folder.read(known.server_round, [known.message_id], self._checked)
        if found is None:
            logger.warning(
                "%s: what it remembered after round %d is not there any more: it begins at zero",
                self._client,
                known.server_round,
            )
            return {}, ""
        return found[1], found[0]

    def _checked(self, parts: Parts) -> dict[str, Tensor]:
        own = dict(parts[self.part])
        require_same_shapes(self._shapes, shapes_of(own), "the model", "what was remembered")
        for name, tensor in own.items():
            if not tensor.is_floating_point() or not tensor.isfinite().all():
                raise ValueError(f"expected finite numbers for {name!r}")
        return own

    def _remember(self, own: Mapping[str, Tensor]) -> None:
        states = (self._told.known, self._told.saved)
        self._folder.write(
            self._told.server_round,
            self._message_id,
            {self.part: own},
            kept=[(s.server_round, s.message_id) for s in states if s is not None],
        )

    def _own_of(self, name: str) -> Tensor | float:
        """Return what is remembered for a parameter, in double precision on its device."""
        own = self._own.get(name)
        return 0.0 if own is None else own.to(self._start[name].device, torch.float64)

    def _way_of(self, name: str, trained: Mapping[str, Tensor]) -> Tensor:
        """Return how far a parameter has gone, in double precision."""
        return trained[name].detach().double() - self._start[name].double()
