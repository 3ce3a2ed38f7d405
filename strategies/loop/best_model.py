"""The best model of a run, in a file of its own."""

import math
import os
from pathlib import Path

import torch
from flwr.serverapp.strategy import Result

from fedcurv.private_files import replaced
from fedcurv.strategies.loop.stopping import Mode, metric_by_round, sign_of


class BestModel:
    """Keeps the model of the best round so far, as the ``state_dict`` that PyTorch saves.

    ``torch.load(path, weights_only=True)`` reads it. The file is replaced whole. A resumed run
    remembers by its checkpoint how good the best model was.

    Args:
        path: of the file; its folder is made if it is missing.
        metric: a name in the server's evaluation, else in the clients'.
        mode: whether ``max`` or ``min`` is better; among equals the first is kept.

    Raises:
        ValueError: for another mode.
    """

    def __init__(
        self, path: str | os.PathLike[str], metric: str = "accuracy", mode: Mode = "max"
    ) -> None:
        self.path, self._metric, self._sign = Path(path), metric, sign_of(mode)

    def keep(self, server_round: int, result: Result) -> bool:
        """Save the result's arrays if this round is the best; return whether it is.

        Raises:
            ValueError: if no round has the metric.
            OSError: if the file cannot be written; the old one is untouched.
        """
        values = metric_by_round(result, self._metric)
        latest = self._sign * values.pop(server_round, math.nan)
        before = [self._sign * value for r, value in values.items() if r < server_round]
        if math.isnan(latest) or any(latest <= value for value in before):
            return False
        with replaced(self.path) as file:
            torch.save(dict(result.arrays.to_torch_state_dict()), file)
        return True
