"""Protocol of strategies that send statistics beside the model, as FedCurv does."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from flwr.serverapp.strategy import Strategy

from fedcurv.strategies.unfit import DP_WRAPPERS, inside_differential_privacy


@runtime_checkable
class SendsStatistics(Protocol):
    """A strategy that sends more than weights, and checks the replies of a round itself.

    Attributes:
        refused: reason by message id for the replies that the last round refused.
        max_examples: the largest weight that a reply may have; None for the default bound.
        takes_replies_once: whether ``aggregate_train`` goes through its replies once, so that they
            may come one by one, and none need be held.
    """

    refused: Mapping[str, str]
    max_examples: float | None

    @property
    def takes_replies_once(self) -> bool:
        """Whether a reply is let go before the next one is asked for."""
        ...


def refuse_differential_privacy(strategy: Strategy) -> None:
    """Raise Misplaced, a TypeError, for a differential-privacy wrapper around statistics."""
    if isinstance(strategy, DP_WRAPPERS) and isinstance(strategy.strategy, SendsStatistics):
        raise inside_differential_privacy(strategy)
