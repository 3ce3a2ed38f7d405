"""Certificates for a SuperLink and keys for SuperNodes, of an authority made for the occasion.

``python -m fedcurv.simulations.deployment.keys FOLDER --host NAME --node NAME`` writes them.
"""

import argparse
import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedcurv.private_files import open_private, private_folder

_LOOPBACK = ("localhost", "127.0.0.1")
_TRIAL_DAYS = 7

PrivateKey = ec.EllipticCurvePrivateKey


def write_certificates(
    folder: Path, hosts: Sequence[str] = _LOOPBACK, *, days: int = _TRIAL_DAYS
) -> None:
    """Write ca.crt, server.pem and server.key.

    The authority's own key is thrown away: it can sign nothing else.

    Args:
        folder: existing.
        hosts: names and addresses by which nodes reach the server.
        days: for which they are valid.
    """
    authority_key, server_key = _new_key(), _new_key()
    authority_name, server_name = _name("fedcurv"), _name(hosts[0])
    authority = (
        _certificate(authority_name, authority_name, authority_key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    server = (
        _certificate(server_name, authority_name, server_key, days)
        .add_extension(names, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(authority.public_bytes(pem))
    (folder / "server.pem").write_bytes(server.public_bytes(pem))
    private = server_key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write_secret(folder / "server.key", private)


def write_node_key(folder: Path, name: str) -> None:
    """Write a node's key pair as ``name`` and ``name.pub``, in OpenSSH's format."""
    key = _new_key()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    _write_secret(folder / name, private)
    (folder / f"{name}.pub").write_bytes(public)


def _new_key() -> PrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - datetime.timedelta(minutes=5),
        not_valid_after=now + datetime.timedelta(days=days),
    )


def _write_secret(path: Path, content: bytes) -> None:
    with open_private(path, "wb") as file:
        file.write(content)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fedcurv.simulations.deployment.keys",
        description="Write ca.crt, server.pem and server.key for a SuperLink, and NAME and "
        "NAME.pub for each SuperNode.",
    )
    parser.add_argument("folder", type=Path, help="empty or missing")
    parser.add_argument(
        "--host", action="append", metavar="NAME", help="name or address of the server"
    )
    parser.add_argument("--node", action="append", default=[], metavar="NAME")
    parser.add_argument("--days", type=int, default=365, help="validity (default: 365)")
    options = parser.parse_args()
    if options.days < 1:
        parser.error(f"--days must be >= 1, got {options.days}")
    if options.folder.exists() and any(options.folder.iterdir()):
        parser.error(f"folder must be empty or missing, got {options.folder}")
    private_folder(options.folder)
    write_certificates(options.folder, options.host or _LOOPBACK, days=options.days)
    for node in options.node:
        write_node_key(options.folder, node)


if __name__ == "__main__":
    main()
