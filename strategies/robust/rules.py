"""How sums are formed beside a robust strategy: of what it selects, or trimmed as it trims."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from flwr.app import RecordDict
from flwr.serverapp.strategy import Bulyan, FedMedian, FedTrimmedAvg, MultiKrum, Strategy

from fedcurv.curvature import Curvature, CurvatureSum
from fedcurv.strategies.loop.strategy_state import with_inner
from fedcurv.strategies.robust.trimmed import Term, trace_of, trimmed_sums

logger = logging.getLogger(__name__)

AUTO, NONE, MEDIAN, SELECTION = "auto", "none", "median", "selection"

# by how much a selected reply's trace may exceed one that some honest client's reaches
_TIMES_AN_HONEST_TRACE = 10.0


@dataclass(frozen=True)
class Rule:
    """Of which replies, and of how much of them, sums are formed.

    Attributes:
        cut: how many of so many values are cut off at either end, number by number.
        selects: whether only those replies count that the strategy selects.
        liars: among all replies, as many as the strategy is to stand.
    """

    cut: Callable[[int], int]
    selects: bool = False
    liars: int = 0


@dataclass(frozen=True)
class RobustSums:
    """Sums that a rule has formed.

    Attributes:
        sums: None where no reply is left.
        formed_of: message ids of the replies that they are formed of.
        contributors: those of them whose own terms are in the sums as they were sent, to be taken
            off again: all, or nobody's where the sums are trimmed.
        left_out: reason by message id for replies that the strategy uses and the sums do not.
    """

    sums: Curvature | None = None
    formed_of: Collection[str] = ()
    contributors: Collection[str] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


def rule_for(robust: str | float, strategy: Strategy, *, secure_sums: bool) -> Rule | None:
    """Return the rule for sums around a strategy; None for sums of all replies.

    Args:
        robust: ``auto``: the strategy's own, if it, or one inside it, is one of Flower's robust
            ones or derived from one. ``median``, a share in (0, 0.5) to cut off at either end, or
            ``selection``, for a strategy of the user's own. ``none``: sums of all replies.
        strategy: that is wrapped.
        secure_sums: whether the server is to see sums only.

    Raises:
        ValueError: for another word or share; for a strategy that does not say what it selects; or
            if the rule needs single replies and the server is not to see them.
    """
    found = _rule_of(strategy)
    name = type(strategy).__name__
    if robust == NONE and isinstance(robust, str):
        if found is not None:
            logger.warning(
                "robust='none': replies that %s does not use still enter the sums, and a single "
                "client can undo it through them",
                name,
            )
        return None
    if robust != AUTO:
        found = _chosen(robust, strategy)
    if found is not None and secure_sums:
        raise ValueError(
            f"secure_sums=True needs robust='none', got robust={robust!r} around {name}: robust "
            "sums are formed of single replies, which secure sums hide"
        )
    return found


def _chosen(robust: object, strategy: Strategy) -> Rule:
    if robust == MEDIAN:
        return Rule(_cut_to_median)
    if robust == SELECTION:
        if _selecting(strategy) is None:
            raise ValueError(
                "robust='selection' needs a strategy that averages the metrics of what it selects "
                f"by its train_metrics_aggr_fn, as Krum does, got {type(strategy).__name__}"
            )
        liars = getattr(strategy, "num_malicious_nodes", 1)
        return Rule(_nothing, selects=True, liars=liars)
    if isinstance(robust, float) and 0.0 < robust < 0.5:
        return Rule(partial(_cut_of_share, robust))
    raise ValueError(
        "robust must be 'auto', 'none', 'median', 'selection' or a share in (0, 0.5) to cut off at "
        f"either end, got {robust!r:.60}"
    )


def _rule_of(strategy: Strategy) -> Rule | None:
    for one in with_inner(strategy):
        if isinstance(one, FedMedian):
            return Rule(_cut_to_median)
        if isinstance(one, FedTrimmedAvg):
            return Rule(partial(_cut_of_share, one.beta))
        if isinstance(one, MultiKrum):
            return Rule(_nothing, selects=True, liars=one.num_malicious_nodes)
        if isinstance(one, Bulyan):
            return Rule(
                partial(_cut_at_most, one.num_malicious_nodes), True, one.num_malicious_nodes
            )
    return None


def _cut_to_median(number: int) -> int:
    return (number - 1) // 2


def _cut_of_share(share: float, number: int) -> int:
    return int(share * number)


def _cut_at_most(most: int, number: int) -> int:
    return min(most, _cut_to_median(number))


def _nothing(number: int) -> int:
    return 0


def _selecting(strategy: Strategy) -> Any:
    """Return the strategy, or the one inside it, that averages training metrics by a function."""
    for one in reversed(with_inner(strategy)):
        if callable(getattr(one, "train_metrics_aggr_fn", None)):
            return one
    return None


@contextmanager
def noted_selection(rule: Rule | None, strategy: Strategy) -> Iterator[list[RecordDict]]:
    """Yield a list that is filled, while the strategy aggregates, with the contents that it uses.

    Those are the ones whose metrics it averages: Flower's robust strategies hand what they have
    selected, and nothing else, to their ``train_metrics_aggr_fn``.

    Args:
        rule: of the strategy; the list stays empty unless it selects.
        strategy: whose function notes until the end of the block.
    """
    used: list[RecordDict] = []
    one = _selecting(strategy) if rule is not None and rule.selects else None
    if one is None:
        yield used
        return
    average = one.train_metrics_aggr_fn

    def noting(contents: Sequence[RecordDict], key: str) -> Any:
        used.extend(contents)
        return average(contents, key)

    one.train_metrics_aggr_fn = noting
    try:
        yield used
    finally:
        one.train_metrics_aggr_fn = average


def robust_sums(rule: Rule, terms: Mapping[str, Term], selected: Collection[str]) -> RobustSums:
    """Return the sums of a round's replies by a rule.

    Trimmed sums are ``trimmed_sums``. Where nothing is cut off they are plain ones, of what the
    strategy selects. That looks at θ̂_j alone: of those that it selects, replies whose trace Σ P_j
    exceeds 10 times the greatest but ``liars`` of the round's are left out, since so large a one
    is no honest client's for sure.

    Args:
        rule: of the strategy.
        terms: by message id, of all replies that are fit.
        selected: message ids of those that the strategy uses.
    """
    used = [i for i in terms if i in selected] if rule.selects else list(terms)
    cut = rule.cut(len(used))
    if cut > 0:
        return RobustSums(trimmed_sums([terms[i] for i in used], cut), used)
    left_out = _heavy(terms, used, rule.liars) if rule.selects else {}
    used = [i for i in used if i not in left_out]
    if not used:
        return RobustSums(left_out=left_out)
    sums = CurvatureSum()
    for message_id in used:
        terms[message_id].add_to(sums)
    return RobustSums(sums.total(torch.float32), used, used, left_out)


def _heavy(terms: Mapping[str, Term], used: Collection[str], liars: int) -> dict[str, str]:
    traces = {message_id: trace_of(term.precision) for message_id, term in terms.items()}
    honest = sorted(traces.values(), reverse=True)[min(liars, len(traces) - 1)] if traces else 0.0
    return {
        i: f"expected a trace of the precision of at most {_TIMES_AN_HONEST_TRACE:g} times the "
        f"round's greatest but {liars}, {honest:.3g}, got {traces[i]:.3g}"
        for i in used
        if traces[i] > _TIMES_AN_HONEST_TRACE * honest
    }
