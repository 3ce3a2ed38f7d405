"""A reply in which several clients' are summed up: one to look at, and many that are in it."""

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from flwr.app import Message, RecordDict

from fedcurv.strategies.sums import Agreed, RoundSums


class JointReply(Message):
    """One reply that stands for several; made by the server, never by a client.

    Args:
        content: mean arrays, sums of statistics, and metrics with the sum of the weights.
        reply_to: one of the messages that were answered.
        answered: ids of all of them.

    Attributes:
        answered: as given.
    """

    answered: Sequence[str]

    def __init__(self, content: RecordDict, *, reply_to: Message, answered: Sequence[str]) -> None:
        super().__init__(content, reply_to=reply_to)
        self.answered = answered


def agreed_in(
    replies: Iterable[Message],
    sums: RoundSums,
    names: frozenset[str],
    dtype: torch.dtype = torch.float32,
) -> Agreed:
    """Return what a round's replies agree on; those in a joint one contribute alike.

    The sums of a joint reply are whole numbers times powers of two, and stay so in float64: what a
    client takes off again is exact.

    Args:
        replies: of the round.
        sums: of what they hold.
        names: of the statistics of earlier rounds.
        dtype: of sums of single replies.
    """
    joint = next((reply for reply in replies if isinstance(reply, JointReply)), None)
    if joint is None:
        return sums.agreed(names, dtype)
    agreed = sums.agreed(names, torch.float64)
    share = sum(agreed.contributors.values()) / len(joint.answered)
    answered = joint.answered if agreed.contributors else ()
    return dataclasses.replace(agreed, contributors=dict.fromkeys(answered, share))
