"""Signatures by nodes' own keys, and the public keys that a node's owner trusts."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

PublicKey = Ed25519PublicKey | EllipticCurvePublicKey
PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey

_OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_SUFFIX = ".pub"


class Signatures:
    """Signs by a node's own key, and verifies by those that its owner trusts.

    Args:
        signing_key: file of a private key without password, Ed25519 or ECDSA; None for none.
        trusted_keys: lines in OpenSSH's form by client id, or a folder of ``CLIENT-ID.pub``; None
            trusts whoever the server names.

    Raises:
        ValueError: for keys of other kinds, and for one key under two names.
        OSError: if a file cannot be read.
    """

    def __init__(
        self,
        signing_key: str | PathLike[str] | None = None,
        trusted_keys: Mapping[str, str] | str | PathLike[str] | None = None,
    ) -> None:
        self._private = None if signing_key is None else _private_key(Path(signing_key))
        self._trusted: dict[str, PublicKey] | None = None
        if trusted_keys is not None:
            lines = trusted_keys
            if not isinstance(lines, Mapping):
                folder = Path(lines)
                lines = {p.name.removesuffix(_SUFFIX): p.read_text() for p in _keys_in(folder)}
            self._trusted = {name: _public_key(name, line) for name, line in lines.items()}
            _require_own_keys(self._trusted)

    @property
    def knows_others(self) -> bool:
        """Whether members must be known by their keys."""
        return self._trusted is not None

    def sign(self, statement: bytes) -> bytes:
        """Return a signature; nothing without a key."""
        if self._private is None:
            return b""
        if isinstance(self._private, Ed25519PrivateKey):
            return self._private.sign(statement)
        return self._private.sign(statement, ECDSA(SHA256()))

    def verify(self, client_id: str, statement: bytes, signature: bytes) -> None:
        """Raise a ValueError unless it is the signature of this client, if any must be."""
        if self._trusted is None:
            return
        if (key := self._trusted.get(client_id)) is None:
            raise ValueError(
                f"expected members whose keys are trusted, got client {client_id[:100]}, whose is "
                "not; add its public key to the trusted ones, if it is known"
            )
        try:
            if isinstance(key, Ed25519PublicKey):
                key.verify(signature, statement)
            else:
                key.verify(signature, statement, ECDSA(SHA256()))
        except InvalidSignature as error:
            raise ValueError(
                f"expected keys of this round signed by client {client_id[:100]}, got others: "
                "somebody plays it, or it signs by another key than the trusted one"
            ) from error


def _require_own_keys(trusted: Mapping[str, PublicKey]) -> None:
    owner_of: dict[bytes, str] = {}
    for name, key in trusted.items():
        text = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        if (other := owner_of.setdefault(text, name)) != name:
            raise ValueError(
                f"trusted keys: expected one of its own for each client, got the same for {other} "
                f"and {name}: whoever has it would count as two"
            )


def _keys_in(folder: Path) -> list[Path]:
    paths = sorted(p for p in folder.iterdir() if p.name.endswith(_SUFFIX))
    if not paths:
        raise ValueError(f"expected public keys CLIENT-ID.pub in {folder}, got none")
    return paths


def _private_key(path: Path) -> PrivateKey:
    text = path.read_bytes()
    load = load_ssh_private_key if text.startswith(_OPENSSH) else load_pem_private_key
    try:
        key = load(text, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(
            f"{path}: expected a private key without password, got what is none"
        ) from error
    if not isinstance(key, PrivateKey):
        raise ValueError(f"{path}: expected a key of Ed25519 or ECDSA, got {type(key).__name__}")
    return key


def _public_key(client_id: str, line: str) -> PublicKey:
    try:
        key = load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(
            f"trusted key of client {client_id}: expected a line in OpenSSH's form, got what is "
            "none"
        ) from error
    if not isinstance(key, PublicKey):
        raise ValueError(
            f"trusted key of client {client_id}: expected Ed25519 or ECDSA, got "
            f"{type(key).__name__}"
        )
    return key
