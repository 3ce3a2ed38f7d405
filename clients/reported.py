"""A client's statistics as they are sent, and as they are remembered: the same numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor, nn

from fedcurv.clients.bounded import BoundedHere
from fedcurv.curvature import Curvature
from fedcurv.strategies.wire.arrays import pack_tensors
from fedcurv.strategies.wire.records import Instruction
from fedcurv.strategies.wire.secure.plan import Plan
from fedcurv.strategies.wire.secure.statistics import rounded
from fedcurv.strategies.wire.sums import names_of_arrays, pack_precision


@dataclass(frozen=True)
class Reported:
    """What a client tells of its curvature.

    Attributes:
        curvature: to be remembered. It is what the server sums up: else a difference of sums could
            become negative.
        precision: to be sent.
        weighted: likewise; None where the server can form it.
    """

    curvature: Curvature
    precision: ArrayRecord
    weighted: ArrayRecord | None


def reported(
    model: nn.Module,
    fisher: Mapping[str, Tensor],
    names: Sequence[str],
    instruction: Instruction,
    client_id: str,
    content: RecordDict,
    bounded: BoundedHere | None = None,
) -> Reported:
    """Return what a client tells of a Fisher diagonal at its local solution.

    Args:
        model: the solution.
        fisher: of these parameters.
        names: of them.
        instruction: says in how many bits, and on which scales in a secure sum.
        client_id: decides with the round how codes are rounded.
        content: of the reply, with the model's arrays.
        bounded: how much the statistics may be; None for no bound.

    Raises:
        ValueError: if it is not valid.
    """
    curvature = Curvature.at(model, fisher, parameters=names).to(torch.float32)
    if bounded is not None:
        curvature = bounded.clipped(curvature)
    if instruction.secure_plan:
        plan = Plan.from_text(instruction.secure_plan)
        curvature = rounded(plan, curvature.precision, dict(model.named_parameters()))
        packed = [pack_tensors(p) for p in (curvature.precision, curvature.weighted_parameters)]
        return Reported(curvature, *packed)
    who = client_id, instruction.server_round
    sent, precision = pack_precision(curvature.precision, instruction.bits, *who)
    if precision is not curvature.precision:
        curvature = Curvature.at(model, precision, parameters=names)
    with_weighted = instruction.secure_sums or not names_of_arrays(content) >= precision.keys()
    weighted = pack_tensors(curvature.weighted_parameters) if with_weighted else None
    return Reported(curvature, sent, weighted)
