"""Keys of secure sums: agreed on by X25519, derived by HKDF, to seal by AES-GCM, for Ed25519."""

import os
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

KEY_BYTES = 32
SIGNATURE_BYTES = 64
_NONCE_BYTES, _TAG_BYTES = 12, 16
SEAL_BYTES = _NONCE_BYTES + _TAG_BYTES  # that a sealed text is longer than the text


@dataclass(frozen=True)
class KeyPair:
    """A node's keys for one use in one round.

    Attributes:
        private: 32 bytes, a secret.
        public: 32 bytes.
    """

    private: bytes = field(repr=False)
    public: bytes

    @classmethod
    def new(cls) -> "KeyPair":
        """Return a pair that nobody else has."""
        return cls.of(os.urandom(KEY_BYTES))

    @classmethod
    def of(cls, private: bytes) -> "KeyPair":
        """Return the pair of a private key."""
        public = X25519PrivateKey.from_private_bytes(private).public_key()
        return cls(private, public.public_bytes(Encoding.Raw, PublicFormat.Raw))


def new_signing_pair() -> KeyPair:
    """Return a pair for signatures that nobody else has."""
    return signing_pair_of(os.urandom(KEY_BYTES))


def signing_pair_of(private: bytes) -> KeyPair:
    """Return the pair for signatures of a private key."""
    public = Ed25519PrivateKey.from_private_bytes(private).public_key()
    return KeyPair(private, public.public_bytes(Encoding.Raw, PublicFormat.Raw))


def signature_of(private: bytes, statement: bytes) -> bytes:
    """Return the signature of a statement by a pair for signatures; 64 bytes."""
    return Ed25519PrivateKey.from_private_bytes(private).sign(statement)


def is_signed(public: bytes, statement: bytes, signature: bytes) -> bool:
    """Return whether a signature is that of a statement by this key."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, statement)
    except (InvalidSignature, ValueError):  # keys of other lengths
        return False
    return True


def agreed_key(private: bytes, public: bytes, purpose: bytes) -> bytes:
    """Return the key that the owners of two pairs share, for one purpose; 32 bytes.

    Args:
        private: one's own private key.
        public: the other's public key.
        purpose: what the key is for, and all that both must agree on: with another purpose it is
            another key.

    Raises:
        ValueError: for a public key with which every secret would be the same.
    """
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError as error:
        raise ValueError("expected a public key of X25519, got one that cannot be used") from error
    return derived_key(shared, purpose)


def is_fit_key(public: bytes) -> bool:
    """Return whether a public key is one with which a secret can be agreed on."""
    try:
        agreed_key(os.urandom(KEY_BYTES), public, b"")
    except ValueError:
        return False
    return True


def derived_key(secret: bytes, purpose: bytes) -> bytes:
    """Return a key for one purpose that a secret gives; 32 bytes."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=purpose).derive(secret)


def seal(key: bytes, text: bytes, bound: bytes) -> bytes:
    """Return a text that only who has the key can read or make, for what it is bound to."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, text, bound)


def unseal(key: bytes, sealed: bytes, bound: bytes) -> bytes:
    """Return the text of ``seal``.

    Raises:
        ValueError: if it was made with another key, bound to something else, or changed.
    """
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound)
    except (InvalidTag, ValueError) as error:
        raise ValueError("expected a sealed text of this round, got one that is not") from error
