"""Messages of secure sums, stage by stage, and what binds the stages to each other.

    keys     the server names the round; a node answers with two new public keys
    shares   the server lists all members; a node answers with shares of its two secrets, each
             sealed for one neighbour
    masks    the server hands on the sealed shares and sends the model; a node trains and answers
             with its numbers under masks
    agree    the server says whose numbers it has; a node signs that list, and no other
    unmask   the server hands on signatures; a node that finds its own list under enough of them
             answers with one share for each neighbour: of the own mask of one whose numbers
             arrived, of the key of one whose did not

The list is known when the numbers have come, and shares may be given when others have signed it, so
that agreeing cannot share a question with the stage before it or with the one behind it.

All travel in one ConfigRecord; the masked numbers are an ArrayRecord beside it.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning",
2017, whose round "ConsistencyCheck" is the stage "agree". That the list of members, the plan and
all that was sent are part of every mask is ours.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_args, get_origin

from flwr.app import ConfigRecord, RecordDict

SECURE, MASKED = "fedcurv.secure", "fedcurv.masked"
PROTOCOL = 2

_LONGEST_NAME = 200
_LONGEST_LIST = 2**20


@dataclass(frozen=True)
class Packed:
    """Fields of plain values and of lists of them, as a ConfigRecord and back."""

    def to_config(self) -> ConfigRecord:
        """Return the record; lists that are empty are left out, as Flower does not count them."""
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return ConfigRecord({name: value for name, value in fields if value != []})

    @classmethod
    def from_config(cls, config: ConfigRecord) -> Self:
        """Return what the record holds.

        Raises:
            ValueError: if a field is missing or of another type.
        """
        values = {}
        for field in dataclasses.fields(cls):
            kind = get_origin(field.type) or field.type
            value = config.get(field.name, [] if kind is list else None)
            if type(value) is not kind or not _holds(field.type, value):
                raise ValueError(
                    f"expected {field.name!r} in a message of secure sums, got "
                    f"{type(value).__name__}; do server and clients have the same version of "
                    "fedcurv?"
                )
            values[field.name] = value
        return cls(**values)


def _holds(kind: Any, values: Any) -> bool:
    if get_origin(kind) is not list:
        return True
    return len(values) <= _LONGEST_LIST and all(type(one) is get_args(kind)[0] for one in values)


@dataclass(frozen=True)
class Stage(Packed):
    """A message of one stage.

    Attributes:
        federation: the server's name for the training, over restarts.
        session: its name for itself.
        number: of the round.
    """

    stage: ClassVar[str]
    federation: str
    session: str
    number: int

    @property
    def round_name(self) -> tuple[str, str, int]:
        """The round's name, which no other round has."""
        return self.federation, self.session, self.number

    def to_config(self) -> ConfigRecord:
        """Return the record, with the stage and the version of the protocol."""
        return ConfigRecord(
            {**super().to_config(), "stage": self.stage, "protocol-version": PROTOCOL}
        )


@dataclass(frozen=True)
class AskForKeys(Stage):
    """The server begins a round."""

    stage = "keys"


@dataclass(frozen=True)
class Keys(Stage):
    """A node's public keys of one round.

    Attributes:
        client_id: its stable id.
        sealing_key: for shares.
        masking_key: for masks.
        agreeing_key: by which it signs who is in the sum.
        signature: of the round, the id and the three keys by the node's own key, and not of the
            commitment; empty if it has none.
        commitment: a hash of the secret of its own mask.
    """

    stage = "keys"
    client_id: str
    sealing_key: bytes
    masking_key: bytes
    agreeing_key: bytes
    signature: bytes
    commitment: bytes


