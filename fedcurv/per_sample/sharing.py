"""Values that all samples of a batch share, which a comparison of a few samples can miss.

A branch that the sum of a batch decides goes one way for all samples, and may go another for one
alone. So a pass over a few samples is followed function by function: what is computed from the
inputs and enters the outputs must go on having as many parts as there are samples, and must not
pick samples; and where Python reads a value, the samples are taken by the way that each goes alone.
"""

import torch
from torch import nn

from fedcurv.global_state import random_states_kept
from fedcurv.parameters import described
from fedcurv.per_sample.following import Following
from fedcurv.per_sample.rounding import close
from fedcurv.per_sample.samples import FAILURES, Samples, one_tensor
from fedcurv.per_sample.surroundings import buffers_kept

# few, and a number that seldom divides the sizes of layers
_SAMPLES = 7


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
            except FAILURES:
                continue
            if close(outputs, together):
                found = ", ".join(described(inputs.tensors[i]) for i in sorted(shared))
                raise ValueError(
                    f"expected tensors whose first axis is that of the {len(inputs)} samples or of "
                    f"another length, got {found}, which all samples share; take it out of the "
                    "batch, into forward="
                )


def followed(model: nn.Module, inputs: Samples) -> Following | None:
    """Return what is found by following a few samples, with ``shares`` set if outputs are mixed.

    None if the forward pass fails, or cannot be followed, as compiled modules cannot. What scripted
    modules do inside is not seen.

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
    following = Following(few.tensors, _SAMPLES)
    try:
        with torch.no_grad(), following:
            outputs = few.outputs(model)
    except FAILURES:
        return None
    following.shares = following.shares or following.mixed(outputs)
    return following
