"""FedCurv around differential privacy: the statistics have a clip and a noise of their own."""

import logging
import math
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    FedAvg,
    Strategy,
)
from torch import Tensor

from fedcurv.bounded import at_zero, noised, norm_of
from fedcurv.curvature import Curvature, shapes_of
from fedcurv.parameters import listed
from fedcurv.strategies.flower_private import NORM_BIT
from fedcurv.strategies.private.budget import Budget, releases_of_model
from fedcurv.strategies.private.private_sums import PrivateSums, is_number
from fedcurv.strategies.replies.buffers import buffer_names
from fedcurv.strategies.robust.rules import RobustSums
from fedcurv.strategies.robust.trimmed import Term
from fedcurv.strategies.unfit import DP_WRAPPERS, Misplaced
from fedcurv.strategies.wire.arrays import unpack_tensors
from fedcurv.strategies.wire.bounds import BOUND, pack_bound
from fedcurv.strategies.wire.codes import EXACT_BITS

logger = logging.getLogger(__name__)

EPSILON = "epsilon"
# of norms that clients clip in float32
_ROUNDING = 1e-3
_AT_CLIENTS = (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
)
_COUNTS_AT_CLIENTS = DifferentialPrivacyClientSideAdaptiveClipping


class Privacy:
    """Clips, noises and counts what FedCurv releases of a round, beside a wrapper of Flower's.

    Args:
        private_sums: as they were given.
        wrapper: the strategy that clips and noises the model.

    Attributes:
        budget: what is spent.
        clients_send_both: whether clients send Q beside P, as what becomes of their models on the
            way is not what they remember.
    """

    def __init__(self, private_sums: PrivateSums, wrapper: Strategy) -> None:
        self._settings, self._bound = private_sums, private_sums.bound
        self._wrapper: Any = wrapper
        self._model: dict[str, Tensor] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._asks, self._clip = False, math.nan
        self._released: list[float] = []
        self._noise = private_sums.noise or torch.Generator().manual_seed(secrets.randbits(63))
        self.budget = Budget(private_sums.accountant, private_sums.delta)
        self.clients_send_both = isinstance(wrapper, _AT_CLIENTS)

    @property
    def names(self) -> frozenset[str]:
        """The parameters that the round's sums are of, whoever reports what."""
        return frozenset(self._shapes)

    def begin(self, arrays: ArrayRecord, messages: Iterable[Message], *, asks: bool) -> None:
        """Begin a round: note what is sent, and tell clients how much their statistics may be.

        Args:
            arrays: the model that is sent.
            messages: with it.
            asks: whether they ask for statistics.

        Raises:
            Misplaced: for a model with buffers, or another that Flower's wrappers do not clip, and
                without parameters that sums are to be of.
        """
        if buffers := sorted(buffer_names(arrays)):
            raise Misplaced(
                f"expected a model of parameters alone with private_sums, got {buffers[0]!r}, "
                "whose mean is sent without noise; use layers without running statistics, such as "
                "GroupNorm"
            )
        self._model = unpack_tensors(arrays)
        _require_what_is_clipped(self._model)
        names = list(self._model if (only := self._settings.parameters) is None else only)
        if unknown := [name for name in names if name not in self._model]:
            raise Misplaced(
                f"expected parameters of the model, got {unknown[0]!r} in PrivateSums(parameters="
                f"[...]); the model has {listed(sorted(self._model))}"
            )
        self._shapes, self._asks = shapes_of({name: self._model[name] for name in names}), asks
        self._clip, self._released = self._wrapper.clipping_norm, []
        for message in messages:
            message.content = RecordDict({**message.content, BOUND: pack_bound(self._bound)})

    def require_clipped(self, arrays: Mapping[str, Tensor], content: RecordDict) -> None:
        """Raise a ValueError for a reply that its client should have clipped and has not.

        Flower's wrappers for clipping at the client take its word for it.

        Args:
            arrays: of the reply.
            content: of it, with its metrics.
        """
        if not self.clients_send_both:
            return
        told = [metrics.get(NORM_BIT) for metrics in content.metric_records.values()]
        if isinstance(self._wrapper, _COUNTS_AT_CLIENTS) and not all(map(is_number, told)):
            raise ValueError(
                f"expected a number {NORM_BIT!r} among the metrics, for adaptive clipping, got "
                f"{told[0]!r:.60}; let the client's app have fedcurv.clients.adaptive_clipping_mod"
            )
        moved = norm_of({n: a.double() - self._model[n] for n, a in arrays.items()})
        if not moved <= self._clip * (1.0 + _ROUNDING):
            raise ValueError(
                f"expected a model no farther than {self._clip:.6g}, the clipping norm, from what "
                f"was sent, got {moved:.6g}: no epsilon can be told of it; let the client's app "
                "have fedcurv.clients.fixed_clipping_mod, or adaptive_clipping_mod"
            )

    def unlike(self, precision: Mapping[str, Tensor]) -> str | None:
        """Return what to say of statistics that the round's sums are not of; None if they are.

        What other clients report has no part in it.
        """
        if (got := shapes_of(precision)) == self._shapes:
            return None
        both = got.keys() & self._shapes
        odd = [n for n in sorted(both) if got[n] != self._shapes[n]] or sorted(got.keys() - both)
        return (
            f"expected statistics of {listed(list(self._shapes))}, with the shapes that were sent, "
            f"got {listed(odd) if odd else f'only {listed(sorted(got))}'}; give "
            "PrivateSums(parameters=[...]) with what clients report, if they leave some out"
        )

    def bounded(self, term: Term) -> Term:
        """Return a client's term as P and D, in float64 and no longer than the clip."""
        statistics = term.sent
        if statistics is None:
            solution = {name: term.solution[name].double() for name in term.precision}
            wide = {name: p.double() for name, p in term.precision.items()}
            statistics = Curvature(wide, {n: p * solution[n] for n, p in wide.items()})
        clipped = self._bound.clipped(statistics, self._model)
        return replace(term, precision=clipped.precision, sent=clipped)

    def released(self, formed: RobustSums) -> RobustSums:
        """Return P and Q of sums of P and D, with noise and what noise asks for.

        Those of nobody are noise, and tell as little of who was not among them.
        """
        if formed.sums is None:
            if not self._asks:
                return formed
            nothing = [{n: torch.zeros(s) for n, s in self._shapes.items()} for _ in range(2)]
            formed = replace(formed, sums=Curvature(*nothing))
        assert formed.sums is not None
        deviation, distance = self._settings.deviation, self._bound.distance
        told = noised(formed.sums, deviation, distance, self._noise)
        self._released.append(self._settings.noise_multiplier)
        settled = self._bound.settled(told, self._settings.threshold * deviation)
        return replace(formed, sums=at_zero(settled, self._model).to(torch.float32))

    def count_model(self, weights: Collection[float]) -> None:
        """Count what the wrapper has released of the replies with these weights."""
        self._released += releases_of_model(self._wrapper, self._clip, weights)

    def with_epsilon(self, server_round: int, metrics: MetricRecord | None) -> MetricRecord:
        """Count the round; return its metrics with what is spent by then, and log it."""
        self.budget.add(self._released)
        self._released = []
        epsilon, delta = self.budget.epsilon, self._settings.delta
        logger.info(
            "round %d: privacy spent by model and sums together: epsilon %.4g at delta %g",
            server_round,
            epsilon,
            delta,
        )
        return MetricRecord({**(metrics or {}), EPSILON: epsilon})


