"""A client's statistics under differential privacy: no more than the server has asked for."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from flwr.app import RecordDict
from torch import Tensor, nn

from fedcurv.bounded import Bound, at_zero
from fedcurv.curvature import Curvature
from fedcurv.parameters import listed
from fedcurv.strategies.wire.bounds import unpack_bound
from fedcurv.strategies.wire.sums import arrays_like, names_of_arrays


@dataclass(frozen=True)
class BoundedHere:
    """How much a client's statistics may be, and the model from which distances count.

    Attributes:
        bound: as the server told it.
        model: by parameter, as it was sent.
    """

    bound: Bound
    model: Mapping[str, Tensor]

    @classmethod
    def of(cls, content: RecordDict, model: nn.Module) -> "BoundedHere | None":
        """Return what a message says; None where statistics are not bounded.

        Args:
            content: of the message, with the model's arrays.
            model: with the names of the parameters.

        Raises:
            ValueError: if the arrays are not named like the model's parameters.
        """
        bound = unpack_bound(content)
        if bound is None:
            return None
        here = names_of_arrays(content)
        named = {name: p.detach() for name, p in model.named_parameters() if name in here}
        sent = arrays_like(named, content)
        if not sent:
            raise ValueError(
                f"expected the model's arrays, by the names of its parameters, in the message of a "
                f"server with private_sums, got {listed(sorted(here))}; make the ClientCurvature "
                "before the app takes them out, and send state_dict() with its own names"
            )
        return cls(bound, sent)

    def clipped(self, curvature: Curvature) -> Curvature:
        """Return P and Q that have at most the norm of the bound.

        Raises:
            ValueError: for parameters that the message does not have.
        """
        if unknown := [name for name in curvature.precision if name not in self.model]:
            raise ValueError(
                f"expected statistics of what the message has, got those of {listed(unknown)} too, "
                "which cannot be bounded with private_sums"
            )
        return at_zero(self.bound.clipped(curvature, self.model), self.model).to(torch.float32)

    def rest(self, sums: Curvature, own: Curvature) -> Curvature:
        """Return noised sums without the client's own terms; see ``Bound.rest``."""
        return self.bound.rest(sums, own, self.model).to(torch.float32)
