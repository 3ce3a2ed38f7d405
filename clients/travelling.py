"""Which of a model's parameters travel: a node speaks of no others, unless it is told to."""

from collections.abc import Collection, Iterable

from flwr.app import Context
from torch import nn

from fedcurv.clients.telling import tell_once
from fedcurv.parameters import (
    Chosen,
    chosen_parameters,
    listed,
    named_once,
    trainable_parameters,
)


def withheld(model: nn.Module, arrays: Collection[str]) -> frozenset[str]:
    """Return the names of the parameters that stay at the node, frozen ones too.

    Args:
        model: its parameters; a tied one travels if one of its names does.
        arrays: the names of what travels. Where none is a name in the model (adapters, a list of
            arrays), nothing is known of what stays, and no parameter counts as withheld.
    """
    once = named_once(model)
    if once.keys().isdisjoint(arrays) and not any(n in arrays for n, _ in model.named_buffers()):
        return frozenset()
    return frozenset(once.values()) - {once[name] for name in arrays if name in once}


def spoken_of(
    model: nn.Module, parameters: Chosen | None, stays: Collection[str]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters that penalty and report are about, by name.

    Args:
        model: its trainable parameters, less what stays.
        parameters: an explicit choice, which alone decides.
        stays: the names of withheld parameters.

    Raises:
        ValueError: if the choice does not fit the model.
    """
    if parameters is None:
        named = ((n, p) for n, p in model.named_parameters() if p.requires_grad and n not in stays)
        return {name: tuple(p.shape) for name, p in named}
    return {name: tuple(p.shape) for name, p in chosen_parameters(model, parameters).items()}


def require_known(known: Iterable[str], got: Iterable[str], known_in: str, got_in: str) -> None:
    """Refuse statistics of parameters that the model of this round does not have.

    Raises:
        ValueError: with some names of both.
    """
    known, got = list(known), list(got)
    if any(name not in known for name in got):
        raise ValueError(
            f"expected statistics of the parameters of {known_in} ({listed(known)}), got those of "
            f"{got_in} ({listed(got)}); give ClientCurvature and report one model: a wrapper for "
            "both, or the model itself, with another forward if need be"
        )


def tell_what_stays(context: Context, model: nn.Module, stays: Collection[str]) -> None:
    """List once, in the client's log, the trainable parameters that stay home."""
    stay = [name for name in trainable_parameters(model) if name in stays]
    if stay:
        tell_once(
            context,
            "withheld",
            "left out of penalty and report, as they are not among the message's arrays: "
            f"{', '.join(stay)} (parameters= chooses otherwise)",
        )
