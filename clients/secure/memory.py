"""What a node remembers between the stages of a round, and forgets at its end."""

from dataclasses import dataclass, field

from fedcurv.strategies.wire.secure.stages import Packed


@dataclass(frozen=True)
class Memory(Packed):
    """What a node remembers between the stages of a round; printed without its secrets.

    Attributes:
        federation: of the round.
        session: likewise.
        number: likewise.
        stage: the last that it has answered; ``over`` when its secrets are gone.
        over: sessions of servers that were followed by another's.
        sealing_private: a secret, as are the next four.
        masking_private: of the pairwise masks.
        agreeing_private: by which it signs who is in the sum.
        own_secret: of the mask that is its own.
        shares: of its neighbours that were present, the key's before the own mask's.
        members: digest of the list of members.
        index: its number among them.
        threshold: how many shares give a secret back.
        neighbours: numbers of its neighbours.
        sealing_keys: theirs.
        masking_keys: theirs.
        agreeing_keys: of all members.
        present: numbers of those present.
        binding: hash of all that nodes must have been told alike.
        alive: numbers of those in the sum, which it has signed.
    """

    federation: str = ""
    session: str = ""
    number: int = 0
    stage: str = "over"
    over: list[str] = field(default_factory=list)
    sealing_private: bytes = field(default=b"", repr=False)
    masking_private: bytes = field(default=b"", repr=False)
    agreeing_private: bytes = field(default=b"", repr=False)
    own_secret: bytes = field(default=b"", repr=False)
    shares: list[bytes] = field(default_factory=list, repr=False)
    members: bytes = b""
    index: int = 0
    threshold: int = 0
    neighbours: list[int] = field(default_factory=list)
    sealing_keys: list[bytes] = field(default_factory=list)
    masking_keys: list[bytes] = field(default_factory=list)
    agreeing_keys: list[bytes] = field(default_factory=list)
    present: list[int] = field(default_factory=list)
    binding: bytes = b""
    alive: list[int] = field(default_factory=list)

    def without_secrets(self) -> "Memory":
        """Return what must outlive the round: which it was."""
        return Memory(self.federation, self.session, self.number, "over", self.over)
