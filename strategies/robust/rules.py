"""How sums are formed beside a robust strategy: of what it selects, or trimmed as it trims."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from flwr.app import RecordDict
from flwr.serverapp.strategy import Bulyan, FedMedian, FedTrimmedAvg, MultiKrum, Strategy

from fedcurv.curvature import Curvature
from fedcurv.curvature_sum import CurvatureSum
from fedcurv.strategies.loop.strategy_state import with_inner
from fedcurv.strategies.robust.trimmed import Term, trimmed_sums

logger = logging.getLogger(__name__)

AUTO, NONE, NEAR, SELECTION, MEDIAN = "auto", "none", "near", "selection", "median"


@dataclass(frozen=True)
class Rule:
    """Of which replies, and of how much of them, sums are formed.

    Attributes:
        near: whether only replies near the round's middle count; see ``Cohort``.
        selects: whether only those count that the strategy selects.
        cut: how many of so many values are cut off at either end, number by number; None cuts
            nothing.
    """

    near: bool = False
    selects: bool = False
    cut: Callable[[int], int] | None = None

    @property
    def holds(self) -> bool:
        """Whether all replies' statistics must be held."""
        return self.selects or self.cut is not None


@dataclass(frozen=True)
class RobustSums:
    """Sums that a rule has formed.

    Attributes:
        sums: None where no reply is left.
        formed_of: message ids of the replies that they are formed of.
        contributors: those of them whose own terms are in the sums as they were sent, to be taken
            off again: all, or nobody's where the sums are trimmed.
    """

    sums: Curvature | None = None
    formed_of: Collection[str] = ()
    contributors: Collection[str] = ()


def rule_for(robust: str | float, strategy: Strategy, *, secure_sums: bool) -> Rule | None:
    """Return the rule for sums around a strategy; None for sums of all replies.

    Args:
        robust: ``auto``: around one of Flower's robust strategies, one derived from these, or one
            with these inside it, ``near``: of what is near the round's middle. ``selection``: of
            what is near and what the strategy selects. For trimmed sums ``median`` or a share in
            (0, 0.5) to cut off. ``none``: sums of all replies.
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
    if robust == NEAR:
        return Rule(near=True)
    if robust == MEDIAN:
        return Rule(cut=_cut_to_median)
    if robust == SELECTION:
        if _selecting(strategy) is None:
            raise ValueError(
                "robust='selection' needs a strategy that averages the metrics of what it selects "
                f"by its train_metrics_aggr_fn, as Krum does, got {type(strategy).__name__}"
            )
        return Rule(near=True, selects=True)
    if isinstance(robust, float) and 0.0 < robust < 0.5:
        return Rule(cut=partial(_cut_of_share, robust))
    raise ValueError(
        "robust must be 'auto', 'none', 'near', 'selection', 'median' or a share in (0, 0.5) to "
        f"cut off at either end, got {robust!r:.60}"
    )


def _rule_of(strategy: Strategy) -> Rule | None:
    for one in with_inner(strategy):
        if isinstance(one, FedMedian | FedTrimmedAvg | MultiKrum | Bulyan):
            return Rule(near=True)
    return None


def _cut_to_median(number: int) -> int:
    return (number - 1) // 2


def _cut_of_share(share: float, number: int) -> int:
    return int(share * number)


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
    """Return the sums of a round's held replies by a rule.

    Args:
        rule: that holds them.
        terms: by message id, of all replies that may be in sums.
        selected: message ids of those that the strategy uses.
    """
    used = [i for i in terms if not rule.selects or i in selected]
    cut = 0 if rule.cut is None else rule.cut(len(used))
    if cut > 0:
        return RobustSums(trimmed_sums([terms[i] for i in used], cut), used)
    if not used:
        return RobustSums()
    sums = CurvatureSum()
    for message_id in used:
        terms[message_id].add_to(sums)
    return RobustSums(sums.total(torch.float32), used, used)
