"""Strategies that FedCurv cannot stand around, nor inside."""

from collections.abc import Collection

from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)

from fedcurv.strategies.legacy import refuse_legacy_strategy

DP_WRAPPERS = (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)


class Misplaced(TypeError):
    """FedCurv is where it would go wrong."""


def inside_differential_privacy(wrapper: Strategy) -> Misplaced:
    """Return the error for FedCurv inside such a wrapper."""
    return Misplaced(
        f"expected FedCurv without differential privacy, got it inside {type(wrapper).__name__}, "
        "which would clip and noise Fisher values as if they were weights; use that around "
        "FedAvg, or FedCurv without it"
    )


def refuse_to_wrap(strategy: Strategy, options: Collection[str]) -> None:
    """Raise a TypeError, with what to do, for a strategy around which FedCurv would go wrong.

    Args:
        strategy: to be wrapped.
        options: given beside it, which are FedAvg's own where there is no strategy.
    """
    refuse_legacy_strategy(strategy)
    name = type(strategy).__name__
    if options:
        raise TypeError(
            f"expected options only without a strategy, got {', '.join(options)} beside {name}; "
            f"give them to {name}"
        )
    if isinstance(strategy, DP_WRAPPERS):
        raise TypeError(
            f"expected a strategy without differential privacy, got {name}, which would clip and "
            "noise Fisher values as if they were weights"
        )
    if type(strategy).start is not Strategy.start:
        raise TypeError(
            f"{name} overrides start, which FedCurv around it would not call; write "
            f"class {name}(FedCurv) instead, with the same methods, and give it FedAvg's options"
        )
