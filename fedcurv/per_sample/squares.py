"""Sums over samples of squared per-sample gradients of a whole model.

One batched forward pass, and one backward pass for each cotangent of the outputs, in which hooks
apply the closed forms of ``rules``; gradients of single samples are not kept. Parameters of
other modules go by ``torch.func.vmap`` over that module, and what no module shows rightly
(functional use, parameters of the model itself) by vmap over the whole model; where vmap fails, one
sample is taken at a time.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from fedcurv.global_state import random_state, random_states_kept
from fedcurv.per_sample.added import Sum, add_sums, additions_of, sums_of
from fedcurv.per_sample.findings import Findings
from fedcurv.per_sample.graph import Edge, Graph, backward
from fedcurv.per_sample.hooked import Check, HookedModel, OtherRowsError, require_rows
from fedcurv.per_sample.layers import ClosedFormLayer, Layer, ReplayedLayer
from fedcurv.per_sample.layouts import Layout, Look, agree, key_of, layout_of
from fedcurv.per_sample.replay import Call, close
from fedcurv.per_sample.samples import Samples, WholeModel
from fedcurv.per_sample.sharing import shared_by
from fedcurv.per_sample.sums import Use, add_squares_of_sums
from fedcurv.per_sample.surroundings import buffers_kept
from fedcurv.per_sample.watched import Watched, axes_by_comparison, axes_by_size

logger = logging.getLogger(__name__)

# from outputs to the cotangents to sum over, each in the outputs' shape
CotangentsOf = Callable[[Tensor], Sequence[Tensor]]


# how often a sample is run to see whether a model goes the same way each time
_LOOKS = 3


class PerSampleSquares(HookedModel):
    """Sums Σ_n (∂⟨f(x_n), v_n⟩/∂p)² for every parameter p, with v a cotangent of the outputs.

    Built and entered as ``HookedModel`` is.
    """

    def begin(self, inputs: Samples) -> None:
        """Look at one sample of the first batch, and have the computation checked if it is new."""
        if not self._looks:
            return
        self._first_look = self._look_at(inputs)
        if len(inputs) > 1:
            self._follow(inputs)

    def _follow(self, inputs: Samples) -> None:
        """Follow the first batch of several samples, of which one may decide for another."""
        self._followed = True
        with buffers_kept(self._model), random_states_kept(inputs.device):
            shares = shared_by(self._model, inputs)
            if shares is not None:
                with torch.no_grad():
                    require_rows(inputs.outputs(self._model), inputs)
        if shares is not None:
            self._interact(
                f"the model's forward makes one value of a whole batch, or reads values "
                f"({shares}), by which samples may decide for one another"
            )

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
        samples = len(inputs)
        if samples > 1 and self.findings.alone:
            return None
        # a model that draws random numbers must draw them once more where it is run once more
        state = torch.get_rng_state() if samples == 1 else None
        try:
            outputs, calls, graph = self._forward(inputs)
            require_rows(outputs, inputs)
            # what has no trace in the graph may depend on how many samples there are
            key = graph.signature, samples
            layout = self._layouts.get(key)
            if layout is None or (layout.ambiguous and samples > 1):
                layout = self._layout_of(inputs, outputs, calls, graph)
                self._first_look = None
                if layout is None:
                    self._interact()
                    return None
                self._layouts[key] = layout
            ends = graph.tops(layout.ends)
            sums = sums_of(layout.added, graph.node)
            del graph
            cotangents = cotangents_of(outputs.detach())
            self.begun += 1
            if layout.whole and not self._add_by_whole(
                inputs, outputs, cotangents, layout.whole, state
            ):
                self._interact()
                return None
            self._add_by_layers(inputs, outputs, cotangents, layout, calls, ends, sums, state)
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
        state: Tensor | None,
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
                add_sums(self.totals, sums, backward(outputs, v, to, retain_graph=retain))
            failed: set[str] = set()
            with self._run_once_more() if replayed else nullcontext():
                for layer, call in replayed:
                    if not layer.add_squares(call):
                        failed |= {name for name, _ in layer.sources.values()}
            if layout.waits:
                self._add_what_waited()
            if failed and not self._add_by_whole(inputs, outputs, [v], failed, state):
                raise ValueError(
                    f"{type(self._model).__name__} computes something else when the same batch is "
                    f"run once more, as {', '.join(sorted(failed))} need; give batches of one "
                    "sample"
                )
        for summing in self._rule_layers:
            summing.add_summed()
        if replayed or layout.whole:
            self._tell_of(layout, replayed)

    def _look_at(self, inputs: Samples) -> Look:
        """Run one sample, the second: of samples that are summed up so far the first is right."""
        one = inputs[1:2] if len(inputs) > 1 else inputs
        with buffers_kept(self._model), random_states_kept(one.device):
            before = random_state(one.device)
            outputs, calls, graph = self._forward(one)
            self._draws = self._draws or not torch.equal(before, random_state(one.device))
        key, uses = key_of(self._model, calls, graph), graph.uses()
        look = Look(key, outputs.detach(), calls, uses, graph.shapes(uses.places))
        self._have_checked(look.key, inputs)
        return look

    def _require_repeatable(self, inputs: Samples) -> None:
        """Refuse a model that goes other ways from call to call."""
        looks = [self._look_at(inputs) for _ in range(_LOOKS)]
        if any(
            look.key != looks[0].key or not close(look.outputs, looks[0].outputs) for look in looks
        ):
            raise ValueError(
                f"{type(self._model).__name__} computes something else when the same sample is run "
                "once more; make it depend on its inputs alone in eval mode"
            )

    def _have_checked(self, key: Hashable, inputs: Samples) -> None:
        if self._check is None or key in self._checked:
            return
        self._checked.add(key)
        if (found := self._check.remembered(key)) is None:
            found = self._checked_now(self._check, key, inputs)
        self.findings.slow |= found.slow
        self.findings.by_loop |= found.by_loop
        if found.alone:
            self._interact()
        self.findings.bytes_per_number = found.bytes_per_number or self.findings.bytes_per_number

    def _checked_now(self, check: Check, key: Hashable, inputs: Samples) -> Findings:
        self.__exit__()  # the check hooks the model itself
        try:
            with buffers_kept(self._model), random_states_kept(inputs.device):
                return check.findings(key, inputs)
        except OtherRowsError:
            return Findings()  # the batch's own pass tells of it, with its shapes
        finally:
            self.__enter__()

    def _layout_of(
        self, inputs: Samples, outputs: Tensor, calls: list[Watched], graph: Graph
    ) -> Layout | None:
        """Return how to take a pass's squares; None if its samples interact."""
        samples, uses, sums = len(inputs), graph.uses(), None
        self.last_operation = graph.last_operation()
        if self._looks and samples > 1:
            if not self._followed:
                self._follow(inputs)
            look = self._first_look or self._look_at(inputs)
            if self.findings.alone:
                return None
            if not agree(outputs, calls, uses, look):
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
        added = additions_of(uses.added, shapes, sums, self._parameters, samples)
        return layout_of(calls, axes, uses, self.findings.slow, samples, added)

    def _add_by_whole(
        self,
        inputs: Samples,
        outputs: Tensor,
        cotangents: Sequence[Tensor],
        names: Iterable[str],
        state: Tensor | None,
    ) -> bool:
        """Add squares by running the model again; return whether it gave the same outputs."""
        squares = {name: torch.zeros_like(self.totals[name]) for name in names}
        inside = {f"{WholeModel.PREFIX}{name}": square for name, square in squares.items()}
        axes = (None, *(0 for _ in inputs.tensors))
        for v in cotangents:
            args = (inputs.run, *inputs.tensors)
            call = Call(args, {}, [v], (axes, {}, [0]), outputs.detach(), state)
            with self._run_once_more():
                met = self._whole.add_squares(call, inside)
            if not met:
                return False
        for name, square in squares.items():
            self.totals[name].add_(square)
        return True

    def _interact(self, why: str = "outputs depend on what else is in a batch") -> None:
        if self._draws:
            why = "the forward pass draws random numbers, and the information is that of one draw"
        if self.findings.alone:
            return
        self.findings.alone = True
        if self._check is None and self._looks:
            return  # within a check, whose findings are told of
        logger.warning(
            "Fisher diagonal of %s: %s, so each sample is one of its own",
            type(self._model).__name__,
            why,
        )

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
