"""A run's metrics that are NaN or inf, said once each."""

import logging

from fedcurv.strategies.loop.rounds import RoundRecord
from fedcurv.strategies.replies.metrics import is_finite

logger = logging.getLogger(__name__)


class OddMeans:
    """Says once of each of a run's metrics that is NaN or inf; to be given to ``on_round``."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def __call__(self, record: RoundRecord) -> None:
        """Look at a round."""
        phases = {
            "training": record.train_metrics,
            "evaluation on the clients": record.client_metrics,
            "evaluation on the server": record.server_metrics,
        }
        for phase, metrics in phases.items():
            for metric, value in metrics.items():
                if not is_finite(value) and (phase, metric) not in self._told:
                    self._told.add((phase, metric))
                    logger.warning(
                        "round %d: %r of %s is NaN or inf (%s); does the training diverge?",
                        record.server_round,
                        metric,
                        phase,
                        str(value)[:40],
                    )