def _require_what_is_clipped(model: Mapping[str, Tensor]) -> None:
    """Raise Misplaced for arrays that Flower's clipping leaves as they are."""
    for name, tensor in model.items():
        if tensor.ndim == 0:
            raise Misplaced(
                f"expected arrays of one dimension or more, got {name!r} without any, which "
                "Flower's differential privacy does not clip; give it the shape (1,)"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise Misplaced(
                f"expected a model of finite numbers, got {name!r} with others, beside which "
                "Flower's differential privacy clips nothing; keep masks out of the model's arrays"
            )


def privacy_of(
    private_sums: PrivateSums | None,
    strategy: Strategy,
    *,
    secure_sums: bool,
    bits: int,
    robust: str | float,
    bounds: Mapping[str, float | None],
) -> Privacy | None:
    """Return FedCurv's part of differential privacy around a strategy; None without it.

    Args:
        private_sums: as they were given.
        strategy: that is wrapped.
        secure_sums: FedCurv's.
        bits: likewise.
        robust: likewise.
        bounds: those by name that are relative to the round.

    Raises:
        TypeError: for a strategy of which no ε can be told.
        ValueError: for options beside which a client's part is not bounded, or not known.
    """
    if private_sums is None:
        return None
    name = type(strategy).__name__
    if not isinstance(private_sums, PrivateSums):
        raise TypeError(f"expected private_sums=PrivateSums(...), got {private_sums!r:.60}")
    if not isinstance(strategy, DP_WRAPPERS):
        raise TypeError(
            f"expected private_sums around one of Flower's differential-privacy wrappers, got it "
            f"around {name}, which releases the model as it is; write FedCurv("
            "DifferentialPrivacyServerSideFixedClipping(FedAvg(...), ...), private_sums=...)"
        )
    inner = type(strategy.strategy)
    if inner.aggregate_train is not FedAvg.aggregate_train:
        raise TypeError(
            f"expected FedAvg or FedProx inside {name}, got {inner.__name__}: the wrapper's noise "
            "is measured for a weighted mean, and no epsilon can be told of anything else"
        )
    for option in ("noise_multiplier", "clipping_norm", "num_sampled_clients"):
        value = getattr(strategy, option)
        if not (is_number(value) and 0.0 < value < math.inf):
            raise ValueError(f"{name}: expected a finite {option} > 0, got {value!r}")
    unfit = [f"secure_sums={secure_sums}"] if secure_sums else []
    unfit += [f"bits={bits}"] if bits != EXACT_BITS else []
    unfit += [f"robust={robust!r}"] if robust not in ("auto", "none") else []
    unfit += [f"{n}={b}" for n, b in bounds.items() if b is not None and b != math.inf]
    if unfit:
        raise ValueError(
            f"private_sums goes without {', '.join(unfit)}: leave it out. Secure sums hide what is "
            "to be clipped, few bits are for sums without noise, and with what looks at the other "
            "replies one client moves more than its own part"
        )
    return Privacy(private_sums, strategy)
