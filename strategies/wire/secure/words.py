"""Whole numbers modulo 2^64 and 2^32 in one vector, and the masks that are added to it.

A mask is the keystream of AES-256 in counter mode under a key of 32 bytes that is used for one
vector and never again. Sums are modulo 2^64 or 2^32, so that a vector with a mask on it is as
random as the mask.
"""

from collections.abc import Iterator

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

# what fits beside the numbers into a core's cache
_CHUNK_BYTES = 2**18
_BLOCK_BYTES = 16

Wide = NDArray[np.uint64]
Narrow = NDArray[np.uint32]


class Words:
    """A vector of words of 64 bits, and behind them words of 32 bits; added modulo each.

    Args:
        wide: of 64 bits.
        narrow: of 32 bits.

    Attributes:
        wide: as given; changed by every operation in place.
        narrow: likewise.
    """

    def __init__(self, wide: Wide, narrow: Narrow) -> None:
        self.wide, self.narrow = wide, narrow

    @classmethod
    def zeros(cls, wide: int, narrow: int) -> "Words":
        """Return a vector of zeros with so many words of each kind."""
        return cls(np.zeros(wide, np.uint64), np.zeros(narrow, np.uint32))

    @classmethod
    def from_bytes(cls, packed: bytes | memoryview, wide: int, narrow: int) -> "Words":
        """Return the vector that ``to_bytes`` packed; its memory is that of the bytes.

        Raises:
            ValueError: unless it has as many words of each kind.
        """
        expected = 8 * wide + 4 * narrow
        if len(packed) != expected:
            raise ValueError(f"expected {expected} bytes of masked numbers, got {len(packed)}")
        return cls(
            np.frombuffer(packed, "<u8", wide).astype(np.uint64, copy=False),
            np.frombuffer(packed, "<u4", narrow, 8 * wide).astype(np.uint32, copy=False),
        )

    def to_bytes(self) -> bytes:
        """Return the words in little-endian order."""
        return self.wide.astype("<u8").tobytes() + self.narrow.astype("<u4").tobytes()

    def add(self, other: "Words") -> None:
        """Add a vector of the same form."""
        self.wide += other.wide
        self.narrow += other.narrow

    def add_mask(self, key: bytes) -> None:
        """Add the mask of a key."""
        for words, mask in self._beside(key):
            words += mask

    def subtract_mask(self, key: bytes) -> None:
        """Take the mask of a key off."""
        for words, mask in self._beside(key):
            words -= mask

    def _beside(
        self, key: bytes
    ) -> Iterator[tuple[NDArray[np.unsignedinteger], NDArray[np.unsignedinteger]]]:
        """Yield the words in pieces, each with its piece of a key's mask."""
        encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(_BLOCK_BYTES))).encryptor()
        buffer = np.empty(_CHUNK_BYTES + _BLOCK_BYTES, np.uint8)
        zeros = memoryview(bytes(_CHUNK_BYTES))
        for words in (self.wide, self.narrow):
            size = words.itemsize
            for begin in range(0, len(words), _CHUNK_BYTES // size):
                piece = words[begin : begin + _CHUNK_BYTES // size]
                got = encryptor.update_into(zeros[: len(piece) * size], buffer.data)
                yield piece, buffer[:got].view(words.dtype.newbyteorder("<"))
