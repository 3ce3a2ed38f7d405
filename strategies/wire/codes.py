"""Numbers in 4 or 8 bits: pure functions on blocks of 256 numbers, on any device.

Each block has a scale, its largest magnitude in float32, and each number a code: a level between
two of which a number is rounded at random, so that the mean over the randomness is the number.
Zero always stays zero, and the largest magnitude stays what it is.

**Precision** (P >= 0) has logarithmic levels, as small floating-point numbers have: code r is
``scale · 2^(r − 15)``, and 0 is zero. That is a level an octave over 14 octaves; in 8 bits there
are 16 equal steps in each octave, and as many below the lowest. Below the smallest level a number
becomes that level or zero, again so that the mean is right.

**Distances** have equally spaced levels of either sign: ``scale · (code − 8) / 7``, in 8 bits
``scale · (code − 128) / 127``.

Decoding multiplies a scale by a number from a table, so that all machines decode to the same bits.
Randomness is in steps of 2^-16 of the way between two levels: a mean is right to 2^-17 of it.

Source: ours.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

Encode = Callable[[Tensor, int, torch.Generator], tuple[Tensor, Tensor]]

# numbers to a block
BLOCK = 256

# of a number in a code, and of one as it is
CODE_BITS = (4, 8)
EXACT_BITS = 32

# float32 has 23 bits after its exponent
_FRACTION = 23
# octaves from the smallest level to the largest
_OCTAVES = 14
_SMALLEST = 2.0**-_OCTAVES
# _SMALLEST as float32 lays it out
_SMALLEST_LAID_OUT = (127 - _OCTAVES) << _FRACTION

# of a word of random bits
_RANDOM_BITS = 16

# what a division and a product in float32 add at most, and more
_ROUNDING = 1 + 2.0**-21

_BLOCKS_AT_ONCE = 512


def encode_precision(
    blocks: Tensor, bits: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return scales (R,) in float32 and packed codes (R, 32·bits) in bytes.

    Args:
        blocks: P, shape (R, 256), float32, >= 0.
        bits: of a code, 4 or 8.
        generator: of the rounding; on the blocks' device, or on the CPU.
    """
    return _in_pieces(_encoded_precision, blocks, bits, generator)


def decode_precision(scales: Tensor, packed: Tensor, bits: int) -> Tensor:
    """Return P (R, 256) in float32 as ``encode_precision`` has rounded it."""
    return _looked_up(scales, packed, _precision_levels(bits))


def most_before_coding(scales: Tensor, packed: Tensor, bits: int) -> Tensor:
    """Return what P (R, 256) can have been at most before it was rounded: the next level."""
    levels = tuple(level * _ROUNDING for level in _precision_levels(bits, above=1))
    return _looked_up(scales, packed, levels)


def least_before_coding(scales: Tensor, packed: Tensor, bits: int) -> Tensor:
    """Return what P (R, 256) was at least before it was rounded: the level below."""
    levels = tuple(level / _ROUNDING for level in _precision_levels(bits, above=-1))
    return _looked_up(scales, packed, levels)


