"""Terms of a client's objective: FedProx's, FedCurv's pull, and those of others.

A strategy and its term find each other by name: the strategy puts ``local-term`` into the messages'
config, and the client has the term under that name.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedcurv.clients.curvature import ClientCurvature
from fedcurv.clients.settings import TrainingSettings
from fedcurv.clients.telling import once_a_run
from fedcurv.curvature import Curvature
from fedcurv.parameters import gradients_of, trainable_parameters
from fedcurv.penalty import CurvaturePenalty
from fedcurv.steps import (
    Steppable,
    once_a_step,
    require_hooks,
    require_no_closure,
    require_single_gradient,
    scale_of,
)

_TERM_IN_LOSS = "add (mu/2)·‖w − w_t‖² to the loss inside its closure instead"


@dataclass(frozen=True)
class AffineGradient:
    """A term's gradient slope·(θ − θ_t) + shift, with θ_t the weights that the round begins with.

    Attributes:
        slope: >= 0, the same for all parameters.
        shift: by parameter name; nothing for zero.
    """

    slope: float = 0.0
    shift: Mapping[str, Tensor] = field(default_factory=dict)


class LocalTerm:
    """What is added to a client's objective in one round; a method's own derives from this.

    One object serves one round of one client. Where several workers of a site train, each attaches
    a copy of what :meth:`for_workers` returns, which must be fit for pickle.
    """

    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, settings: TrainingSettings
    ) -> object:
        """Make every step of the optimizer feel the term.

        Args:
            model: with the weights that the round begins with.
            optimizer: of the model's parameters.
            settings: of the round.
        """
        raise NotImplementedError

    def for_workers(self) -> "LocalTerm":
        """Return what the workers of a site attach in its place; by default itself."""
        return self

    def affine(self, model: nn.Module, settings: TrainingSettings) -> AffineGradient | None:
        """Return the gradient for whoever takes plain SGD's steps without an optimizer.

        Args:
            model: with the weights that the round begins with.
            settings: of the round, plain SGD.

        Returns:
            the gradient; None if it has no such form for all of the model's parameters.
        """
        return None

    def note_steps(self, number: int, lr: float) -> None:
        """Note steps of plain SGD that were taken with the gradient that ``affine`` returned."""

    def report(self, content: RecordDict, model: nn.Module) -> None:
        """Add to the reply what the server's side of the method wants to know; by default nothing.

        Args:
            content: of the reply, with ``arrays`` and ``metrics``.
            model: as trained.
        """


# from a training message, the client's context and the model with the round's first weights
MakeTerm = Callable[[Message, Context, nn.Module], LocalTerm | None]


@dataclass(frozen=True)
class ProximalTerm(LocalTerm):
    """FedProx's (μ/2)‖w − w_t‖², around the weights that the round begins with.

    Attributes:
        mu: μ > 0.
    """

    mu: float

    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, settings: TrainingSettings
    ) -> object:
        """Add the term's gradient before every step; see :func:`attach_proximal_term`."""
        return attach_proximal_term(optimizer, model, self.mu)

    def affine(self, model: nn.Module, settings: TrainingSettings) -> AffineGradient:
        """Return μ(w − w_t)."""
        return AffineGradient(self.mu)


@dataclass(frozen=True)
class CurvatureTerm(LocalTerm):
    """FedCurv's pull to the others' optimum, as a client was told of it.

    Attributes:
        curvature: of the client, with a penalty; it makes FedCurv's part of the reply too.
    """

    curvature: ClientCurvature

    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, settings: TrainingSettings
    ) -> object:
        """Attach the penalty."""
        return self.curvature.attach(optimizer, mode=settings.penalty_mode)

    def for_workers(self) -> LocalTerm:
        """Return the pull alone."""
        penalty = self.curvature.penalty
        assert penalty is not None  # nothing has been reported yet
        return PullTerm(penalty.curvature, penalty.strength, self.curvature.federation)


@dataclass(frozen=True)
class PullTerm(LocalTerm):
    """λ·Σ P(θ − Q/P)², over the parameters that the statistics hold.

    Attributes:
        curvature: the others' P and Q; used up by ``attach``.
        strength: λ >= 0.
        federation: that the run is of, in which what may surprise is told once.
    """

    curvature: Curvature
    strength: float
    federation: str = ""

    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, settings: TrainingSettings
    ) -> object:
        """Attach a penalty for these statistics."""
        penalty = CurvaturePenalty(
            model,
            self.curvature,
            strength=self.strength,
            parameters=list(self.curvature.precision),
            consume=True,
        )
        penalty.tell = once_a_run(None, self.federation, "optimizer")
        return penalty.attach(optimizer, mode=settings.penalty_mode)


def attach_proximal_term(
    optimizer: torch.optim.Optimizer, model: nn.Module, mu: float
) -> RemovableHandle:
    """Add FedProx's μ(w − w_t), the gradient of (μ/2)‖w − w_t‖², before every step.

    w_t is the model as it is now. The norm is squared, and w is the weights of each step. A step
    pulls at those of the parameters that the optimizer holds and that require gradients then, back
    to w_t with ``maximize=True`` as well; a sparse gradient becomes dense.

    Raises:
        ValueError: if mu is negative or not finite.
        TypeError: for LBFGS and SparseAdam, whose steps such a gradient does not fit, and for what
            calls no hooks.
        RuntimeError: at a step that is given a closure, whose backward pass would come after.
    """
    if not 0 <= mu < math.inf:
        raise ValueError(f"proximal-mu must be finite and >= 0, got {mu!r}; use 0 for plain FedAvg")
    require_hooks(optimizer)
    require_single_gradient(optimizer, _TERM_IN_LOSS)
    steppable = Steppable(trainable_parameters(model))
    steppable.require_dense_steps(optimizer, "take SGD or Adagrad, or sparse=False")
    anchors = [p.detach().clone() for p in steppable.parameters]

    @torch.no_grad()
    def pull_back(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        require_no_closure(args, kwargs, "FedProx's term is attached", _TERM_IN_LOSS)
        for group, indices in steppable.stepped_by(optimizer):
            parameters = [steppable.parameters[i] for i in indices]
            away = torch._foreach_sub(parameters, [anchors[i] for i in indices])
            scale = scale_of(optimizer, group)
            if isinstance(scale, Tensor):
                torch._foreach_mul_(away, scale)
                scale = 1.0
            torch._foreach_add_(gradients_of(parameters), away, alpha=scale * mu)

    return optimizer.register_step_pre_hook(once_a_step(pull_back))
