"""Settings of a client's training for one round, from the server or the device's owner."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import nn

from fedcurv.clients.learning_rates import LearningRates
from fedcurv.clients.optimizers import (
    check_optimizer,
    chosen_optimizer,
    make_optimizer,
    require_proximal,
)
from fedcurv.clients.torch_classes import Named
from fedcurv.likelihoods import FisherKind
from fedcurv.parameters import trainable_parameters
from fedcurv.penalty import PenaltyMode
from fedcurv.subset import Number, check_number

Trainer = Literal["local", "lasgd"]
# as LASGD has them, which only sites load
OuterKind = Literal["nesterov", "momentum"]
Compression = Literal["int8", "int4"]

# small batches only make an estimate slow; larger ones than in training would take more memory
_SMALLEST_FISHER_BATCH = 64


@dataclass(frozen=True)
class TrainingSettings:
    """How a client trains for one round.

    Attributes:
        epochs: passes over the client's data, E >= 1.
        batch_size: B >= 1.
        optimizer: of torch.optim, by its name (``adamw``), or a table of its name and options
            (``{"name": "adamw", "betas": [0.9, 0.99]}``); it begins anew in every round.
        lr: learning rate > 0.
        schedule: of torch.optim.lr_scheduler, likewise; how ``lr`` changes from round to round, see
            ``LearningRates``. None keeps it.
        momentum: in [0, 1), of optimizers that have it.
        weight_decay: >= 0, of optimizers that have it; torch's defaults do not hold.
        penalty_mode: how FedCurv's penalty is applied; see ``CurvaturePenalty.attach``.
        fisher_kind: see ``fisher_diagonal``.
        fisher_samples: with how many a client estimates, chosen anew in each round; likewise.
        device: ``auto`` takes CUDA where there is one; else a name that torch knows.
        num_threads: CPU threads of torch's operations; the bits of a sum depend on it.
        trainer: ``local`` trains in this process; ``lasgd`` by several workers of the site, each
            on a GPU where there are any; then the bits depend on their speeds.
        workers: of ``lasgd``, >= 1.
        sync_every: of ``lasgd``, see there.
        outer: of ``lasgd``: ``nesterov`` or ``momentum``, which begins anew in every round.
        outer_lr: of it.
        outer_momentum: of it.
        compression: of ``lasgd``: ``int8`` or ``int4``, see there.

    Raises:
        ValueError: naming every setting out of range.
    """

    epochs: int = 1
    batch_size: int = 32
    # tables have no hash; settings that differ there alone are still unequal
    optimizer: Named = field(default="sgd", hash=False)
    lr: float = 0.1
    schedule: Named | None = field(default=None, hash=False)
    momentum: float = 0.0
    weight_decay: float = 0.0
    penalty_mode: PenaltyMode = "gradient"
    fisher_kind: FisherKind = "empirical"
    fisher_samples: Number = "all"
    device: str = "auto"
    num_threads: int = 1
    trainer: Trainer = "local"
    workers: int = 2
    sync_every: int = 8
    outer: OuterKind | None = None
    outer_lr: float = 0.7
    outer_momentum: float = 0.9
    compression: Compression | None = None

    @property
    def fisher_batch_size(self) -> int:
        """How many samples an estimate takes at once."""
        return max(self.batch_size, _SMALLEST_FISHER_BATCH)

    def __post_init__(self) -> None:
        """Collect everything that is out of range and raise once."""
        faults = [
            f"client.{name} must be {wanted}, got {getattr(self, name)!r}"
            for name, (holds, wanted) in _RULES.items()
            if not _holds_without_error(holds, getattr(self, name))
        ]
        checks = (self._check_optimizer, self._check_schedule, self._check_lasgd)
        for check in () if faults else checks:
            try:
                check()
            except ValueError as error:
                faults.append(str(error))
        if faults:
            raise ValueError("; ".join(faults))

    def _check_optimizer(self) -> None:
        try:
            check_optimizer(self.optimizer, self._shared())
        except ValueError as error:
            raise ValueError(f"client.optimizer: {error}") from error

    def _check_lasgd(self) -> None:
        for name in ("outer", "compression"):
            if getattr(self, name) is not None and self.trainer != "lasgd":
                raise ValueError(
                    f"client.{name} must be null where client.trainer is {self.trainer}, got "
                    f"{getattr(self, name)!r}; it is of client.trainer=lasgd"
                )
        is_default = (self.outer_lr, self.outer_momentum) == (0.7, 0.9)
        if self.outer is None and not is_default:
            raise ValueError(
                "client.outer_lr and client.outer_momentum must be left out without client.outer, "
                f"got {self.outer_lr!r} and {self.outer_momentum!r}"
            )

    def _check_schedule(self) -> None:
        LearningRates(self.lr, self.schedule)

    def _shared(self) -> dict[str, float]:
        return {"momentum": self.momentum, "weight_decay": self.weight_decay}

    @property
    def is_sgd(self) -> bool:
        """Whether the steps are SGD's, perhaps with momentum."""
        return chosen_optimizer(self.optimizer, self._shared())[0] is torch.optim.SGD

    @property
    def has_momentum(self) -> bool:
        """Whether a gradient goes on to act after its step by ``momentum``."""
        return bool(chosen_optimizer(self.optimizer, self._shared())[1].get("momentum"))

    @property
    def is_plain_sgd(self) -> bool:
        """Whether a step is the learning rate times the gradient."""
        return self.is_sgd and not any(chosen_optimizer(self.optimizer, self._shared())[1].values())

    def check_model(self, model: nn.Module) -> None:
        """Raise a ValueError if the optimizer cannot step the model."""
        if not self.is_sgd and self.optimizer != "adam":  # they step anything
            self.make_optimizer(model)

    def check_penalty(self) -> None:
        """Raise a ValueError if FedCurv's penalty does not fit the optimizer."""
        if self.penalty_mode == "proximal":
            require_proximal(self.optimizer)

    def at_round(self, server_round: int) -> "TrainingSettings":
        """Return the settings of one round, whose learning rate is the schedule's."""
        if self.schedule is None:
            return self
        rates = LearningRates(self.lr, self.schedule)
        return replace(self, lr=rates(server_round), schedule=None)

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return an optimizer over the model's trainable parameters.

        Raises:
            ValueError: if it cannot step them.
        """
        parameters = trainable_parameters(model).values()
        try:
            return make_optimizer(self.optimizer, parameters, self.lr, self._shared())
        except ValueError as error:
            raise ValueError(f"client.optimizer: {error}") from error

    def make_device(self) -> torch.device:
        """Return the device to train on.

        Raises:
            ValueError: if this machine has no such device.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(1, device=device).cpu()
        except (RuntimeError, AssertionError, ImportError) as error:
            why = str(error).partition("\n")[0]
            raise ValueError(
                f"client.device={self.device}: torch has no such device on this machine ({why}); "
                "use auto or cpu"
            ) from error
        return device


