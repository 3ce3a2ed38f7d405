"""Bounds on what one client may say of its curvature, and on how far it may go, by the others'."""

import math
from bisect import insort
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedcurv.strategies.replies.buffers import buffer_names
from fedcurv.strategies.robust.trimmed import trace_of
from fedcurv.strategies.wire.arrays import unpack_tensors

# in units of the round's middle one; docs/robustness.md has what honest clients reach
MAX_DISTANCE = 50.0
MAX_TRACE = 100.0

# numbers whose differences are formed at once, which is little memory and few calls
_AT_ONCE = 2**18

# in units of the greatest middle of any round: what a round's middle, which falls as a federation
# comes to rest, must not refuse, as a client with new data
_OF_GREATEST = 4.0

# in units of the round's middle, of what robust sums are formed of
_NEAR_DISTANCE = 4.0
_NEAR_TRACE = 3.0

_DISTANCE, _TRACE = "distance", "trace"

_WORDS = {_DISTANCE: "a distance from the model sent", _TRACE: "a trace of the precision"}

# of fewer none can be called the odd one
_FEWEST = 3
# of accepted replies, which stand beside a round of fewer
_REMEMBERED = 8
# replies are judged before the last has come once there are so many, with room for a middle that
# will still move by this factor
_ENOUGH = 5
_ROOM = 4.0


def checked_times(name: str, bound: float | None, default: float, *, secure_sums: bool) -> float:
    """Return a bound in units of the round's middle, infinity for none.

    Args:
        name: of the argument.
        bound: as it was given; None for the default.
        default: where the server sees single replies.
        secure_sums: whether it is to see sums only.

    Raises:
        ValueError: if it is not above 1, or needs single replies.
    """
    if bound is None:
        return math.inf if secure_sums else default
    is_number = isinstance(bound, int | float) and not isinstance(bound, bool)
    if not is_number or not 1.0 < bound <= math.inf:
        raise ValueError(f"{name} must be > 1, times the round's middle one, got {bound!r}")
    if secure_sums and bound < math.inf:
        raise ValueError(
            f"secure_sums=True needs {name}=math.inf, got {bound!r}: the bound looks at single "
            "replies"
        )
    return float(bound)


