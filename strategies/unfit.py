"""Strategies that FedCurv and other methods cannot stand around, nor inside."""

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


def inside_differential_privacy(wrapper: Strategy, inside: str = "FedCurv") -> Misplaced:
    """Return the error for FedCurv, or another method, inside such a wrapper."""
    return Misplaced(
        f"expected {inside} without differential privacy, got it inside {type(wrapper).__name__}, "
        f"which would clip and noise {_what_it_sends(inside)}; {_instead(type(wrapper), inside)}"
    )


def _instead(wrapper: type, method: str) -> str:
    if method == "FedCurv":
        return f"write FedCurv({wrapper.__name__}(FedAvg(...), ...), private_sums=PrivateSums(...))"
    return f"use that around FedAvg, or {method} without it"


def _what_it_sends(strategy: str) -> str:
    if strategy == "FedCurv":
        return "Fisher values as if they were weights"
    if strategy == "SecureSums":
        return "numbers under masks"
    return "the ways that clients went, which are counted as they are"


def refuse_to_wrap(
    strategy: Strategy,
    options: Collection[str],
    around: str = "FedCurv",
    *,
    private: bool = False,
) -> None:
    """Raise a TypeError, with what to do, for a strategy around which FedCurv would go wrong.

    Args:
        strategy: to be wrapped.
        options: given beside it, which are FedAvg's own where there is no strategy.
        around: FedCurv, or the name of the method that is to be put around it.
        private: whether what it adds has a clip and a noise of its own.
    """
    refuse_legacy_strategy(strategy)
    name = type(strategy).__name__
    if options:
        raise TypeError(
            f"expected options only without a strategy, got {', '.join(options)} beside {name}; "
            f"give them to {name}"
        )
    if getattr(strategy, "names_a_term", False) is True:
        raise TypeError(
            f"expected a strategy whose clients have no term of their own, got {name} inside "
            f"{around}; take either alone"
        )
    if isinstance(strategy, DP_WRAPPERS) and not private:
        if around == "FedCurv":
            raise TypeError(
                f"expected private_sums=PrivateSums(...) around {name}: its noise is for the "
                "model, and the clients' statistics would be released as they are"
            )
        raise TypeError(
            f"expected a strategy without differential privacy, got {name}, which would clip and "
            f"noise {_what_it_sends(around)}"
        )
    if type(strategy).start is not Strategy.start:
        raise TypeError(
            f"{name} overrides start, which {around} around it would not call; write "
            f"class {name}({around}) instead, with the same methods, and give it FedAvg's options"
        )
