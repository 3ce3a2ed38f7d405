"""Rules for layers: closed forms for squared per-sample gradients, found by a layer's class.

A rule gets a module, its input x and the gradient g of the summed loss with respect to its output,
both with the samples along the first axis. It holds for a module that treats samples apart.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedcurv.parameters import accumulation_dtype


class LayerRule:
    """How the gradients of single samples follow from x and g.

    Attributes:
        any_axis: whether modules of this kind take samples along any axis.
        parameters: the names, in the module, of those whose gradients the rule gives.
        without_input: those of them whose gradients follow from g alone.
    """

    any_axis = False
    parameters: frozenset[str] = frozenset({"weight", "bias"})
    without_input: frozenset[str] = frozenset({"bias"})

    def fits(self, module: nn.Module) -> bool:
        """Return whether the rule holds for a module of its class, as that is configured."""
        return True

    def takes_samples(self, module: nn.Module, axes: int) -> bool:
        """Return whether an input of so many axes is one of samples; else it is a sample itself."""
        return True

    def gradients(self, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return ∂ℓ_n/∂p of the module's own parameters, each of shape (N, *p.shape)."""
        raise NotImplementedError

    def add_squares(
        self, module: nn.Module, x: Tensor, g: Tensor, totals: Mapping[str, Tensor]
    ) -> None:
        """Add Σ_n (∂ℓ_n/∂p)² to the totals, for those parameters that have one."""
        for name, gradient in self.gradients(module, x, g).items():
            if name in totals:
                totals[name].add_(gradient.square_().sum(0))

    def summand(self, x: Tensor, g: Tensor) -> Tensor | None:
        """Return what ``add_summed`` takes, which may be summed over several g; None: nothing."""
        return None

    def add_summed(self, x: Tensor, summed: Tensor, totals: Mapping[str, Tensor]) -> None:
        """Add Σ_n Σ_v (∂ℓ_nv/∂p)² to the totals, given Σ_v summand(x, g_v)."""
        raise NotImplementedError

    def new_total(self, parameter: Tensor) -> Tensor:
        """Return zeros in the parameter's shape, laid out in memory as the rule likes it."""
        return torch.zeros_like(
            parameter,
            dtype=accumulation_dtype(parameter),
            memory_format=torch.contiguous_format,
            requires_grad=False,
        )


Rule = TypeVar("Rule", bound=type[LayerRule])

# by the class of a layer, one object of its rule
RULES: dict[type[nn.Module], LayerRule] = {}

# likewise, by the qualified name of a class of a library that is not imported for it
RULES_BY_NAME: dict[str, LayerRule] = {}

# what a subclass with its parent's rule must not have of its own
_COMPUTING = ("forward", "_conv_forward", "__call__")


def register_rule(*layers: type[nn.Module], replace: bool = False) -> Callable[[Rule], Rule]:
    """Return a decorator that makes a rule's class the rule of these layers.

    A layer's subclasses have its rule, unless they compute something of their own or have a rule
    themselves. Models that are hooked from then on use it; the self-check compares it with single
    samples, once for each computation.

    Args:
        *layers: classes of modules.
        replace: take the place of a rule that is there.

    Raises:
        TypeError: for what is no class of modules, or no class of rules without arguments.
        ValueError: if a layer has a rule.
    """
    for layer in layers:
        if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
            raise TypeError(
                f"register_rule: expected classes of torch.nn.Module, got {layer!r:.80}"
            )
        if layer in RULES and not replace:
            raise ValueError(
                f"{layer.__name__} has the rule {type(RULES[layer]).__name__}; register_rule(..., "
                "replace=True) takes its place"
            )
    if not layers:
        raise TypeError("register_rule: expected a layer's class, got none")

    def register(rule: Rule) -> Rule:
        if not (isinstance(rule, type) and issubclass(rule, LayerRule)):
            raise TypeError(f"register_rule: expected a class of LayerRule, got {rule!r:.80}")
        RULES.update(dict.fromkeys(layers, rule()))
        return rule

    return register


def register_rule_by_name(layer: str) -> Callable[[Rule], Rule]:
    """Return a decorator that makes a rule's class the rule of a layer of another library.

    Args:
        layer: the class's module and name.
    """

    def register(rule: Rule) -> Rule:
        RULES_BY_NAME[layer] = rule()
        return rule

    return register


def rule_for(module: nn.Module) -> LayerRule | None:
    """Return the rule for a module, or None if there is none for it as it is configured.

    A subclass has its parent's, unless it computes something of its own.
    """
    kind = next((k for k in type(module).__mro__ if _registered(k) is not None), None)
    if kind is None or "forward" in vars(module):
        return None
    if any(getattr(type(module), m, None) is not getattr(kind, m, None) for m in _COMPUTING):
        return None
    rule = _registered(kind)
    return rule if rule is not None and rule.fits(module) else None


def _registered(kind: type) -> LayerRule | None:
    by_class = RULES.get(kind)
    return by_class or RULES_BY_NAME.get(f"{kind.__module__}.{kind.__qualname__}")
