"""What a strategy made of a round's replies: of the right types, or told."""

import logging
from typing import Any

from flwr.app import ArrayRecord, MetricRecord

logger = logging.getLogger(__name__)


class Aggregated:
    """Checks what ``aggregate_train`` returned, and says once if that is no model.

    Args:
        name: of the strategy.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._told = False

    def checked(
        self, server_round: int, made: Any
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the model and the metrics, either of which may be None.

        Raises:
            TypeError: for anything else.
        """
        is_pair = isinstance(made, tuple) and len(made) == 2
        arrays, metrics = made if is_pair else (made, made)
        if not (
            is_pair
            and isinstance(arrays, ArrayRecord | None)
            and isinstance(metrics, MetricRecord | None)
        ):
            got = [type(one).__name__ for one in made] if is_pair else type(made).__name__
            raise TypeError(
                f"round {server_round}: expected aggregate_train of {self._name} to return an "
                f"ArrayRecord and a MetricRecord, or None for either, got {got}"
            )
        if arrays is None and not self._told:
            self._told = True
            logger.warning(
                "round %d: aggregate_train of %s returned no model: the one before stays; said "
                "once",
                server_round,
                self._name,
            )
        return arrays, metrics
