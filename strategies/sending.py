"""What FedCurv puts into a round's messages, and who says so."""

import dataclasses
import itertools
import logging
from collections.abc import Iterable
from numbers import Integral
from uuid import uuid4

from flwr.app import Message, RecordDict

from fedcurv.strategies.wire.codes import CODE_BITS, EXACT_BITS
from fedcurv.strategies.wire.records import DISTANCE, PRECISION, Instruction, pack_instruction

logger = logging.getLogger(__name__)


# as few as hold where a client's own terms are nearly all of the sum, too
_USUAL_BITS = 8


def chosen_bits(bits: int | None, *, exact: bool) -> int:
    """Return a number of bits as it was given; None is 32 where sums must be exact, else 8."""
    if bits is None:
        return EXACT_BITS if exact else _USUAL_BITS
    return bits


def checked_bits(bits: int, *, secure_sums: bool) -> int:
    """Return how many bits a number of the statistics has.

    Args:
        bits: as it was chosen.
        secure_sums: whether the server is to see sums only.

    Raises:
        ValueError: for another number than 4, 8 and 32, and for codes in secure sums.
    """
    if not isinstance(bits, Integral) or bits not in (*CODE_BITS, EXACT_BITS):
        raise ValueError(f"bits must be 4, 8 or 32, got {bits!r}")
    if secure_sums and bits != EXACT_BITS:
        raise ValueError(
            f"secure_sums=True needs bits=32, got bits={bits}: codes of several clients cannot be "
            "added unread, since each has scales of its own"
        )
    return int(bits)


class Sending:
    """Puts an instruction into a round's messages, and says with it who sends it.

    Attributes:
        federation: a name for the training, the same over restarts.
        saved_round: see ``Instruction``.
        resumable: likewise.
    """

    def __init__(self) -> None:
        self.saved_round: int | None = None
        self.resumable = False
        self._told = self._told_of_none = False
        self.begin(uuid4().hex)

    def begin(self, federation: str) -> None:
        """Send from now on for this training, in a session that is new."""
        self.federation = federation
        self._session, self._sendings = uuid4().hex, itertools.count(1)

    def next_name(self) -> str:
        """Return a name for the sending that comes next."""
        return f"{self._session}/{next(self._sendings)}"

    def add_to(self, messages: Iterable[Message], instruction: Instruction) -> None:
        """Add the records of an instruction to each message."""
        instruction = dataclasses.replace(
            instruction,
            federation=self.federation,
            sending=self.next_name(),
            saved_round=self.saved_round,
            resumable=self.resumable,
        )
        self._tell_of_no_sums(instruction)
        # sums in codes depend on the message's arrays, which as a rule are the same in all
        packed: dict[tuple[int, ...], RecordDict] = {}
        for message in messages:
            arrays = tuple(map(id, message.content.array_records.values()))
            if arrays not in packed:
                packed[arrays] = pack_instruction(instruction, message.content)
                self._tell_of_plain_sums(packed[arrays], instruction.bits)
            # strategies put one RecordDict into all messages: adding to it would add to all of them
            message.content = RecordDict({**message.content, **packed[arrays]})

    def _tell_of_no_sums(self, instruction: Instruction) -> None:
        if instruction.server_round < 2 or instruction.sums is not None or self._told_of_none:
            return
        if instruction.strength > 0.0:
            self._told_of_none = True
            logger.warning(
                "round %d begins without Fisher information, as no client has sent any that could "
                "be used: clients train as without FedCurv; in their app, let "
                "ClientCurvature.report(content, model, batches) come last",
                instruction.server_round,
            )

    def _tell_of_plain_sums(self, records: RecordDict, bits: int) -> None:
        is_plain = PRECISION in records and DISTANCE not in records
        if is_plain and bits != EXACT_BITS and not self._told:
            self._told = True
            logger.info(
                "the sums are sent in float32 and not in %d bits, since the messages' arrays are "
                "not named like the parameters that the statistics are of, or not once",
                bits,
            )
