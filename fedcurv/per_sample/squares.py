"""Sums over samples of squared per-sample gradients of a whole model.

One batched forward pass, and one backward pass for each cotangent of the outputs, in which hooks
apply the closed forms of ``rules``; gradients of single samples are not kept. Parameters of
other modules go by ``torch.func.vmap`` over that module, and what no module shows rightly
(functional use, parameters of the model itself) by vmap over the whole model; where vmap fails, one
sample is taken at a time.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from fedcurv.global_state import random_states
from fedcurv.per_sample.added import Operand, Sum, add_sums, additions_of, shape_of_operand, sums_of
from fedcurv.per_sample.draws import Draws, DrawsError
from fedcurv.per_sample.following import Reading
from fedcurv.per_sample.graph import Edge, Graph, backward
from fedcurv.per_sample.hooked import require_rows
from fedcurv.per_sample.layers import ClosedFormLayer, Layer, ReplayedLayer
from fedcurv.per_sample.layouts import Layout, Look, agree, key_of, layout_of
from fedcurv.per_sample.looks import LookedAtModel
from fedcurv.per_sample.replay import Call
from fedcurv.per_sample.samples import FAILURES, Samples, WholeModel
from fedcurv.per_sample.sums import Use, add_squares_of_sums
from fedcurv.per_sample.watched import Watched, axes_by_comparison, axes_by_size
from fedcurv.per_sample.ways import Way

logger = logging.getLogger(__name__)

# from outputs to the cotangents to sum over, each in the outputs' shape
CotangentsOf = Callable[[Tensor], Sequence[Tensor]]
# likewise, from the outputs of some samples of a batch and their rows in it
CotangentsOfRows = Callable[[Tensor, Tensor], Sequence[Tensor]]


class PerSampleSquares(LookedAtModel):
    """Sums Σ_n (∂⟨f(x_n), v_n⟩/∂p)² for every parameter p, with v a cotangent of the outputs.

    Built and entered as ``HookedModel`` is.
    """

    def add(self, inputs: Samples, cotangents_of: CotangentsOf) -> Sequence[Tensor] | None:
        """Add the sums over a batch and return the cotangents.

        Args:
            inputs: of N samples.
            cotangents_of: gives the cotangents to sum over.

        Returns:
            the cotangents; None, with nothing added, if the samples interact, so that each must be
            a batch of its own.

        Raises:
            ValueError: if the model returns anything but one tensor, or something else each time.
        """
        if len(inputs) > 1 and self.findings.alone:
            return None
        cotangents = self._add(inputs, cotangents_of)
        if cotangents is None and self._ways is None:
            self._interact()
        return cotangents

    def add_apart(
        self, inputs: Samples, cotangents_of: CotangentsOfRows
    ) -> Iterator[tuple[Tensor, Sequence[Tensor]]]:
        """Add the sums over a batch whose samples interact, and yield rows and their cotangents.

        Args:
            inputs: of N samples, for which ``add`` has returned None.
            cotangents_of: gives the cotangents to sum over.

        Raises:
            ValueError: as ``add``; also if a sample alone has other outputs when run once more.
        """
        everyone = torch.arange(len(inputs), device=inputs.device)
        parts = [(everyone, None)] if self._ways is None else self._ways.split(inputs)
        for rows, way in parts:
            if way is not None:
                of_rows = _of_rows(cotangents_of, rows)
                if (cotangents := self._add(inputs[rows], of_rows, way)) is not None:
                    yield rows, cotangents
                    continue
                way.at_once = False
            if len(rows) > 1:
                self._tell_that_alone(
                    "the model's forward reads values of a whole batch, which differ from those of "
                    "a sample alone"
                )
            for row in torch.split(rows, 1):
                cotangents = self._add(inputs[row], _of_rows(cotangents_of, row))
                if cotangents is None:
                    raise ValueError(
                        f"{type(self._model).__name__} computes something else when the same "
                        "sample is run once more; make it depend on its inputs alone in eval mode"
                    )
                yield row, cotangents

    def _add(
        self, inputs: Samples, cotangents_of: CotangentsOf, way: Way | None = None
    ) -> Sequence[Tensor] | None:
        """Add the sums over samples that do not interact; None if they do.

        Args:
            inputs: of N samples.
            cotangents_of: gives the cotangents to sum over.
            way: that the samples go alone, if the model reads values.
        """
        samples = len(inputs)
        # a model that draws random numbers has to get them again where it is run once more
        states = random_states(inputs.device)
        reading = None if way is None else Reading()
        try:
            outputs, calls, graph = self._forward(inputs, reading)
            require_rows(outputs, inputs)
            if way is not None and reading is not None and not way.meets(reading.reads):
                return None
            # what has no trace in the graph may depend on how many samples there are
            key = graph.signature, samples, way
            layout = self._layouts.get(key)
            if layout is None or (layout.ambiguous and samples > 1):
                layout = self._layout_of(inputs, outputs, calls, graph, states, way)
                self._first_look = None
                if layout is None:
                    return None
                self._layouts[key] = layout
            ends = graph.tops(layout.ends)
            sums = sums_of(layout.added, graph.node, self._parameters)
            del graph
            cotangents = cotangents_of(outputs.detach())
            self.begun += 1
            if layout.whole and not self._add_by_whole(
                inputs, outputs, cotangents, layout.whole, states
            ):
                return None
            self._add_by_layers(inputs, outputs, cotangents, layout, calls, ends, sums, states)
        finally:
            for layer in self._rule_layers:
                layer.reset()
            self._pass.calls, self._pass.spans = [], []
        return cotangents

    def _add_by_layers(
        self,
        inputs: Samples,
        outputs: Tensor,
        cotangents: Sequence[Tensor],
        layout: Layout,
        calls: Sequence[Watched],
        ends: Sequence[Edge],
        sums: Sequence[Sum],
        states: Sequence[Tensor],
    ) -> None:
        to = [*((one.node, 0) for one in sums), *ends]
        for call, axes, names in zip(calls, layout.axes, layout.names, strict=True):
            if isinstance(call.layer, ClosedFormLayer) and not names:
                call.args = ()
            call.axes, call.names = axes, names
        self._pass.cotangents, self._pass.waits = len(cotangents), layout.waits
        replayed = [(call.layer, call) for call in calls if isinstance(call.layer, ReplayedLayer)]
        for number, v in enumerate(cotangents):
            for _, call in replayed:
                call.gradients[:] = [None] * len(call.gradients)  # the list that hooks fill
            self._pass.last = number + 1 == len(cotangents)
            if to:
                retain = not self._pass.last
                gradients = backward(outputs, v, to, retain_graph=retain)
                add_sums(self.totals, sums, gradients, self._parameters)
            failed: set[str] = set()
            with self._run_once_more() if replayed else nullcontext():
                for layer, call in replayed:
                    if not layer.add_squares(call):
                        failed |= {name for name, _ in layer.sources.values()}
            if layout.waits:
                self._add_what_waited()
            if failed and not self._add_by_whole(inputs, outputs, [v], failed, states):
                raise ValueError(
                    f"{type(self._model).__name__} computes something else when the same batch is "
                    f"run once more, as {', '.join(sorted(failed))} need; give batches of one "
                    "sample"
                )
        for summing in self._rule_layers:
            summing.add_summed()
        if replayed or layout.whole:
            self._tell_of(layout, replayed)

    def _layout_of(
        self,
        inputs: Samples,
        outputs: Tensor,
        calls: list[Watched],
        graph: Graph,
        states: Sequence[Tensor],
        way: Way | None,
    ) -> Layout | None:
        """Return how to take a pass's squares; None if its samples interact."""
        samples, uses, sums = len(inputs), graph.uses(), None
        self.last_operation = graph.last_operation()
        try:
            draws, drawing = self._draws_of(inputs, outputs, states)
        except DrawsError:
            return None
        if draws is not None and samples > 1 and graph.hides():
            return None  # what a checkpoint runs once more would draw other numbers
        if self._looks and samples > 1:
            if not self._followed:
                self._follow(inputs)
            look = self._look_for(inputs, draws, way)
            if look is None or (self.findings.alone and (way is None or self._ways is None)):
                return None
            if not agree(outputs, calls, uses, look):
                if draws is None:
                    self._require_repeatable(inputs)
                return None
            sums = look.sums if uses.added == look.uses.added else {}
            axes = [
                axes_by_comparison(call, alone, samples)
                for call, alone in zip(calls, look.calls, strict=True)
            ]
        else:
            axes = [axes_by_size(call, samples) for call in calls]
            if self._looks:
                self._have_checked(key_of(self._model, calls, graph), inputs)
        if graph.hides():
            self.findings.by_loop.add("")
            return Layout(
                axes, [frozenset()] * len(calls), frozenset(self._parameters), set(), (), False
            )
        shapes = graph.shapes(uses.places)
        added = additions_of(uses.added, shapes, sums, self._shape_in(graph), samples)
        slow = self.findings.slow | drawing
        return layout_of(calls, axes, uses, slow, samples, added)

    def _look_for(self, inputs: Samples, draws: Draws | None, way: Way | None) -> Look | None:
        """Return a look at one of these samples; None if it cannot get what was drawn for it."""
        look = self._first_look
        if draws is None:
            fits = look is not None and look.is_of(inputs)  # the first batch may have been joined
            return look if fits else self._look_at(inputs)
        try:
            return self._look_at(inputs, draws)
        except (DrawsError, *FAILURES):
            return None

    def _shape_in(self, graph: Graph) -> Callable[[str, Operand], Sequence[int]]:
        def shape(name: str, operand: Operand) -> Sequence[int]:
            return shape_of_operand(graph.node(operand[0]), operand[1], self._parameters[name])

        return shape

    def _add_by_whole(
        self,
        inputs: Samples,
        outputs: Tensor,
        cotangents: Sequence[Tensor],
        names: Iterable[str],
        states: Sequence[Tensor],
    ) -> bool:
        """Add squares by running the model again; return whether it gave the same outputs."""
        try:
            draws, _ = self._draws_of(inputs, outputs, states)
        except DrawsError:
            return False
        squares = {name: torch.zeros_like(self.totals[name]) for name in names}
        inside = {f"{WholeModel.PREFIX}{name}": square for name, square in squares.items()}
        axes = (None, *(0 for _ in inputs.tensors))
        for v in cotangents:
            args = (inputs.run, *inputs.tensors)
            call = Call(args, {}, [v], (axes, {}, [0]), outputs.detach(), draws)
            with self._run_once_more():
                met = self._whole.add_squares(call, inside)
            if not met:
                return False
        for name, square in squares.items():
            self.totals[name].add_(square)
        return True

    @torch.no_grad()
    def _add_what_waited(self) -> None:
        """Add what could not be added before all uses of a parameter were known."""
        uses: dict[tuple[str, int | None], list[Use]] = defaultdict(list)
        for layer in self._rule_layers:
            for names, x, g in layer.waiting:
                for local in names:
                    name, rows = layer.sources[local]
                    uses[name, rows.start].append(Use(layer, local, x, g))
            layer.waiting.clear()
        for several in uses.values():
            add_squares_of_sums(several)

    def _tell_of(self, layout: Layout, replayed: Sequence[tuple[Layer, Watched]]) -> None:
        modules = {layer.name for layer, call in replayed if call.names}
        modules |= {name.rpartition(".")[0] or name for name in layout.whole}
        if (new := modules - self._told) and (self._check is not None or not self._looks):
            self._told |= new
            logger.info(
                "Fisher diagonal of %s: no closed form for %s; single samples are run through %s",
                type(self._model).__name__,
                ", ".join(sorted(new)),
                "the whole model" if layout.whole else "these modules",
            )


def _of_rows(cotangents_of: CotangentsOfRows, rows: Tensor) -> CotangentsOf:
    return lambda outputs: cotangents_of(outputs, rows)
