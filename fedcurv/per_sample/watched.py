"""Calls of hooked modules, and where the samples lie in their tensors."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from fedcurv.per_sample.nests import Nest, mapped

# in the place of an axis: all of the input belongs to one sample, wherever that lies
WHOLE = -1


@dataclass(slots=True)
class Watched:
    """One call of a hooked module.

    Attributes:
        layer: the module's.
        args: its arguments; of a closed form's layer the input alone.
        kwargs: likewise.
        sizes: of its outputs that are tensors of real numbers.
        axes: where the samples lie: in the input, an axis or ``WHOLE``, or a nest of axes; None if
            that is unknown.
        names: the parameters, by the module's own names, that this call is to show.
        gradients: of the outputs, as far as they are known.
        by_rule: whether the module has a closed form.
    """

    layer: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sizes: Sequence[tuple[int, ...]]
    axes: Any = None
    names: frozenset[str] = frozenset()
    gradients: list[Tensor | None] = field(default_factory=list)
    by_rule: bool = False

    def key(self) -> Hashable:
        """Return what only calls with the same rule and shapes have in common."""
        if self.by_rule:
            return type(self.layer.rule), self.args[0].shape, *self.sizes
        return str(self.shapes())

    def shapes(self) -> Nest:
        """Return the shapes of all tensors."""
        outputs = [Shape(tuple(sizes)) for sizes in self.sizes]
        return mapped(shape_of, (self.args, self.kwargs)), outputs


def axes_by_comparison(call: Watched, alone: Watched, samples: int) -> Any:
    """Return where the samples lie: where a size is their number, and 1 for one sample."""
    return _axes(call, partial(_differing_axis, samples), alone)


def axes_by_size(call: Watched, samples: int) -> Any:
    """Return where the samples lie if nothing is known but their number."""
    if call.by_rule and samples == 1 and call.layer.any_axis:
        return WHOLE  # an axis of length 1 may be of features
    candidates = (0, 1) if samples == 1 and not call.by_rule else (0,)
    return _axes(call, partial(_fitting_axis, samples, candidates))


def _axes(call: Watched, axis_of: Callable[..., int | None], *others: Watched) -> Any:
    if call.by_rule:
        calls = (call, *others)
        axis = axis_of(*(Shape(c.args[0].shape) for c in calls))
        same = axis == axis_of(*(Shape(c.sizes[0]) for c in calls))
        fits = call.layer.rule.takes_samples(call.layer.module, call.args[0].ndim)
        return axis if same and fits else None
    try:
        (args, kwargs), outputs = mapped(
            axis_of, call.shapes(), *(other.shapes() for other in others)
        )
    except (ValueError, KeyError, TypeError):
        return None
    return args, kwargs, outputs


def _differing_axis(samples: int, shape: Any, of_one: Any) -> int | None:
    if not isinstance(shape, Shape) or not isinstance(of_one, Shape):
        return None
    return differing_axis(samples, shape.sizes, of_one.sizes)


def differing_axis(samples: int, sizes: Sequence[int], of_one: Sequence[int]) -> int | None:
    """Return the only axis whose size differs, if it is the samples' number, and 1 for one."""
    if len(sizes) != len(of_one):
        return None
    pairs = enumerate(zip(sizes, of_one, strict=True))
    differing = [axis for axis, (several, one) in pairs if several != one]
    if len(differing) != 1:
        return None
    (axis,) = differing
    return axis if (sizes[axis], of_one[axis]) == (samples, 1) else None


def _fitting_axis(samples: int, candidates: tuple[int, ...], shape: Any) -> int | None:
    if not isinstance(shape, Shape):
        return None
    fitting = [a for a in candidates if len(shape.sizes) > a and shape.sizes[a] == samples]
    return fitting[0] if fitting else None


@dataclass(frozen=True)
class Shape:
    """A tensor's shape, which is no nest."""

    sizes: tuple[int, ...]


def shape_of(value: Any) -> Any:
    """Return a tensor's shape; None for any other value."""
    return Shape(tuple(value.shape)) if isinstance(value, Tensor) else None
