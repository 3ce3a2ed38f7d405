"""Values that all samples of a batch share, which a comparison of a few samples can miss.

A branch that the sum of a batch decides goes one way for all samples, and may go another for one
alone. So a pass over a few samples is followed function by function: what is computed from the
inputs must go on having as many parts as there are samples, must not be read by Python, and must
not pick samples.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fedcurv.global_state import random_states_kept
from fedcurv.parameters import described
from fedcurv.per_sample.replay import Nest, close
from fedcurv.per_sample.samples import Samples, one_tensor
from fedcurv.per_sample.surroundings import buffers_kept

# few, and a number that seldom divides the sizes of layers
_SAMPLES = 7

_READING = frozenset(
    (
        *("__bool__", "__int__", "__float__", "__index__", "__complex__", "__array__"),
        *("__contains__", "item", "tolist", "numpy", "equal", "allclose", "is_nonzero"),
        *("nonzero", "argwhere", "unique", "unique_consecutive", "masked_select"),
    )
)


class _Following(TorchFunctionMode):
    """Follows what is computed from the inputs.

    Attributes:
        shares: the first function that makes of the samples something that is not by sample.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.shares: str | None = None
        # kept, so that no other object gets the number of one of these
        self._followed: dict[int, object] = {id(tensor): tensor for tensor in inputs}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.shares is None and self._has_followed((args, kwargs)):
            self._follow(getattr(func, "__name__", ""), args, result)
        return result

    def _has_followed(self, nest: Nest) -> bool:
        """Return whether something followed is among these."""
        if isinstance(nest, Tensor):
            return id(nest) in self._followed
        if isinstance(nest, dict):
            nest = nest.values()
        elif not isinstance(nest, tuple | list):
            return id(nest) in self._followed
        return any(map(self._has_followed, nest))

    def _follow(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        if name in _READING or (name == "__getitem__" and _by_mask(args[1])):
            self.shares = name
        elif self._orders(name, args):
            self.shares = f"{name} by an order of the samples"
        elif not name.startswith("new_") and not name.endswith("_like"):  # of a shape alone
            for value in _values((result, args[:1] if name == "__setitem__" else ())):
                if isinstance(value, Tensor):
                    self._followed[id(value)] = value
                    if value.numel() % _SAMPLES:
                        self.shares = name

    def _orders(self, name: str, args: tuple[Any, ...]) -> bool:
        """Return whether samples are picked by numbers that were computed from them."""
        if name == "__getitem__":
            rows = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
        elif name == "index_select" and len(args) == 3 and args[1] == 0:
            rows = args[2]
        else:
            return False
        return isinstance(rows, Tensor) and self._followed.keys() >= {id(rows), id(args[0])}


def _values(nest: Nest) -> Iterator[Any]:
    if isinstance(nest, tuple | list):
        for item in nest:
            yield from _values(item)
    elif isinstance(nest, dict):
        yield from _values(list(nest.values()))
    else:
        yield nest


def _by_mask(index: Nest) -> bool:
    return any(
        isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8)
        for part in _values(index)
    )


def refuse_accidental_rows(model: nn.Module, inputs: Samples) -> None:
    """Refuse a tensor with as many rows as there are samples that are no samples' rows.

    Asked where a sample alone has other outputs than among others: not if it gets all of the rows.

    Raises:
        ValueError: if a sample then has the same outputs as among the others.
    """
    if len(inputs.tensors) == 1 or len(inputs) == 1:
        return
    places = set(range(len(inputs.tensors)))
    with torch.no_grad(), buffers_kept(model), random_states_kept(inputs.device):
        together = inputs.outputs(model)[1:2]
        if close(inputs[1:2].outputs(model), together):
            return
        for shared in [{place} for place in places] + [places - {place} for place in places]:
            tensors = [t if i in shared else t[1:2] for i, t in enumerate(inputs.tensors)]
            try:
                outputs = one_tensor(inputs.run(model, tensors), model)
            except (RuntimeError, TypeError, ValueError, LookupError):
                continue
            if close(outputs, together):
                found = ", ".join(described(inputs.tensors[i]) for i in sorted(shared))
                raise ValueError(
                    f"expected tensors whose first axis is that of the {len(inputs)} samples or of "
                    f"another length, got {found}, which all samples share; take it out of the "
                    "batch, into forward="
                )


def shared_by(model: nn.Module, inputs: Samples) -> str | None:
    """Return the function that makes of all samples one value, or reads values; None if none does.

    What compiled and scripted modules do inside is not seen.

    Args:
        model: to be run without gradients.
        inputs: of N samples.
    """
    if any(getattr(module, "_compiled_call_impl", None) for module in model.modules()):
        return None
    if len(inputs) >= _SAMPLES:
        few = inputs[:_SAMPLES]
    else:
        few = inputs[torch.arange(_SAMPLES, device=inputs.device) % len(inputs)]
    following = _Following(few.tensors)
    try:
        with torch.no_grad(), following:
            few.outputs(model)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None  # what is wrong shows in a pass of its own
    return following.shares