class Cohort:
    """Whose reply goes beyond so many times the round's middle one.

    Two numbers of each reply count: the distance |θ̂_j − θ| from the model that was sent, over its
    parameters, and the trace Σ P_j. Of an even number of replies the middle is the greater. Rounds
    of one or two have none: there the latest that were accepted stand beside them, and in a run's
    first rounds there is no bound. Nor is there one where the middle is 0.

    As a federation comes to rest its middles fall, and who then brings something new would lie
    beyond every bound for ever. So nothing is beyond it that is at most 4 times the greatest middle
    that a round has had, where sums are not to be robust.

    Args:
        max_distance: > 1, in units of the middle distance; infinity for none.
        max_trace: likewise of the middle trace.
        near: leave out of the sums what is more than 4 times the middle distance away, or has more
            than 3 times the middle trace, and more than 1/λ.
    """

    def __init__(self, max_distance: float, max_trace: float, *, near: bool = False) -> None:
        self._max_distance = max_distance
        # beyond these, statistics do not enter the sums
        self._bounds = {
            _DISTANCE: min(max_distance, _NEAR_DISTANCE if near else math.inf),
            _TRACE: min(max_trace, _NEAR_TRACE if near else math.inf),
        }
        self._near = near
        self._harmless = 0.0
        self._accepted: dict[str, list[float]] = {_DISTANCE: [], _TRACE: []}
        self._greatest = {_DISTANCE: 0.0, _TRACE: 0.0}
        self._values: dict[str, dict[str, float]] = {_DISTANCE: {}, _TRACE: {}}
        self._ranked: dict[str, list[float]] = {_DISTANCE: [], _TRACE: []}
        self._sent: dict[str, Tensor] = {}
        # for differences: fresh memory for each would cost more than they do
        self._room = torch.empty(0)

    def begin(self, sent: ArrayRecord, strength: float | None = None) -> None:
        """Begin a round.

        Args:
            sent: the model that was sent.
            strength: λ, if it is known: a trace of at most 1/λ holds nobody, however little the
                others' are, whose Fisher information vanishes as they fit their data.
        """
        self._forget()
        self._harmless = 1.0 / strength if strength else 0.0
        buffers = buffer_names(sent)
        self._sent = unpack_tensors(
            ArrayRecord({n: a for n, a in sent.items() if n not in buffers})
        )
        self._room = torch.empty(_AT_ONCE)

    def distances(self, arrays: Mapping[str, Tensor]) -> dict[str, float]:
        """Return |θ̂_j − θ| by name, of parameters in float32; NaN or inf for some."""
        if self._bounds[_DISTANCE] == math.inf:
            return {}
        return {
            name: _distance(arrays[name], sent, self._room)
            for name, sent in self._sent.items()
            if arrays[name].dtype == sent.dtype == torch.float32
        }

    def note(
        self,
        message_id: str,
        arrays: Mapping[str, Tensor],
        precision: Mapping[str, Tensor],
        distances: Mapping[str, float],
    ) -> None:
        """Note a reply.

        Args:
            message_id: of the message that it answers.
            arrays: with the names and shapes that were sent; NaN and inf only where they were too.
            precision: P_j; empty for a client without statistics.
            distances: what ``distances`` returns for the arrays.
        """
        if self._bounds[_DISTANCE] < math.inf:
            # of another type, too large for squares in float32, or not finite when it was sent
            rest = {n for n in self._sent if not math.isfinite(distances.get(n, math.inf))}
            others = [_finite_distance(arrays[name], self._sent[name]) for name in rest]
            near = [apart for name, apart in distances.items() if name not in rest]
            self._note(_DISTANCE, message_id, math.hypot(*near, *others))
        if self._bounds[_TRACE] < math.inf and precision:
            self._note(_TRACE, message_id, trace_of(precision))

    def _note(self, kind: str, message_id: str, value: float) -> None:
        self._values[kind][message_id] = value
        insort(self._ranked[kind], value)

    def _forget(self) -> None:
        self._values = {_DISTANCE: {}, _TRACE: {}}
        self._ranked = {_DISTANCE: [], _TRACE: []}
        self._sent, self._room = {}, torch.empty(0)

    def is_plainly_within(self, message_id: str) -> bool:
        """Return whether a reply is so far within that those to come will hardly change it."""
        return all(
            len(values) >= _ENOUGH
            and values[message_id] * _ROOM <= self._bounds[kind] * _middle_of(self._ranked[kind])
            for kind, values in self._values.items()
            if message_id in values
        )

    def too_far(self) -> dict[str, str]:
        """Return by message id what to say of the replies that are to be refused."""
        return self._beyond(_DISTANCE, self._max_distance, strict=False)

    def out_of_sums(self) -> dict[str, str]:
        """Return by message id what to say of the replies whose statistics are to be left out."""
        found: dict[str, str] = {}
        for kind, bound in self._bounds.items():
            found = self._beyond(kind, bound, strict=self._near) | found
        return found

    def _beyond(self, kind: str, times: float, *, strict: bool) -> dict[str, str]:
        """Return what to say of replies beyond the bound; strictly, no earlier round counts."""
        middle, greatest = self._middle(kind), self._greatest[kind]
        if not middle > 0.0:
            return {}
        bounds = [(times * middle, f"{times:g} times the round's middle one, {middle:.3g}")]
        if not strict:
            earlier = f"{_OF_GREATEST:g} times the greatest middle one of earlier rounds"
            bounds.append((_OF_GREATEST * greatest, f"{earlier}, {greatest:.3g}"))
        if kind == _TRACE:
            bounds.append((self._harmless, f"1/λ, {self._harmless:.3g}"))
        most, in_words = max(bounds)
        return {
            message_id: f"expected {_WORDS[kind]} of at most {in_words}, got {value:.3g}"
            for message_id, value in self._values[kind].items()
            if not value <= most
        }

    def _middle(self, kind: str) -> float:
        """Return the round's middle number; 0 where there are too few."""
        values = self._values[kind]
        beside = self._accepted[kind] if len(values) < _FEWEST else []
        everyone = sorted([*values.values(), *beside])
        return _middle_of(everyone) if len(everyone) >= _FEWEST else 0.0

    def end(self, refused: Collection[str]) -> None:
        """End the round and remember those replies that were not refused, nor left out."""
        for kind, values in self._values.items():
            self._greatest[kind] = max(self._greatest[kind], self._middle(kind))
            accepted = [value for message_id, value in values.items() if message_id not in refused]
            self._accepted[kind] = [*self._accepted[kind], *accepted][-_REMEMBERED:]
        self._forget()

    def state_dict(self) -> dict[str, list[float]]:
        """Return what a checkpoint must hold."""
        accepted = {kind: list(values) for kind, values in self._accepted.items()}
        return accepted | {f"greatest {kind}": [most] for kind, most in self._greatest.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned, checked by ``checked_state``."""
        self._accepted = {kind: list(state.get(kind, ())) for kind in self._accepted}
        self._greatest = {
            k: max(state.get(f"greatest {k}", ()), default=0.0) for k in self._greatest
        }


def checked_state(state: Any) -> Mapping[str, list[float]]:
    """Return a cohort's saved state; of a checkpoint that has none, an empty one.

    Raises:
        ValueError: if it cannot have been saved so.
    """
    if state is None:
        return {}
    values = [*state.values()] if isinstance(state, Mapping) else [None]
    for one in values:
        if not isinstance(one, list) or not all(
            isinstance(value, float) and 0.0 <= value < math.inf for value in one
        ):
            raise ValueError(f"expected distances and traces >= 0, got {str(state)[:60]}")
    return dict(state)


def _middle_of(ranked: Sequence[float]) -> float:
    return ranked[len(ranked) // 2]


def _distance(one: Tensor, sent: Tensor, room: Tensor) -> float:
    """Return |one − sent| of two of one shape, all in float32.

    Args:
        one: an array of a reply.
        sent: the one that was sent.
        room: where differences may stand, one piece after the other.
    """
    pieces = (torch.split(tensor.reshape(-1), len(room)) for tensor in (one, sent))
    apart = (torch.sub(a, b, out=room[: len(a)]) for a, b in zip(*pieces, strict=True))
    return math.hypot(*(float(torch.linalg.vector_norm(piece)) for piece in apart))


def _finite_distance(one: Tensor, sent: Tensor) -> float:
    """Return |one − sent| over what is finite, in double precision."""
    wide = torch.promote_types(torch.promote_types(one.dtype, sent.dtype), torch.float64)
    apart = one.to(wide) - sent.to(wide)
    return float(torch.linalg.vector_norm(apart[torch.isfinite(apart)]))