def encode_distance(blocks: Tensor, bits: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return scales (R,) in float32 and packed codes (R, 32·bits) in bytes.

    Args:
        blocks: shape (R, 256), float32, of either sign.
        bits: of a code, 4 or 8.
        generator: of the rounding; on the blocks' device, or on the CPU.
    """
    return _in_pieces(_encoded_distance, blocks, bits, generator)


def decode_distance(scales: Tensor, packed: Tensor, bits: int) -> Tensor:
    """Return the distances (R, 256) in float32 as ``encode_distance`` has rounded them."""
    return _looked_up(scales, packed, _distance_levels(bits))


def _in_pieces(
    encode: Encode, blocks: Tensor, bits: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Encode so many blocks at a time that what lies between stays in a core's cache."""
    at_once = _BLOCKS_AT_ONCE if blocks.device.type == "cpu" else max(1, len(blocks))
    begins = range(0, max(1, len(blocks)), at_once)
    parts = [encode(blocks[begin : begin + at_once], bits, generator) for begin in begins]
    scales, packed = zip(*parts, strict=True)
    return torch.cat(scales), torch.cat(packed)


def _encoded_precision(
    blocks: Tensor, bits: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    scales = _largest(blocks)
    shares = blocks / _divisor(scales)
    # float32's own layout, an exponent before a fraction, is logarithmic; below the smallest level
    # the first term is constant and the second rises in proportion, above it is the reverse
    laid_out = shares.clamp(min=_SMALLEST).view(torch.int32) - _SMALLEST_LAID_OUT
    laid_out += shares.clamp_(max=_SMALLEST).mul_(2.0 ** (_FRACTION + _OCTAVES)).to(torch.int32)
    codes = _rounded(laid_out, _FRACTION - (bits - 4), generator)
    return scales, _packed(codes.to(torch.uint8), bits)


def _encoded_distance(
    blocks: Tensor, bits: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    scales = _largest(blocks.abs())
    middle = 2 ** (bits - 1)
    steps = (blocks / _divisor(scales)).mul_(float((middle - 1) << _FRACTION)).to(torch.int32)
    codes = _rounded(steps, _FRACTION, generator) + middle
    return scales, _packed(codes.to(torch.uint8), bits)


def _largest(blocks: Tensor) -> Tensor:
    return blocks.amax(1) if len(blocks) else blocks.new_empty(0)


def _divisor(scales: Tensor) -> Tensor:
    return torch.where(scales > 0, scales, 1).unsqueeze(1)


def _rounded(fixed: Tensor, fraction: int, generator: torch.Generator) -> Tensor:
    """Return int32 numbers with so many bits after the point, rounded up or down at random."""
    words = torch.empty(len(fixed), BLOCK // 4, dtype=torch.int64, device=generator.device)
    words.random_(-(2**63), None, generator=generator)
    noise = words.view(torch.int16).to(fixed.device)
    # noise in the middle of its steps: never 0, so that the mean is right, and never a whole
    step = 2 ** (fraction - _RANDOM_BITS)
    fixed.add_(noise, alpha=step).add_(2 ** (fraction - 1) + step // 2)
    return fixed >> fraction


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Put two codes of 4 bits into a byte, the first into the lower half."""
    return codes if bits == 8 else codes[:, 0::2] | (codes[:, 1::2] << 4)


def _looked_up(scales: Tensor, packed: Tensor, levels: tuple[float, ...]) -> Tensor:
    table = _of_bytes(levels).to(packed.device)
    # two levels of 4 bytes are looked up as one number of 8
    wide = torch.int64 if table.shape[1] == 2 else torch.int32
    found = table.view(wide).flatten().index_select(0, packed.flatten().to(torch.int32))
    return found.view(torch.float32).view(-1, BLOCK).mul_(scales.unsqueeze(1))


@lru_cache
def _of_bytes(levels: tuple[float, ...]) -> Tensor:
    """Return the one or two levels that each byte stands for."""
    if len(levels) == 256:
        return torch.tensor(levels, dtype=torch.float32).unsqueeze(1)
    pairs = [(levels[byte % 16], levels[byte // 16]) for byte in range(256)]
    return torch.tensor(pairs, dtype=torch.float32)


@lru_cache
def _precision_levels(bits: int, above: int = 0) -> tuple[float, ...]:
    """Return the level of each code in units of the scale, or of a code above or below it."""
    steps = 2 ** (bits - 4)  # in an octave
    found = []
    for code in range(2**bits):
        octave, step = divmod(min(max(code + above, 0), 15 * steps), steps)
        level = 2.0 ** (octave - 1) * (1 + step / steps) if octave else step / steps
        found.append(_SMALLEST * level)
    return tuple(found)


@lru_cache
def _distance_levels(bits: int) -> tuple[float, ...]:
    middle = 2 ** (bits - 1)
    return tuple((code - middle) / (middle - 1) for code in range(2**bits))
