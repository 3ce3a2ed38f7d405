"""The self-check: closed forms against single samples, once for each computation."""

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedcurv.global_state import random_states, random_states_kept, same_states
from fedcurv.parameters import accumulation_dtype, fresh_gradients
from fedcurv.per_sample.draws import DrawsError, draws_of
from fedcurv.per_sample.findings import Findings
from fedcurv.per_sample.memory import GraphMeter
from fedcurv.per_sample.recent import remember
from fedcurv.per_sample.rounding import close
from fedcurv.per_sample.samples import FAILURES, Samples
from fedcurv.per_sample.squares import PerSampleSquares

logger = logging.getLogger(__name__)

_REMEMBERED = 256

_remembered: dict[Hashable, Findings] = {}


class SelfCheck:
    """Compares two samples, at most once for each computation.

    What is remembered belongs to a key that tells computations apart (see ``layouts.Look``), not to
    a model; and every pass shows for itself which uses of parameters lie in which calls, where the
    samples lie and whether they interact. So only the rules themselves are taken on trust.

    Args:
        model: in eval mode.
        parameters: the trainable ones, by name.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self._model = model
        self._parameters = parameters

    def remembered(self, key: Hashable) -> Findings | None:
        """Return what was found out about a computation before, with any model."""
        return _remembered.get(key)

    def findings(self, key: Hashable, inputs: Samples) -> Findings:
        """Return what two samples show, and remember it; see ``hooked.Check``."""
        two = inputs[:2] if len(inputs) > 1 else inputs[torch.tensor([0, 0])]
        findings = _compare(self._model, self._parameters, two)
        if findings is None:  # numbers that are not finite say nothing
            return Findings(slow=set(self._parameters))
        return remember(_remembered, key, findings, _REMEMBERED)


def unchecked(model: nn.Module) -> Findings:
    """Return what can be said without a check."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return Findings(alone=any(norm.running_mean is None for norm in norms))


def _compare(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], inputs: Samples
) -> Findings | None:
    states = random_states(inputs.device)
    with PerSampleSquares(model, parameters, Findings(), looks=len(inputs) > 1) as squares:
        with random_states_kept(inputs.device):  # both draw the same numbers, if any
            done = squares.add(inputs, lambda outputs: [_cotangent(outputs)])
        alone = _one_by_one(model, parameters, inputs)
        drew = not same_states(states, random_states(inputs.device))
        # here, as what stands in for a module may draw in another order than the module
        apart = drew and len(inputs) > 1 and _draw_otherwise(model, inputs, alone.outputs, states)
    if not all(bool(square.isfinite().all()) for square in alone.squares.values()):
        return None
    tolerance = _tolerance_of(alone.outputs, parameters.values())
    if len(inputs) > 1 and not drew:
        apart = _samples_interact(model, inputs, alone.outputs)
    if done is None or apart:
        of_one = _compare(model, parameters, inputs[:1])
        return None if of_one is None else replace(of_one, alone=True)
    disagreeing = _disagreeing(squares.totals, alone.squares, tolerance)
    if disagreeing:
        logger.warning(
            "Fisher diagonal of %s: closed forms for %s disagree with single samples, which are "
            "used for them",
            type(model).__name__,
            ", ".join(sorted(disagreeing)),
        )
    return Findings(
        slow=disagreeing,
        by_loop=squares.findings.by_loop,
        bytes_per_number=alone.bytes_in_graph / inputs.numel(),
    )


@dataclass
class _Alone:
    """What single samples show.

    Attributes:
        squares: their squared gradients, summed, by parameter.
        outputs: of both samples together.
        bytes_in_graph: what the graph of both kept.
    """

    squares: dict[str, Tensor]
    outputs: Tensor
    bytes_in_graph: int


def _one_by_one(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], inputs: Samples
) -> _Alone:
    """Take the samples' gradients one by one from one forward pass.

    In a forward pass of its own a sample would be rounded otherwise, which can switch a ReLU and
    then changes gradients by more than any tolerance for rounding.
    """
    squares = {n: torch.zeros_like(p, dtype=accumulation_dtype(p)) for n, p in parameters.items()}
    meter = GraphMeter(model)
    with fresh_gradients(parameters.values()), torch.enable_grad():
        with meter.counting():
            outputs = inputs.outputs(model)
        for n, v in enumerate(_cotangent(outputs)):
            if outputs.requires_grad:
                torch.autograd.backward((outputs[n] * v).sum(), retain_graph=True)
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    squares[name] += parameter.grad.to(squares[name].dtype).square()
                    parameter.grad = None
    return _Alone(squares, outputs.detach(), meter.bytes)


def _samples_interact(model: nn.Module, inputs: Samples, outputs: Tensor) -> bool:
    with torch.no_grad():
        alone = torch.cat([one.outputs(model) for one in inputs.chunk(len(inputs))])
    return not close(alone, outputs)


def _draw_otherwise(
    model: nn.Module, inputs: Samples, outputs: Tensor, states: Sequence[Tensor]
) -> bool:
    """Return whether samples alone, with what was drawn for them, have other outputs."""
    alone = []
    try:
        draws = draws_of(model, inputs, outputs, states)
        for number, one in enumerate(inputs.chunk(len(inputs))):
            with torch.no_grad(), nullcontext() if draws is None else draws.of_one(number):
                alone.append(one.outputs(model))
    except (DrawsError, *FAILURES):
        return True
    return not close(torch.cat(alone), outputs)


def _disagreeing(
    got: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float
) -> set[str]:
    # a bias before a normalisation has a gradient of nothing but rounding
    smallest = 1e-6 * max(float(square.norm()) for square in expected.values())
    return {
        name
        for name, square in expected.items()
        if not float((got[name] - square).norm()) <= tolerance * max(float(square.norm()), smallest)
    }


def _tolerance_of(outputs: Tensor, parameters: Iterable[Tensor]) -> float:
    """Return by how much right results may differ: more in half precision."""
    dtypes = {outputs.dtype, *(p.dtype for p in parameters)}
    device = outputs.device.type
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    return max(1e-3, *(16 * torch.finfo(dtype).eps for dtype in dtypes))


def _cotangent(outputs: Tensor) -> Tensor:
    """Return weights that are neither regular nor random, nor small where a loss is."""
    ramp = torch.arange(1, 1 + outputs.numel(), device=outputs.device, dtype=torch.float32)
    return ramp.cos().view(outputs.shape).to(outputs.dtype)
