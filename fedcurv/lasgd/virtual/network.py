"""What All-Reduces of virtual workers come to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedcurv.lasgd.coding import Coder, block_maxima, most_workers


def sum_of(
    bodies: Sequence[Tensor], coders: Sequence[Coder | None]
) -> tuple[Tensor, Tensor | None]:
    """Return the sum of contributions, coded where it is, and else what was unsent before.

    Args:
        bodies: each worker's contribution.
        coders: of the same workers.
    """
    total, number = torch.stack(list(bodies)).sum(0), len(bodies)
    own = [coder for coder in coders if coder is not None]
    if not own:
        return total, None
    if not 1 < number <= most_workers(own[0].compression):
        return total, torch.stack([coder.unsent for coder in own]).sum(0)
    pairs = list(zip(own, bodies, strict=True))
    maxima = torch.stack([block_maxima(coder.values(body)) for coder, body in pairs])
    scales = maxima.amax(0)
    codes = torch.stack([coder.encode(body, scales, number) for coder, body in pairs])
    summed = codes.sum(0, dtype=torch.uint8)
    total[: own[0].coded] = own[0].decode(summed, scales, number)
    return total, None
