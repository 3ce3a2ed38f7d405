"""Strategies that must see single replies, and so have no secure sums."""

import math

from flwr.serverapp.strategy import (
    Bulyan,
    FedMedian,
    FedTrimmedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)

from fedcurv.strategies.fedcurv import FedCurv
from fedcurv.strategies.legacy import refuse_legacy_strategy
from fedcurv.strategies.loop.strategy_state import with_inner
from fedcurv.strategies.unfit import DP_WRAPPERS

_SINGLE = (Krum, MultiKrum, Bulyan, FedMedian, FedTrimmedAvg, QFedAvg, FedXgbBagging, FedXgbCyclic)
_OURS = "fedcurv."


def refuse_single_replies(strategy: Strategy) -> None:
    """Raise a TypeError, or a ValueError for an option, for what cannot go by a sum alone.

    Args:
        strategy: around which secure sums are to be; those inside it are looked at, too.
    """
    refuse_legacy_strategy(strategy)
    for one in with_inner(strategy):
        name = type(one).__name__
        is_ours = type(one).__module__.startswith(_OURS)
        if isinstance(one, (*_SINGLE, *DP_WRAPPERS)) or (is_ours and not isinstance(one, FedCurv)):
            raise TypeError(
                f"expected a strategy that averages, got {name}, which must see single replies; "
                "use it without SecureSums, or SecureSums around FedAvg, FedProx, FedAvgM, FedAdam "
                "or FedCurv around them"
            )
        if type(one).start is not Strategy.start and not isinstance(one, FedCurv):
            raise TypeError(
                f"{name} overrides start, which SecureSums around it would not call; move what it "
                "does into on_round of fedcurv.strategies.start"
            )
        if isinstance(one, FedCurv):
            _require_sums_only(one)


def _require_sums_only(strategy: FedCurv) -> None:
    if not strategy.secure_sums:
        raise ValueError(
            "expected FedCurv(..., secure_sums=True) in SecureSums, got secure_sums=False, with "
            "which the server would form F·θ̂ of each reply itself"
        )
    if strategy.max_examples is not None or math.isfinite(strategy._max_precision):
        raise ValueError(
            "max_examples and max_precision bound what one reply may hold, and in a secure sum "
            "nobody sees one; leave them out, or FedCurv without SecureSums"
        )
