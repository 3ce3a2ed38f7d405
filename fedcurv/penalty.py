"""FedCurv's penalty λ Σ_j (θ − θ̂_j)ᵀ diag(F_j) (θ − θ̂_j), from the sums of F_j and F_j θ̂_j.

Three ways to feel it: as a term of the loss, as a gradient 2λ(Pθ − Q) added before the optimiser's
step, or as an exact proximal step after it. The Hessian is 2λP, so the first two diverge once
lr·λ·max(P) > 1; the proximal step is stable for every λ and learning rate.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedcurv.curvature import Curvature, require_same_shapes, shapes_of
from fedcurv.hold import Holds, checked_strength, misfit, warn_who_attaches
from fedcurv.parameters import (
    Chosen,
    chosen_parameters,
    gradients_of,
    listed,
    refuse_complex,
)
from fedcurv.quadratic import Quadratic, beside, mix_types, plain_tensors
from fedcurv.steps import (
    Attachments,
    Steppable,
    once_a_step,
    register_for_all,
    require_hooks,
    require_no_closure,
    require_single_gradient,
    scale_of,
)

PenaltyMode = Literal["gradient", "proximal"]


class CurvaturePenalty:
    """The pull of other nodes' curvature on one model's parameters.

    It holds two numbers for each parameter, in float32 at least: P and Q; or, once proximal steps
    are taken, what makes them a single operation (see :meth:`proximal_step`).

    Args:
        model: its trainable parameters must be exactly those of ``curvature``, unless
            ``parameters`` says otherwise. What is frozen at a step is not moved by it.
        curvature: the other nodes' sums; copied to the parameters' device and precision once.
        strength: λ >= 0. There is no ½ in front (arXiv 1910.07796).
        parameters: which are pulled: names, frozen or not, or a predicate on the names of the
            trainable ones. ``curvature`` must hold them and may hold others.
        consume: take over the tensors of ``curvature`` where that spares a copy; it must not be
            used afterwards.

    Attributes:
        strength: λ.
        found_optimizer: whether it has been attached to an optimizer of the model's parameters.
        tell: what is called with a line about an optimizer that it does not go well with; by
            default a RuntimeWarning.

    Raises:
        ValueError: if strength is negative or not finite, the parameters differ or are complex, or
            the statistics are not valid.
    """

    def __init__(
        self,
        model: nn.Module,
        curvature: Curvature,
        *,
        strength: float,
        parameters: Chosen | None = None,
        consume: bool = False,
    ) -> None:
        self.strength = checked_strength(strength)
        chosen = chosen_parameters(model, parameters)
        refuse_complex(chosen.items(), "the penalty")
        if parameters is not None:
            curvature = curvature.only(chosen)
        require_same_shapes(
            shapes_of(chosen), shapes_of(curvature.precision), "the model", "the statistics"
        )
        curvature.check()
        self._steppable = Steppable(chosen)
        self._names, self._parameters = self._steppable.names, self._steppable.parameters
        # what an optimizer of this model may hold beside them
        self._others = [p for n, p in model.named_parameters() if n not in chosen]
        self.found_optimizer = False
        self.tell: Callable[[str], object] = warn_who_attaches
        self._attachments = Attachments()
        self._checked: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        with plain_tensors():
            self._quadratics = [
                Quadratic(
                    beside(p.detach(), curvature.precision[n], copy=not consume),
                    beside(p.detach(), curvature.weighted_parameters[n], copy=not consume),
                )
                for n, p in chosen.items()
            ]
        self._holds = Holds(self.strength, self._parameters, self._quadratics)
        self._largest = max(float(s.first.max()) for s in self._quadratics if s.first.numel())

    @property
    def names(self) -> Sequence[str]:
        """The parameters that are pulled."""
        return tuple(self._names)

    @property
    def curvature(self) -> Curvature:
        """The statistics that pull, as copies."""
        precision = {n: q.precision().clone() for n, q in self._named_quadratics()}
        weighted = {n: q.weighted().clone() for n, q in self._named_quadratics()}
        return Curvature(precision, weighted)

    def _named_quadratics(self) -> Iterable[tuple[str, Quadratic]]:
        return zip(self._names, self._quadratics, strict=True)

    def value(self) -> Tensor:
        """Return λ Σ_i P_i (θ_i − Q_i/P_i)², a scalar with gradient 2λ(Pθ − Q), to add to a loss.

        This is the double sum of the definition less its minimum over θ, a constant that says how
        far the nodes' solutions lie apart and that no step can change. So it is >= 0, it is 0 at
        the others' shared optimum, and float32 loses nothing to cancellation.
        """
        terms = []
        with plain_tensors():
            for parameter, quadratic in zip(self._parameters, self._quadratics, strict=True):
                away = parameter - quadratic.optimum(parameter.detach())
                terms.append((quadratic.precision() * away.square()).sum())
            return self.strength * torch.stack(terms).sum()

    @torch.no_grad()
    def add_gradient(self, scale: float | Tensor = 1.0) -> None:
        """Add 2λ(Pθ − Q), times ``scale``, to the ``.grad`` (made if it is None) of parameters.

        Those that are frozen are left out; a sparse gradient becomes dense.
        """
        trained = [index for index, p in enumerate(self._parameters) if p.requires_grad]
        self._add_gradient(trained, scale)

    def _add_gradient(self, indices: Sequence[int], scale: float | Tensor) -> None:
        if self.strength == 0.0 or not indices:
            return
        parameters = [self._parameters[i] for i in indices]
        quadratics = [self._quadratics[i] for i in indices]
        for quadratic in quadratics:
            quadratic.become_sums()
        precision = [q.first for q in quadratics]
        weighted = [q.second for q in quadratics]
        factor = 2.0 * self.strength
        with plain_tensors():
            gradients = gradients_of(parameters)
            # a bfloat16 gradient could not hold Pθ before Q is taken off it
            if isinstance(scale, float) and not mix_types(parameters, precision):
                torch._foreach_addcmul_(gradients, precision, parameters, value=factor * scale)
                torch._foreach_add_(gradients, weighted, alpha=-factor * scale)
                return
            pull = torch._foreach_mul(precision, parameters)
            torch._foreach_sub_(pull, weighted)
            torch._foreach_mul_(pull, scale)
            torch._foreach_add_(gradients, pull, alpha=factor)

    @torch.no_grad()
    def proximal_step(self, lr: float | Mapping[str, float]) -> None:
        """Set θ ← (θ + 2·lr·λ·Q) / (1 + 2·lr·λ·P), elementwise.

        This is the minimiser of ‖u − θ‖²/(2·lr) + λ(uᵀPu − 2uᵀQ) over u. As long as a learning rate
        stays, the step is computed as θ + W(θ* − θ), with θ* = Q/P and W = cP/(1 + cP), c = 2·lr·λ,
        which are held in the place of Q and P.

        Args:
            lr: learning rate >= 0 of all parameters, or of each by name (those left out stay, and
                those that are frozen).
        """
        if self.strength == 0.0:
            return
        rates = lr if isinstance(lr, Mapping) else dict.fromkeys(self._names, lr)
        by_rate: dict[float, list[int]] = {}
        for index, name in enumerate(self._names):
            if name in rates and self._parameters[index].requires_grad:
                by_rate.setdefault(rates[name], []).append(index)
        for rate, indices in by_rate.items():
            self._step_towards_optimum(indices, rate)

    def _step_towards_optimum(
        self, indices: Sequence[int], lr: float, skipped: Tensor | None = None
    ) -> None:
        """Take the proximal step of some parameters, or none where ``skipped`` is 1."""
        if lr == 0.0 or not indices:
            return
        parameters = [self._parameters[i] for i in indices]
        quadratics = [self._quadratics[i] for i in indices]
        factor = 2.0 * lr * self.strength
        for quadratic in quadratics:
            quadratic.become_proximal(factor)
        weights, optima = [q.first for q in quadratics], [q.second for q in quadratics]
        if skipped is not None:  # asked on the device: the host must not wait for an answer
            weights = list(torch._foreach_mul(weights, 1.0 - skipped))
        with plain_tensors():
            if mix_types(parameters, optima):
                for parameter, weight, optimum in zip(parameters, weights, optima, strict=True):
                    parameter.copy_(parameter.to(weight).lerp_(optimum, weight))
            else:
                torch._foreach_lerp_(parameters, optima, weights)

    def attach(
        self, optimizer: torch.optim.Optimizer | None = None, *, mode: PenaltyMode = "gradient"
    ) -> RemovableHandle:
        """Make every ``optimizer.step()`` feel the penalty; ``handle.remove()`` ends it.

        A step pulls at those of the parameters that its optimizer holds and that require gradients
        then. It pulls towards the optimum with ``maximize=True`` as well.

        Args:
            optimizer: of the model's parameters, or of some, where others have one of their own;
                its groups and learning rates are read at each step, so schedulers and groups that
                are added work. None is for training code that makes its own: whichever optimizer
                steps with these parameters, as long as this object lives.
            mode: ``gradient`` adds the penalty's gradient before the step: the paper's way, after
                any clipping of the loss's own gradient. ``proximal`` follows the step with the
                exact proximal one, whose learning rate is each group's ``lr``, whatever the
                optimizer itself makes of it, which is told where its steps are of other sizes.

        Raises:
            ValueError: for an unknown mode, an optimizer without any of the model's parameters, or
                one that feels the penalty already.
            TypeError: for what calls no hooks, for LBFGS, which evaluates the loss several times
                within a step, and in mode ``gradient`` for SparseAdam; for the optimizer that is
                found later, at its first step.
            RuntimeError: at a step that is given a closure in mode ``gradient``, whose backward
                pass would come after the penalty's gradient; add :meth:`value` to the loss there.
        """
        if mode not in get_args(PenaltyMode):
            raise ValueError(
                f"mode must be one of {', '.join(get_args(PenaltyMode))}, got {mode!r}"
            )
        self._attachments.require_new(optimizer)
        if optimizer is None:
            felt = partial(type(self)._felt_if_concerned, mode=mode)
            return self._attachments.note(
                register_for_all(self, felt, before=mode == "gradient"), None
            )
        self._check(optimizer, mode)
        if mode == "gradient":
            handle = optimizer.register_step_pre_hook(once_a_step(self._before_step))
        else:
            handle = optimizer.register_step_post_hook(once_a_step(self._after_step))
        return self._attachments.note(handle, optimizer)

    def _felt_if_concerned(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any, *, mode: PenaltyMode
    ) -> None:
        if self._concerns(optimizer, mode):
            (self._before_step if mode == "gradient" else self._after_step)(optimizer, args, kwargs)

    def _concerns(self, optimizer: torch.optim.Optimizer, mode: PenaltyMode) -> bool:
        if optimizer in self._checked:
            return True
        if not self._steppable.held_by(optimizer):
            return False
        self._check(optimizer, mode)
        return True

    def _check(self, optimizer: torch.optim.Optimizer, mode: PenaltyMode) -> None:
        """Refuse an optimizer that cannot feel the penalty."""
        require_hooks(optimizer)
        require_single_gradient(
            optimizer, "add penalty.value() to the loss inside its closure instead"
        )
        if not self._steppable.held_by(optimizer):
            others = {id(p) for p in self._others}
            if others.isdisjoint(id(p) for g in optimizer.param_groups for p in g["params"]):
                raise ValueError(
                    "expected an optimizer with parameters of the model, got one without "
                    f"{listed(self._names)}; make it from the same model"
                )
        if mode == "gradient":
            self._steppable.require_dense_steps(optimizer, "use mode='proximal'")
        if odd := misfit(optimizer, self.strength, self._largest, proximal=mode == "proximal"):
            self.tell(odd)
        self._checked.add(optimizer)
        self.found_optimizer = True

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        require_no_closure(
            args,
            kwargs,
            "a penalty is attached in mode 'gradient'",
            "add penalty.value() to the loss inside the closure instead",
        )
        for group, indices in self._steppable.stepped_by(optimizer):
            self._holds.note(optimizer, group["lr"], indices, is_proximal=False)
            self._add_gradient(indices, scale_of(optimizer, group))

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self.strength == 0.0:
            return
        # set likewise: 1 where the optimizer skipped this step, so that there is none to follow
        skipped = getattr(optimizer, "found_inf", None)
        for group, indices in self._steppable.stepped_by(optimizer):
            lr = float(group["lr"])
            self._holds.note(optimizer, lr, indices, is_proximal=True)
            self._step_towards_optimum(indices, lr, skipped)

    def felt(self, lr: float, num_steps: int) -> None:
        """Note steps of plain SGD that somebody else took, for :meth:`too_strong`."""
        self._holds.note_others(lr, num_steps)

    def too_strong(self) -> str:
        """Return what to say of a pull that left next to no training; nothing if it left some."""
        return self._holds.complaint(self._largest)
