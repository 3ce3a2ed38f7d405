"""The Fisher diagonals of several multilayer perceptrons of one shape, side by side."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedcurv.clients.local_round import LocalRound
from fedcurv.cotangents import cotangents
from fedcurv.likelihoods import FisherKind, categorical
from fedcurv.simulations.runners.batched.batches import StackedBatches, StackedSamples, Step
from fedcurv.simulations.runners.batched.products import back_through, by_client, forward, step_

# with these each client draws labels or signs by random numbers of its own
OWN_KINDS = ("sampled", "signed")


def can_be_estimated(local: LocalRound) -> bool:
    """Return whether a perceptron's estimate is of the kind that this module makes."""
    return local.curvature.active and local.task.settings.fisher_kind not in OWN_KINDS


@torch.no_grad()
def fisher_stacked(
    rounds: Sequence[LocalRound], samples: StackedSamples, parameters: Mapping[str, Tensor]
) -> list[dict[str, Tensor] | None]:
    """Return what ``fedcurv.fisher_diagonal`` gives for each client, to rounding.

    Args:
        rounds: of one kind, see ``stacked.same_kind``, each fit by :func:`can_be_estimated`.
        samples: to estimate with; where they stand for others, for all of a client's.
        parameters: of the clients' models, see ``stacked.stacked_parameters``, on the same device.

    Returns:
        the diagonals; None for a client where they are not finite.
    """
    settings, device = rounds[0].task.settings, samples.inputs.device
    batches = StackedBatches(samples, settings.fisher_batch_size)
    batches.set_order([torch.arange(size) for size in samples.sizes])
    names, values = list(parameters), list(parameters.values())
    totals = [torch.zeros_like(parameter) for parameter in values]
    for step in batches:
        _add_squares(totals, values, step, settings.fisher_kind)
    sizes = torch.tensor([len(local.samples[0]) for local in rounds], device=device)
    for total in totals:
        total.div_(by_client(sizes, total))
    finite = torch.stack([total.flatten(1).isfinite().all(1) for total in totals]).all(0)
    totals = [total.to(rounds[0].samples[0].device) for total in totals]
    return [
        {name: total[client] for name, total in zip(names, totals, strict=True)} if good else None
        for client, good in enumerate(finite.tolist())
    ]


def _add_squares(
    totals: Sequence[Tensor], parameters: Sequence[Tensor], step: Step, kind: FisherKind
) -> None:
    """Add the squared gradients of a step's samples."""
    weights, biases = parameters[::2], parameters[1::2]
    activations = forward(weights, biases, step.inputs)
    logits = activations.pop()
    positive = [inputs > 0 for inputs in activations]
    # by the layers' outputs, shape (clients, batch size, out)
    squares = [
        inputs.new_zeros(*inputs.shape[:2], weight.shape[1])
        for inputs, weight in zip(activations, weights, strict=True)
    ]
    weights_of_samples: Tensor = step.shares > 0
    if step.roots is not None:
        weights_of_samples = weights_of_samples * step.roots
    rows = logits.flatten(0, 1)
    for cotangent in cotangents(kind, categorical, rows, targets=step.labels.flatten()):
        gradient = cotangent.view_as(logits) * weights_of_samples
        for index in reversed(range(len(weights))):
            squares[index].addcmul_(gradient, gradient)
            if index > 0:
                gradient = back_through(gradient, weights[index]).mul_(positive[index])
    for weight, bias, square, inputs in zip(
        totals[::2], totals[1::2], squares, activations, strict=True
    ):
        step_(weight, square, inputs.square(), -1.0)
        bias.add_(square.sum(1))
