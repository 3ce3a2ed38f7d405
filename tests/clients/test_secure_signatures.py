"""Keys of a round signed by nodes' own keys, and whom a node believes."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from flwr.serverapp.strategy import FedAvg

from fedcurv.clients import SecureSumsMod
from fedcurv.clients.secure.node import Node
from fedcurv.clients.secure.refused import RefusedByNode
from fedcurv.clients.secure.signatures import Signatures
from fedcurv.simulations.deployment.keys import write_node_key
from fedcurv.strategies import RoundFailed, SecureSums
from fedcurv.strategies.wire.secure.keys import KeyPair, new_signing_pair
from fedcurv.strategies.wire.secure.stages import AskForKeys, AskForShares
from tests.federation import options
from tests.secure_federation import SecureFederation

MAKE = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ecdsa": lambda: ec.generate_private_key(ec.SECP384R1()),
}
FORMS = {
    "openssh": (Encoding.PEM, PrivateFormat.OpenSSH),
    "pem": (Encoding.PEM, PrivateFormat.PKCS8),
}


def write_keys(folder, number, kind="ed25519", form="openssh"):
    """Write keys of nodes 0, 1, ... as ``ssh-keygen`` does: N and N.pub."""
    for name in range(number):
        key = MAKE[kind]()
        (folder / f"{name}").write_bytes(key.private_bytes(*FORMS[form], NoEncryption()))
        line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        (folder / f"{name}.pub").write_bytes(line + b" a comment\n")
    return folder


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MAKE)
def test_a_signature_is_believed_for_its_statement_and_its_client_alone(tmp_path, kind, form):
    write_keys(tmp_path, 2, kind, form)
    signed = Signatures(tmp_path / "0").sign(b"statement")
    trusting = Signatures(trusted_keys=tmp_path)
    trusting.verify("0", b"statement", signed)
    for client, statement, signature in (
        ("0", b"another", signed),
        ("1", b"statement", signed),
        ("0", b"statement", b""),
        ("0", b"statement", signed[:-1] + bytes([signed[-1] ^ 1])),
    ):
        with pytest.raises(ValueError, match="signed by client"):
            trusting.verify(client, statement, signature)
    with pytest.raises(ValueError, match="whose keys are trusted, got client 7"):
        trusting.verify("7", b"statement", signed)
    assert Signatures(trusted_keys=tmp_path).sign(b"statement") == b""
    lines = {"0": (tmp_path / "0.pub").read_text()}
    Signatures(trusted_keys=lines).verify("0", b"statement", signed)


def test_keys_of_other_kinds_are_refused(tmp_path):
    key = rsa.generate_private_key(65537, 2048)
    (tmp_path / "a").write_bytes(key.private_bytes(*FORMS["openssh"], NoEncryption()))
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    (tmp_path / "b").write_text("no key")
    (tmp_path / "empty").mkdir()
    for options_, says in (
        ({"signing_key": tmp_path / "a"}, "a key of Ed25519 or ECDSA, got RSAPrivateKey"),
        ({"signing_key": tmp_path / "b"}, "expected a private key without password"),
        ({"trusted_keys": {"a": line}}, "expected Ed25519 or ECDSA, got RSAPublicKey"),
        ({"trusted_keys": {"a": "no key"}}, "expected a line in OpenSSH's form"),
        ({"trusted_keys": tmp_path / "empty"}, "expected public keys CLIENT-ID.pub"),
    ):
        with pytest.raises(ValueError, match=says):
            SecureSumsMod(**options_)
    with pytest.raises(FileNotFoundError):
        SecureSumsMod(signing_key=tmp_path / "nowhere")


def test_one_key_under_two_names_is_refused(tmp_path):
    write_keys(tmp_path, 3)
    (tmp_path / "2.pub").write_text((tmp_path / "0.pub").read_text() + " another comment")
    with pytest.raises(ValueError, match="got the same for 0 and 2"):
        SecureSumsMod(trusted_keys=tmp_path)


class OwnKeys(SecureFederation):
    """Every node signs by its own key and trusts those of a folder."""

    def watch(self, message, context, call_next):
        partition = context.node_config["partition-id"]
        context.node_config["secure-key"] = str(self.folder / str(partition))
        context.node_config["secure-trusted"] = str(self.folder)
        return super().watch(message, context, call_next)


def test_a_federation_whose_nodes_sign_and_trust_each_other_sums_up(tmp_path):
    federation = OwnKeys(num_nodes=4)
    federation.folder = write_keys(tmp_path, 4)
    federation.run(SecureSums(FedAvg(**options())), num_rounds=2)
    assert set(federation.statuses(2).values()) == {"ok"}


def test_nodes_that_know_nobody_say_so_once_a_run_and_those_that_do_are_silent(tmp_path, caplog):
    SecureFederation().run(SecureSums(FedAvg(**options())), num_rounds=2)
    told = [r.message for r in caplog.records if "whose keys this node does not know" in r.message]
    assert len(told) == 1
    assert "a server that plays the others reads its numbers" in told[0]
    caplog.clear()
    federation = OwnKeys(num_nodes=4)
    federation.folder = write_keys(tmp_path, 4)
    federation.run(SecureSums(FedAvg(**options())), num_rounds=1)
    assert "does not know" not in caplog.text


def test_a_member_whose_key_nobody_trusts_ends_the_round(tmp_path):
    federation = OwnKeys(num_nodes=4)
    federation.folder = write_keys(tmp_path, 4)
    (tmp_path / "3.pub").unlink()
    with pytest.raises(RoundFailed, match="whose keys are trusted, got client 3"):
        federation.run(SecureSums(FedAvg(**options())))


def test_a_server_that_plays_a_member_is_found_out_by_its_signature(tmp_path):
    write_keys(tmp_path, 3)
    nodes = [Node(str(i), identity=Signatures(tmp_path / str(i), tmp_path)) for i in range(3)]
    told = [node.keys(AskForKeys("federation", "session", 1)) for node in nodes]
    forged, masking, agreeing = KeyPair.new(), KeyPair.new(), new_signing_pair()

    def members(keys):
        return AskForShares(
            *("federation", "session", 1),
            client_ids=["0", "1", "2"],
            sealing_keys=[k[0] for k in keys],
            masking_keys=[k[1] for k in keys],
            agreeing_keys=[k[2] for k in keys],
            signatures=[k[3] for k in keys],
            neighbours=2,
            threshold=2,
        )

    honest = [(k.sealing_key, k.masking_key, k.agreeing_key, k.signature) for k in told]
    for last in (
        (forged.public, masking.public, agreeing.public, told[2].signature),
        (forged.public, *honest[2][1:]),
        (honest[2][0], masking.public, *honest[2][2:]),
        (*honest[2][:2], agreeing.public, told[2].signature),
        (forged.public, masking.public, agreeing.public, b""),
    ):
        with pytest.raises(RefusedByNode, match="somebody plays it"):
            nodes[0].shares(members([*honest[:2], last]))
    # nor are keys of an earlier round those of this one
    again = [node.keys(AskForKeys("federation", "session", 2)) for node in nodes]
    mixed = [
        (k.sealing_key, k.masking_key, k.agreeing_key, k.signature) for k in again[:2]
    ] + honest[2:]
    asked = members(mixed)
    asked = AskForShares(**{**vars(asked), "number": 2})
    with pytest.raises(RefusedByNode, match="somebody plays it"):
        nodes[0].shares(asked)


def test_the_keys_that_a_deployment_writes_will_do(tmp_path):
    for name in ("kitchen", "cellar"):
        write_node_key(tmp_path, name)
    signed = Signatures(tmp_path / "kitchen").sign(b"statement")
    Signatures(trusted_keys=tmp_path).verify("kitchen", b"statement", signed)
    with pytest.raises(ValueError, match="signed by client cellar"):
        Signatures(trusted_keys=tmp_path).verify("cellar", b"statement", signed)
