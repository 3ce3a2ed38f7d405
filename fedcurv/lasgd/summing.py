"""A round's sums: one All-Reduce of floating-point numbers, or a few of fewer bytes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedcurv.lasgd.coding import BLOCK, Coder, block_maxima, most_workers
from fedcurv.lasgd.plane import Plane
from fedcurv.lasgd.streams import Streams

# beside the blocks' maxima: whether anybody goes on, and whether anybody leaves
_FLAGS = 2


@dataclass(frozen=True)
class Flags:
    """What of a worker decides whether a round is coded.

    Attributes:
        goes_on: it will make further steps.
        leaves: it wants out after this round.
    """

    goes_on: bool
    leaves: bool


def sum_in_few_bits(
    plane: Plane, coder: Coder, flags: Flags, streams: Streams, given_up: Callable[[], bool]
) -> Tensor | None:
    """Replace a plane's flat tensor by its sum over the members, its first numbers coded.

    Whether they are coded is what all read in the same All-Reduce of maxima. They are not in a
    round in which nobody goes on or somebody leaves, as what they have not sent would be lost.

    Args:
        plane: with this worker's contribution.
        coder: of this worker.
        flags: likewise.
        streams: of the plane's device.
        given_up: as ``Plane.all_reduce`` takes it.

    Returns:
        the sum of what all had unsent, to be added to Δ, where nothing was coded; else None.

    Raises:
        Interrupted: if a member is lost, or the time is over.
    """
    flat, size = plane.flat, plane.size
    with streams.beside_training():
        own_flags = flat.new_tensor([flags.goes_on, flags.leaves])
        agreed = torch.cat([block_maxima(coder.values(flat)), own_flags])
    plane.all_reduce(given_up, agreed, largest=True)
    with streams.beside_training():
        scales = agreed[:-_FLAGS]
        anybody_goes_on, anybody_leaves = map(bool, agreed[-_FLAGS:].tolist())
    if not anybody_goes_on or anybody_leaves or not 1 < size <= most_workers(coder.compression):
        plane.all_reduce(given_up)
        with streams.beside_training():
            unsent = coder.unsent.clone()
        plane.all_reduce(given_up, unsent)
        return unsent
    with streams.beside_training():
        codes = coder.encode(flat, scales, size)
    plane.all_reduce(given_up, codes)
    plane.all_reduce(given_up, flat[coder.coded :])
    with streams.beside_training():
        flat[: coder.coded] = coder.decode(codes, scales, size)
    return None


def payloads_of(coder: Coder | None, numbers: int, itemsize: int, workers: int) -> list[int]:
    """Return the bytes of each All-Reduce of a round.

    Args:
        coder: of any worker.
        numbers: of the flat tensor, header included.
        itemsize: bytes of one.
        workers: how many take part.
    """
    if workers == 1:
        return [0]
    if coder is None or workers > most_workers(coder.compression):
        return [numbers * itemsize]
    blocks = -(-coder.coded // BLOCK)
    rest = (numbers - coder.coded) * itemsize
    return [(blocks + _FLAGS) * itemsize, coder.bytes_of_codes, rest]
