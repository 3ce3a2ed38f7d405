"""Progress in few bits: codes that an All-Reduce of bytes can sum, and what they leave unsent.

Numbers are taken in blocks of 256. Of each block the workers agree on one scale, the largest
magnitude that any of them has there, by an All-Reduce of maxima; a number then becomes one of
2 L + 1 equally spaced levels of either sign. The sums of N workers' codes must fit where one code
stands, so that L = ⌊127 / N⌋ in 8 bits, and ⌊7 / N⌋ in 4 bits, two codes to a byte. Sums of
integers are exact in every order, and all decode them by the same product: the workers keep the
same bits.

Error feedback: what rounding leaves unsent, u, is kept by its worker and goes into its next codes.
It is counted in parts of Δ: after a round whose sum is multiplied by a factor f,

    u ← u + f (w D − decoded),

w D the weighted progress, whatever the codes have been made from. So Σ u over the workers is always
what the common model lacks, and a last round, which is not coded, adds it.

Source: error feedback as in arXiv 1901.09847; codes that sum within their bits are ours.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Compression = Literal["int8", "int4"]

BLOCK = 256
_BITS = {"int8": 8, "int4": 4}


def levels_for(compression: Compression, workers: int) -> int:
    """Return L, how many levels of each sign there are; 0 if so many codes do not fit."""
    return int((2 ** (_BITS[compression] - 1) - 1) // workers)


def most_workers(compression: Compression) -> int:
    """Return how many workers' codes fit at most."""
    return int(2 ** (_BITS[compression] - 1) - 1)


def require_few(compression: Compression | None, workers: int) -> None:
    """Raise a ValueError for more workers than codes can be summed of."""
    if compression is not None and workers > most_workers(compression):
        raise ValueError(
            f"compression={compression} must have at most {most_workers(compression)} workers, as "
            f"their sums travel in as many bits, got {workers}; take more bits or None"
        )


def block_maxima(values: Tensor) -> Tensor:
    """Return the largest magnitude of each block, shape (⌈n / 256⌉,), of values of shape (n,)."""
    magnitudes = torch.nn.functional.pad(values.abs(), (0, -len(values) % BLOCK))
    maxima: Tensor = magnitudes.view(-1, BLOCK).amax(1)
    return maxima


def encode(values: Tensor, scales: Tensor, levels: int, compression: Compression) -> Tensor:
    """Return codes in bytes: integers from 0 to 2 L, of which L is zero.

    Args:
        values: shape (n,).
        scales: of each block, >= its values' magnitudes.
        levels: L >= 1.
        compression: how many bits.
    """
    steps = _steps(scales, levels, len(values))
    levels_of_values = torch.where(steps > 0, values / steps, 0.0).round_().clamp_(-levels, levels)
    codes = levels_of_values.add_(levels).to(torch.uint8)
    if compression == "int8":
        return codes
    low, high = torch.nn.functional.pad(codes, (0, len(codes) % 2)).view(-1, 2).unbind(1)
    return low + 16 * high


def decode(codes: Tensor, scales: Tensor, levels: int, workers: int, number: int) -> Tensor:
    """Return the numbers that a sum of codes stands for, shape (number,).

    Args:
        codes: the sum of this many workers' codes, in bytes.
        scales: of each block.
        levels: L.
        workers: how many codes have been summed.
        number: of values; twice as many as bytes, or one less, in 4 bits.
    """
    if len(codes) < number:
        codes = torch.stack([codes % 16, codes // 16], 1).view(-1)[:number]
    sums = codes.to(scales.dtype).sub_(workers * levels)
    return sums.mul_(_steps(scales, levels, number))


def _steps(scales: Tensor, levels: int, number: int) -> Tensor:
    return (scales / levels).repeat_interleave(BLOCK)[:number]


class Coder:
    """One worker's codes of a round, and what it has not sent.

    What a round uses is made anew from the worker's contribution whenever the round is redone; what
    is unsent changes as it lands, and only then.

    Args:
        compression: how many bits.
        parameters: how many numbers of a contribution are progress.
        momentum: how many after these are momentum, and coded as well.
        like: a tensor of the type and on the device of contributions.

    Attributes:
        coded: how many numbers of a contribution are coded, the first ones.
        unsent: u of the progress, in parts of Δ; flat.
    """

    def __init__(
        self, compression: Compression, parameters: int, momentum: int, like: Tensor
    ) -> None:
        self.compression, self._parameters = compression, parameters
        self.coded = parameters + momentum
        self.unsent = like.new_zeros(parameters)
        # of the momentum, as it is summed
        self._unsent_momentum = like.new_zeros(momentum)
        # of the last round: parts of Δ are sums times this
        self._factor = 1.0
        self._missing = like.new_zeros(0)

    @property
    def bytes_of_codes(self) -> int:
        """How many a round's codes have."""
        return -(-self.coded * _BITS[self.compression] // 8)

    def values(self, contribution: Tensor) -> Tensor:
        """Return what is to be coded: the contribution's first numbers, and what was unsent."""
        unsent = torch.cat([self.unsent / self._factor, self._unsent_momentum])
        return unsent.add_(contribution[: self.coded])

    def encode(self, contribution: Tensor, scales: Tensor, workers: int) -> Tensor:
        """Return this worker's codes, and note what of its contribution they do not hold."""
        levels = levels_for(self.compression, workers)
        codes = encode(self.values(contribution), scales, levels, self.compression)
        sent = decode(codes, scales, levels, 1, self.coded)
        self._missing = contribution[: self.coded] - sent
        return codes

    def decode(self, codes: Tensor, scales: Tensor, workers: int) -> Tensor:
        """Return the sum of so many workers' values, as their codes hold it."""
        levels = levels_for(self.compression, workers)
        return decode(codes, scales, levels, workers, self.coded)

    @torch.no_grad()
    def load(self, unsent: Tensor) -> None:
        """Set what is unsent of the progress.

        Raises:
            ValueError: if it is of another model.
        """
        if unsent.shape != self.unsent.shape:
            raise ValueError(
                f"expected what was unsent of {len(self.unsent)} numbers, got {list(unsent.shape)}"
            )
        self.unsent.copy_(unsent)

    def land(self, factor: float, *, whole: bool) -> None:
        """Note that a round has landed.

        Args:
            factor: f: Δ was the sum times this.
            whole: nothing was coded, and what was unsent was added to Δ.
        """
        if whole:
            self.unsent.zero_()
            self._unsent_momentum.zero_()
        else:
            sizes = [self._parameters, len(self._unsent_momentum)]
            progress, momentum = torch.split(self._missing, sizes)
            self.unsent.add_(progress * factor)
            self._unsent_momentum.add_(momentum)
        if factor > 0 and math.isfinite(factor):
            self._factor = factor
