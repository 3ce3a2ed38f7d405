"""The global model on the server's test set: its loss, its metric, and whether it has diverged."""

import math
from collections.abc import Callable
from contextlib import ExitStack

import torch
from flwr.app import ArrayRecord, MetricRecord
from torch import Tensor, nn

from fedcurv.clients.training import InMemoryBatches, evaluate
from fedcurv.parameters import listed
from fedcurv.simulations.parts.metrics import Metric
from fedcurv.simulations.parts.tasks import Task, spread_of
from fedcurv.strategies import RoundFailed
from fedcurv.strategies.loop.rounds import RoundRecord

_BATCH_SIZE = 1024
# times the loss of guessing; what overfits on few classes has ten times
_ABSURD = 1000.0


class Diverged(RoundFailed):
    """The global model has numbers that are not finite, or a loss that is not or is absurd."""


class Evaluation:
    """Evaluates the global model on the server's test set.

    Args:
        model: of the federation's architecture.
        samples: inputs and targets, as the task has them.
        task: what is learned.
        num_outputs: of the model.
        metric: that is noted beside the loss.
        function: the user's own, from the outputs and the targets of the whole test set to a
            number; None for the task's.
        device: where the model is evaluated.
    """

    def __init__(
        self,
        model: nn.Module,
        samples: tuple[Tensor, Tensor],
        task: Task,
        *,
        num_outputs: int,
        metric: Metric,
        function: Callable[[Tensor, Tensor], float] | None,
        device: torch.device,
    ) -> None:
        self._model, self._task, self._metric = model.to(device), task, metric
        inputs, self._targets = samples
        self._function = function
        self._of_guessing = task.of_guessing(self._targets, num_outputs)
        self._spread = spread_of(self._targets) if task.like_outputs else 0.0
        self._batches = InMemoryBatches(inputs.to(device), self._targets.to(device), _BATCH_SIZE)
        # what is so from the beginning, as a mask of -inf is, is no sign of divergence
        self._odd_at_first = {n: v.cpu().clone() for n, v in model.state_dict().items() if _odd(v)}
        self._fault = ""

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Return loss and metric.

        Raises:
            ValueError: if the user's own function fails, or returns no finite number.
        """
        state = arrays.to_torch_state_dict()
        self._model.load_state_dict(state)
        outputs: list[Tensor] = []
        with ExitStack() as stack:
            if self._function is not None:
                keep = self._model.register_forward_hook(lambda *c: outputs.append(c[2].cpu()))
                stack.callback(keep.remove)
            loss, share, _ = evaluate(self._model, self._batches, self._task.sums)
        poisoned = [
            name
            for name, value in state.items()
            if _odd(value) and not _same(value, self._odd_at_first.get(name))
        ]
        self._fault = ""
        if poisoned or not loss <= _ABSURD * max(self._of_guessing, 1.0):  # NaN too
            where = f", NaN or inf in {listed(poisoned)}" if poisoned else ""
            self._fault = (
                f"the training has diverged: loss {loss:g} on the test set, where guessing has "
                f"{self._of_guessing:.3g}{where}"
            )
        value = self._task.score(loss, share, self._spread)
        if self._fault and not math.isfinite(value):
            value = math.nan
        if self._function is not None:
            # whatever it does to them, the test set stays as it is
            targets = self._targets.clone()
            value = math.nan if self._fault else self._function(torch.cat(outputs), targets)
        return MetricRecord({"loss": loss, self._metric.name: value})

    def check(self, record: RoundRecord) -> None:
        """Raise Diverged if the last evaluation said so."""
        if self._fault:
            raise Diverged(
                f"round {record.server_round}: {self._fault}; lower the learning rate or the "
                "strategy's strength"
            )


def _odd(value: Tensor) -> bool:
    """Return whether there is NaN or inf among some numbers."""
    return value.is_floating_point() and not bool(value.isfinite().all())


def _same(value: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.allclose(value, other, rtol=0, atol=0, equal_nan=True)
