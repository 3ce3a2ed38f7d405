"""What a round's sums tell of the scales of the next."""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord

from fedcurv.parameters import listed
from fedcurv.strategies.wire.secure.form import Form
from fedcurv.strategies.wire.secure.plan import (
    ARRAYS,
    GROWTH_OF_CLIPPED,
    STATISTICS_KINDS,
    Place,
    Plan,
    bounds_after,
    wide_after,
)
from fedcurv.strategies.wire.secure.vector import Sums

logger = logging.getLogger(__name__)


class Scales:
    """Finds each round's scales from the sums of the round before."""

    def __init__(self) -> None:
        self._bounds: dict[Place, float] = {}
        self._sizes: dict[Place, int] = {}
        self._wide: set[Place] = set()

    def plan(self, clients: int, weighted_by_key: str, arrays: ArrayRecord) -> Plan:
        """Return the plan of a round in which these arrays are sent."""
        own = {(ARRAYS, name): math.prod(array.shape) for name, array in arrays.items()}
        return Plan.from_bounds(
            clients, weighted_by_key, self._bounds, self._sizes | own, self._wide
        )

    def learn(self, server_round: int, form: Form, sums: Sums, clients: int) -> None:
        """Find the next round's, and tell what did not fit into this one's."""
        for name, shape in form.statistics.items():
            self._sizes |= {(kind, name): math.prod(shape) for kind in STATISTICS_KINDS}
        self._wide = wide_after(sums.clipped, self._wide, clients)
        self._bounds = bounds_after(sums.largest, clients, self._wide)
        if sums.clipped:
            logger.warning(
                "round %d: %d numbers were clipped, as they are larger than this round's scales "
                "bear, in %s; the sums are wrong there; the next round's scales reach %d times as "
                "far at least, in words of 64 bits",
                server_round,
                sum(sums.clipped.values()),
                _listed(sums.clipped),
                GROWTH_OF_CLIPPED,
            )
        if sums.vanished:
            logger.warning(
                "round %d: %d tensors were rounded to nothing or nearly, as their numbers are "
                "below %.1e, what this round's scales can tell from 0: %s; the next round's are "
                "finer",
                server_round,
                len(sums.vanished),
                max(sums.vanished.values()),
                _listed(sums.vanished),
            )

    def state_dict(self) -> dict[str, dict[str, list[float]]]:
        """Return by kind and name: what a number may reach, how many there are, if in 64 bits."""
        state: dict[str, dict[str, list[float]]] = {}
        for (kind, name), bound in self._bounds.items():
            size = self._sizes.get((kind, name), 0)
            is_wide = (kind, name) in self._wide
            state.setdefault(kind, {})[name] = [bound, float(size), float(is_wide)]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        known = {
            (str(kind), str(name)): (float(bound), int(size), bool(is_wide))
            for kind, by_name in state.items()
            for name, (bound, size, is_wide) in by_name.items()
        }
        self._bounds = {place: bound for place, (bound, _, _) in known.items()}
        self._sizes = {place: size for place, (_, size, _) in known.items() if size}
        self._wide = {place for place, (_, _, is_wide) in known.items() if is_wide}


def _listed(places: Iterable[Place]) -> str:
    return listed([f"{name} ({kind})" for kind, name in places])
