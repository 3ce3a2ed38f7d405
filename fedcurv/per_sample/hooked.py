"""A model that is hooked, and its forward passes."""

from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from fedcurv.per_sample.findings import Findings
from fedcurv.per_sample.graph import Graph, leaves_of
from fedcurv.per_sample.layers import ClosedFormLayer, Pass, Phase, layers_of
from fedcurv.per_sample.layouts import Layout, Look
from fedcurv.per_sample.memory import keep_freed_memory
from fedcurv.per_sample.replay import Replay
from fedcurv.per_sample.rules.registry import LayerRule
from fedcurv.per_sample.samples import Samples, WholeModel
from fedcurv.per_sample.stand_ins import stand_ins_for
from fedcurv.per_sample.surroundings import (
    no_memory_of_casts,
    plain_attention,
    requiring_gradients,
    unchecked_distributions,
)
from fedcurv.per_sample.watched import Watched
from fedcurv.per_sample.ways import Ways


class Check(Protocol):
    """A comparison with single samples, remembered by computation."""

    def remembered(self, key: Hashable) -> Findings | None:
        """Return what was found out about a computation before."""

    def findings(self, key: Hashable, inputs: Samples) -> Findings:
        """Return what inputs for it show; the model is not hooked meanwhile."""


class OtherRowsError(ValueError):
    """A model has returned fewer or more rows than it was given samples."""


class HookedModel:
    """What the sums over a model's passes are taken with.

    A context manager: inside the model is hooked.

    Args:
        model: in eval mode.
        parameters: the trainable ones, by name.
        findings: what is known to begin with.
        looks: whether a single sample shows where the samples lie and whether they interact.
        check: asked about every computation that was not seen before; None: nobody is.

    Attributes:
        totals: the sums, by name.
        findings: what is known by now.
        begun: how many times the sums have begun to be added to.
        last_operation: what computed the outputs of the last new computation; see ``Graph``.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        findings: Findings,
        *,
        looks: bool = True,
        check: Check | None = None,
    ) -> None:
        self._model = model
        self._parameters = dict(parameters)
        self.findings = findings
        self._looks = looks
        self._check = check
        self._stand_ins = stand_ins_for(model)
        self._layers = layers_of(model, parameters, self._stand_ins, findings.by_loop)
        self._rule_layers = [layer for layer in self._layers if isinstance(layer, ClosedFormLayer)]
        whole = {f"{WholeModel.PREFIX}{name}": p for name, p in parameters.items()}
        kind = type(model).__name__
        self._whole = Replay("", WholeModel(model), whole, findings.by_loop, kind=kind)
        self._told: set[str] = set()
        self._pass = Pass()
        self._stack = ExitStack()
        self._layouts: dict[Hashable, Layout] = {}
        self._checked: set[Hashable] = set()
        self._first_look: Look | None = None
        self._followed = check is None  # within a check, too
        self._draws = False  # random numbers
        self._ways: Ways | None = None  # None if samples do not interact, or have to be apart
        self._told_that_alone = False
        self.last_operation = ""
        self.begun = 0
        rules = {
            name: layer.rule for layer in self._rule_layers for name, _ in layer.sources.values()
        }
        self.totals = {
            name: rules.get(name, LayerRule()).new_total(p) for name, p in parameters.items()
        }
        for layer in self._layers:
            layer.totals = {
                local: self.totals[name][rows] for local, (name, rows) in layer.sources.items()
            }
        self._leaves = leaves_of(parameters)

    def __enter__(self) -> Self:
        """Prepare the model."""
        keep_freed_memory()
        with ExitStack() as stack:
            stack.enter_context(requiring_gradients(list(self._parameters.values())))
            stack.enter_context(plain_attention())
            stack.enter_context(no_memory_of_casts())
            stack.enter_context(unchecked_distributions())
            for stand_in in self._stand_ins.values():
                stack.enter_context(stand_in.in_place())
            for layer in self._layers:
                stack.callback(layer.hook(self._pass).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the model as it was."""
        self._stack.close()

    def _run_once_more(self) -> ExitStack:
        """Return a context in which modules are run as ``torch.func.vmap`` can."""
        stack = ExitStack()
        for stand_in in self._stand_ins.values():
            if not stand_in.under_vmap:
                stack.enter_context(stand_in.aside())
        return stack

    def _forward(
        self, inputs: Samples, around: AbstractContextManager[object] | None = None
    ) -> tuple[Tensor, list[Watched], Graph]:
        self._pass.calls, self._pass.spans, self._pass.phase = [], [], Phase.FORWARD
        try:
            with torch.enable_grad(), around or nullcontext():
                outputs = inputs.outputs(self._model)
        finally:
            self._pass.phase = Phase.NOTHING
        return outputs, self._pass.calls, Graph(outputs, self._leaves, self._pass.spans)


def require_rows(outputs: Tensor, inputs: Samples) -> None:
    """Refuse outputs with fewer or more rows than there are samples: which are whose?"""
    if not outputs.ndim or len(outputs) != len(inputs):
        raise OtherRowsError(
            f"expected outputs with a row for each of {len(inputs)} samples, got outputs "
            f"{tuple(outputs.shape)} for inputs {inputs.described()}; let the model return the "
            "outputs of every sample along the first axis, all that belongs to a sample in its "
            "row, and leave samples out of the batches instead"
        )
