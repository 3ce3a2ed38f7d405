"""The parameters of a model that take part, the trainable ones, and what goes with them."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# under which torch.compile's wrapper holds a model
_COMPILED = "_orig_mod"

Chosen = Iterable[str] | Callable[[str], bool]


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require gradients, keyed by name; a tied parameter appears once.

    Raises:
        ValueError: if no parameter requires gradients, or one has no values yet.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    lazy = [name for name, p in parameters.items() if nn.parameter.is_lazy(p)]
    if lazy:
        raise ValueError(
            f"expected parameters that have values, got uninitialized ones in {listed(lazy)}; run "
            "the model on a batch once before"
        )
    if not parameters:
        raise ValueError(
            f"expected a model with trainable parameters, got {type(model).__name__} in which none "
            "requires gradients; unfreeze what should be trained"
        )
    return parameters


def named_once(model: nn.Module) -> dict[str, str]:
    """Return every name of a parameter with the one under which it stands here.

    They differ for tied parameters, which have several names and stand under the first.
    """
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(p), name)
        for name, p in model.named_parameters(remove_duplicate=False)
    }


def named_like(model: nn.Module, names: Collection[str]) -> nn.Module:
    """Return the model whose parameters have such names: the one inside torch.compile's wrapper.

    The wrapper puts ``_orig_mod.`` before every name of the model that it holds; the parameters are
    the same ones.

    Args:
        model: as it is, unless it is such a wrapper and no name is one of the wrapper's.
        names: of what travels, or of what was given before.
    """
    inner = getattr(model, _COMPILED, None)
    if not isinstance(inner, nn.Module) or any(n.startswith(f"{_COMPILED}.") for n in names):
        return model
    return inner


def chosen_parameters(model: nn.Module, parameters: Chosen | None) -> dict[str, nn.Parameter]:
    """Return the parameters that are chosen, keyed by name, in the model's order.

    Args:
        model: its parameters.
        parameters: names, which choose frozen parameters too; or a predicate on the name, which
            chooses among those that require gradients; None for all of these.

    Raises:
        ValueError: if none is chosen, or a name is not a parameter's.
    """
    if parameters is None:
        return trainable_parameters(model)
    if callable(parameters):
        chosen = {n: p for n, p in trainable_parameters(model).items() if parameters(n)}
    else:
        if isinstance(parameters, str):
            raise ValueError(
                f"parameters must be names or a predicate, got one string, {parameters!r}; put it "
                "into a list"
            )
        names, known = list(parameters), named_once(model)
        if unknown := [name for name in names if name not in known]:
            raise ValueError(
                f"parameters must name parameters of the model, got {listed(unknown)}; it has "
                f"{listed(list(known))}"
            )
        wanted = {known[name] for name in names}
        chosen = {n: p for n, p in model.named_parameters() if n in wanted}
    if not chosen:
        raise ValueError(
            "parameters must choose at least one parameter, got none of "
            f"{listed([n for n, _ in model.named_parameters()])}"
        )
    return chosen


def refuse_complex(parameters: Iterable[tuple[str, Tensor]], what: str) -> None:
    """Refuse complex parameters where they would be taken for real ones.

    Raises:
        ValueError: naming them.
    """
    if names := [name for name, parameter in parameters if parameter.is_complex()]:
        raise ValueError(
            f"{what}: expected real parameters, got complex {listed(names)}; keep real and "
            "imaginary part as two real parameters, or leave them out with parameters="
        )


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Return the type in which to compute beside this tensor: float32 at least."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def plain(tensor: Tensor) -> Tensor:
    """Return the tensor itself, without a subclass that answers for its operations."""
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def described(tensor: Tensor) -> str:
    """Return a tensor's type and shape, for an error."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def listed(names: Sequence[str]) -> str:
    """Return the first names, for an error."""
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")


def gradients_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return every parameter's ``.grad``, made dense; zeros where there is none yet."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        elif parameter.grad.layout is not torch.strided:
            parameter.grad = parameter.grad.to_dense()
        gradients.append(parameter.grad)
    return gradients


@contextmanager
def only_these_require_gradients(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Freeze all parameters but these, and unfreeze these; afterwards all are as before."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for name, parameter in model.named_parameters():
            # only where it changes something: a frozen tensor may be of a type that has no gradient
            if parameter.requires_grad != (name in names):
                parameter.requires_grad_(name in names)
        yield
    finally:
        for parameter, required in before:
            if parameter.requires_grad != required:
                parameter.requires_grad_(required)


@contextmanager
def fresh_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let these parameters require gradients, with ``.grad`` None at first; restore both after.

    Hooks on their gradients are not called: some change gradients, and some step an optimizer.
    """
    before = [(p, p.grad, p.requires_grad) for p in parameters]
    registries: list[Any] = [
        registry
        for p, _, _ in before
        for registry in (p._backward_hooks, p._post_accumulate_grad_hooks)
        if registry
    ]
    hooks = [(registry, dict(registry)) for registry in registries]
    try:
        for registry, _ in hooks:
            registry.clear()
        for parameter, _, _ in before:
            parameter.grad = None
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, gradient, required in before:
            parameter.grad = gradient
            parameter.requires_grad_(required)
        for registry, kept in hooks:
            registry.update(kept)
