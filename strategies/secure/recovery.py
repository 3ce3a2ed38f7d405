"""Secrets that the shares of a last stage give back, and who has sent what does not fit."""

from collections.abc import Callable, Mapping, Sequence

from fedcurv.parameters import listed
from fedcurv.strategies.replies.check import RoundFailed
from fedcurv.strategies.wire.secure.keys import KeyPair
from fedcurv.strategies.wire.secure.shamir import are_of_one_secret, recovered
from fedcurv.strategies.wire.secure.statements import commitment_of


class WronglyDealt(RoundFailed):
    """A client has given its neighbours shares that fit each other, and not to its secret.

    Attributes:
        client_id: of the client.
    """

    def __init__(self, server_round: int, client_id: str) -> None:
        super().__init__(
            f"round {server_round}: client {client_id} has shared another secret than the one it "
            "had named: the shares that its neighbours got of it fit each other"
        )
        self.client_id = client_id


class Recovery:
    """Finds members' secrets.

    Args:
        server_round: for what is said.
        members: ids of all.
        around: numbers of the neighbours, by member.
        needed: how many shares give a secret back.
        revealed: by holder, its shares by member.

    Attributes:
        misfits: reason by client whose share of a secret did not fit to the others'.
    """

    def __init__(
        self,
        server_round: int,
        members: Sequence[str],
        around: Mapping[int, Sequence[int]],
        needed: int,
        revealed: Mapping[int, Mapping[int, bytes]],
    ) -> None:
        self._round, self._members, self._around = server_round, members, around
        self._needed, self._revealed = needed, revealed
        self.misfits: dict[str, str] = {}

    def own_secret(self, index: int, commitment: bytes) -> bytes:
        """Return the secret of a member's own mask.

        Raises:
            RoundFailed: if it is not to be found.
        """
        return self._secret(index, lambda secret: commitment_of(secret) == commitment)

    def masking_private(self, index: int, public: bytes) -> bytes:
        """Return the private key of a member's pairwise masks.

        Raises:
            RoundFailed: if it is not to be found.
        """
        return self._secret(index, lambda secret: KeyPair.of(secret).public == public)

    def _secret(self, index: int, is_it: Callable[[bytes], bool]) -> bytes:
        """Return the secret that a member's neighbours give; one of them may be wrong."""
        holders = [holder for holder in self._around[index] if holder in self._revealed]
        if len(holders) < self._needed:
            raise RoundFailed(
                f"round {self._round}: {len(holders)} neighbours of client {self._members[index]} "
                f"answered at the last stage, and {self._needed} are needed to take masks off the "
                "sum"
            )
        holders.sort(key=lambda holder: self._members[holder] in self.misfits)
        shares = {holder + 1: self._revealed[holder][index] for holder in holders}
        try:
            secret, misfit = recovered(shares, self._needed, is_it)
        except ValueError as error:
            raise self._fault(index, shares) from error
        if misfit is not None:
            self.misfits[self._members[misfit - 1]] = (
                f"its share of a secret of client {self._members[index]} does not fit to the "
                "others'; one of the two has sent a wrong one"
            )
        return secret

    def _fault(self, index: int, shares: Mapping[int, bytes]) -> RoundFailed:
        """Return whose fault it is that shares do not give a secret, as far as that can be known.

        Where all fit each other and one is to spare, at least as many holders as there are to
        spare, and one more, would have to be in league to blame a member that has done no wrong.
        """
        if len(shares) > self._needed and are_of_one_secret(shares, self._needed):
            return WronglyDealt(self._round, self._members[index])
        holders = [self._members[point - 1] for point in sorted(shares)]
        return RoundFailed(
            f"round {self._round}: the shares of the secret of client {self._members[index]} do "
            f"not fit; it, or one of {listed(holders)}, has sent wrong ones"
        )