@dataclass(frozen=True)
class AskForShares(Stage):
    """The server lists the members, in one order for all.

    Attributes:
        client_ids: of all members.
        sealing_keys: likewise.
        masking_keys: likewise.
        agreeing_keys: likewise.
        signatures: likewise.
        neighbours: how many each has.
        threshold: how many shares give a secret back.
    """

    stage = "shares"
    client_ids: list[str]
    sealing_keys: list[bytes]
    masking_keys: list[bytes]
    agreeing_keys: list[bytes]
    signatures: list[bytes]
    neighbours: int
    threshold: int

    def digest(self) -> bytes:
        """Return a hash of all that nodes must agree on."""
        all_keys = self.sealing_keys, self.masking_keys, self.agreeing_keys
        keys = [[key.hex() for key in keys] for keys in all_keys]
        agreed = [
            PROTOCOL,
            *self.round_name,
            self.client_ids,
            keys,
            self.neighbours,
            self.threshold,
        ]
        return hashlib.sha256(json.dumps(agreed).encode()).digest()


@dataclass(frozen=True)
class Shares(Stage):
    """A node's shares, each sealed for the neighbour of that number.

    Attributes:
        holders: numbers of its neighbours.
        sealed: a text for each.
    """

    stage = "shares"
    holders: list[int]
    sealed: list[bytes]


@dataclass(frozen=True)
class AskForMasked(Stage):
    """The server asks for training, and for numbers under masks.

    Attributes:
        present: numbers of the members whose shares were handed on.
        senders: of them, those that are this node's neighbours.
        sealed: a text of each, for this node.
        plan: of the round.
        sums_plan: of the round whose sums are sent; empty for none.
    """

    stage = "masks"
    present: list[int]
    senders: list[int]
    sealed: list[bytes]
    plan: str
    sums_plan: str

    def binding(self, members: bytes, sent: bytes) -> bytes:
        """Return a hash of all that nodes must have been told alike for their masks to cancel.

        Args:
            members: digest of the list of members.
            sent: digest of the message beside this record.
        """
        told = [members.hex(), self.present, self.plan, self.sums_plan, sent.hex()]
        return hashlib.sha256(json.dumps(told).encode()).digest()


@dataclass(frozen=True)
class Masked(Stage):
    """A node's numbers are in the record beside this one.

    Attributes:
        form: what they are.
    """

    stage = "masks"
    form: str


@dataclass(frozen=True)
class AskForAgreement(Stage):
    """The server says which of those present have answered.

    Attributes:
        alive: numbers of the members whose masked numbers it has, in order.
        dead: of the others that were present.
    """

    stage = "agree"
    alive: list[int]
    dead: list[int]


@dataclass(frozen=True)
class Agreed(Stage):
    """A node's signature of who is in the sum.

    Attributes:
        signature: by its agreeing key.
    """

    stage = "agree"
    signature: bytes


@dataclass(frozen=True)
class AskForUnmasking(Stage):
    """The server shows that enough members were told of one list.

    Attributes:
        signers: numbers of members, in order.
        signatures: theirs, of the list.
    """

    stage = "unmask"
    signers: list[int]
    signatures: list[bytes]


@dataclass(frozen=True)
class Revealed(Stage):
    """A node's shares of one secret of each neighbour that was present.

    Attributes:
        owners: numbers of these neighbours.
        shares: of the own mask of one that is alive, of the masking key of one that is dead.
    """

    stage = "unmask"
    owners: list[int]
    shares: list[bytes]


def stage_in(content: RecordDict) -> ConfigRecord | None:
    """Return the record of secure sums in a message, or None.

    Raises:
        ValueError: if it is of another version.
    """
    config = content.config_records.get(SECURE)
    if config is None:
        return None
    if (version := config.get("protocol-version")) != PROTOCOL:
        raise ValueError(
            f"expected secure sums in version {PROTOCOL}, got {str(version)[:20]}; let server and "
            "clients have the same version of fedcurv"
        )
    return config


def is_name(text: str) -> bool:
    """Return whether a text may be a client's id or a round's name."""
    return 0 < len(text) <= _LONGEST_NAME and text.isprintable()
