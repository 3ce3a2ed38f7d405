"""Protocol of strategies that send statistics beside the model, as FedCurv does."""

import logging
from collections.abc import Mapping
from inspect import signature
from typing import Protocol, runtime_checkable

from flwr.serverapp.strategy import Strategy

from fedcurv.strategies.unfit import DP_WRAPPERS, inside_differential_privacy

logger = logging.getLogger(__name__)


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
        raise inside_differential_privacy(strategy, type(strategy.strategy).__name__)


def warn_of_own_start(strategy: Strategy) -> None:
    """Say that a strategy's own start is not called, if it has one."""
    if not isinstance(strategy, SendsStatistics) and type(strategy).start is not Strategy.start:
        logger.warning(
            "%s overrides start, which is not called here: call strategy.start(...) for that loop, "
            "or move what it does into on_round",
            type(strategy).__name__,
        )


def refuse_bounds_of_the_loop(strategy: Strategy) -> None:
    """Raise a TypeError for a strategy that the loop's own bounds of replies say nothing to."""
    if not isinstance(strategy, SendsStatistics):
        return
    name = type(strategy).__name__
    has_own = "max_examples" in signature(type(strategy)).parameters
    advice = f": {name}(..., max_examples=...)" if has_own else ", and has no such bound"
    raise TypeError(
        "expected replies_are_models and max_examples for other strategies only; "
        f"{name} checks its replies itself{advice}"
    )
