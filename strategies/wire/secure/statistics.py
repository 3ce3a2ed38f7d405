"""Statistics of FedCurv in secure sums: whole numbers on both ways, rounded once.

A client rounds what it reports and remembers the rounded values; the server's sums of them are
exact, and travel back as the whole numbers that they are.
"""

from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor

from fedcurv.curvature import Curvature
from fedcurv.strategies.wire.arrays import read_array
from fedcurv.strategies.wire.secure.plan import PRECISION_SUMS, WEIGHTED_SUMS, Plan
from fedcurv.strategies.wire.sums import PRECISION, WEIGHTED

_KINDS = {PRECISION: PRECISION_SUMS, WEIGHTED: WEIGHTED_SUMS}


def rounded(
    plan: Plan, precision: Mapping[str, Tensor], solution: Mapping[str, Tensor]
) -> Curvature:
    """Return P as it enters the sum, and Q = P·θ̂ of that, likewise; in float64.

    Args:
        plan: of the round.
        precision: P, finite and >= 0.
        solution: θ̂ of at least these parameters.
    """
    weighted, kept = {}, {}
    for name, one in precision.items():
        kept[name] = _on_scale(plan, PRECISION_SUMS, name, one)
        product = kept[name] * solution[name].detach().cpu().double()
        weighted[name] = _on_scale(plan, WEIGHTED_SUMS, name, product)
    return Curvature(kept, weighted)


def pack_exact_sums(content: RecordDict, plan: Plan) -> dict[str, ArrayRecord]:
    """Return the records of a message's sums in whole numbers, as far as 32 bits hold them.

    Args:
        content: of the message; sums in float64.
        plan: of the round that they are of.
    """
    packed = {}
    for key, kind in _KINDS.items():
        if (record := content.array_records.get(key)) is not None:
            packed[key] = ArrayRecord(
                {name: _packed(plan, kind, name, array) for name, array in record.items()}
            )
    return packed


def unpack_exact_sums(content: RecordDict, plan: Plan) -> None:
    """Put the sums in float64 into the place of the whole numbers in a message.

    Raises:
        ValueError: if they cannot be read.
    """
    for key, kind in _KINDS.items():
        if (record := content.array_records.get(key)) is not None:
            content[key] = ArrayRecord(
                {name: _unpacked(plan, kind, name, array) for name, array in record.items()}
            )


def _on_scale(plan: Plan, kind: str, name: str, numbers: Tensor) -> Tensor:
    """Return numbers as they travel; the largest stays at least 1, so that a finer scale is found.

    Without that, all of a tensor below a first scale's unit would be 0 in every round.
    """
    scale = plan.scale((kind, name))
    exact = numbers.detach().cpu().numpy()
    whole, _ = scale.whole(exact)
    if not whole.any() and exact.any():
        farthest = np.unravel_index(np.abs(exact).argmax(), exact.shape)
        whole[farthest] = np.sign(exact[farthest])
    return torch.from_numpy(np.asarray(scale.numbers(whole)))


def _packed(plan: Plan, kind: str, name: str, array: Array) -> Array:
    scale = plan.scale((kind, name))
    if scale.bits != 32:
        return array
    numbers = np.ldexp(read_array(name, array).astype(np.float64), scale.exponent)
    return Array(np.asarray(np.rint(numbers)).astype(np.int32))


def _unpacked(plan: Plan, kind: str, name: str, array: Array) -> Array:
    values = read_array(name, array)
    if values.dtype != np.int32:
        return array
    exponent = plan.scale((kind, name)).exponent
    return Array(np.asarray(np.ldexp(values.astype(np.float64), -exponent)))