def _positive_integer(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


_RULES: dict[str, tuple[Callable[[Any], object], str]] = {
    "epochs": (_positive_integer, "an integer >= 1"),
    "batch_size": (_positive_integer, "an integer >= 1"),
    "lr": (lambda v: 0 < v < math.inf, "> 0 and finite"),
    "momentum": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "weight_decay": (lambda v: 0 <= v < math.inf, ">= 0 and finite"),
    "penalty_mode": (lambda v: v in get_args(PenaltyMode), "gradient or proximal"),
    "fisher_kind": (lambda v: v in get_args(FisherKind), "empirical, exact, sampled or signed"),
    "fisher_samples": (check_number, "an integer >= 1, auto or all"),
    "device": (lambda v: v == "auto" or torch.device(v), "auto or a device that torch knows"),
    "num_threads": (_positive_integer, "an integer >= 1"),
    "trainer": (lambda v: v in get_args(Trainer), "local or lasgd"),
    "workers": (_positive_integer, "an integer >= 1"),
    "sync_every": (_positive_integer, "an integer >= 1"),
    "outer": (lambda v: v is None or v in get_args(OuterKind), "nesterov, momentum or null"),
    "compression": (lambda v: v is None or v in get_args(Compression), "int8, int4 or null"),
    "outer_lr": (lambda v: 0 < v < math.inf, "> 0 and finite"),
    "outer_momentum": (lambda v: 0 <= v < 1, "in [0, 1)"),
}


def _holds_without_error(holds: Callable[[Any], object], value: Any) -> bool:
    try:
        return not isinstance(value, bool) and bool(holds(value))  # true is no 1 here
    except (TypeError, RuntimeError):  # a value of another type, or no such device
        return False
