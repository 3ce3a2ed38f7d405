"""What is found out about a model's computations before squares are taken.

A single sample shows where samples lie and whether they interact; a few that are followed show
whether they decide for one another; and a check compares the rules with single samples.
"""

import logging
from collections.abc import Hashable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from fedcurv.global_state import random_states, random_states_kept, same_states
from fedcurv.per_sample.draws import Draws, draws_of
from fedcurv.per_sample.findings import Findings
from fedcurv.per_sample.hooked import Check, HookedModel, OtherRowsError, require_rows
from fedcurv.per_sample.layers import ReplayedLayer
from fedcurv.per_sample.layouts import Look, key_of
from fedcurv.per_sample.rounding import close
from fedcurv.per_sample.samples import Samples
from fedcurv.per_sample.sharing import followed
from fedcurv.per_sample.surroundings import buffers_kept
from fedcurv.per_sample.ways import Ways

logger = logging.getLogger(__name__)

# how often a sample is run to see whether a model goes the same way each time
_LOOKS = 3


class LookedAtModel(HookedModel):
    """A hooked model whose computations are looked at as they come."""

    def begin(self, inputs: Samples) -> None:
        """Look at one sample of the first batch, and have the computation checked if it is new."""
        if not self._looks:
            return
        if len(inputs) > 1:
            self._follow(inputs)
        if self._ways is None:
            self._first_look = self._look_at(inputs)
        else:
            rows, _ = next(self._ways.split(inputs))
            self._first_look = self._look_at(inputs[rows])

    def _follow(self, inputs: Samples) -> None:
        """Follow the first batch of several samples, of which one may decide for another."""
        self._followed = True
        with buffers_kept(self._model), random_states_kept(inputs.device):
            before = random_states(inputs.device)
            found = followed(self._model, inputs)
            draws = not same_states(before, random_states(inputs.device))
            if draws:
                self._tell_of_draws()
            if found is None or (found.shares is None and not found.reads):
                return
            if found.shares is not None:
                with torch.no_grad():
                    require_rows(inputs.outputs(self._model), inputs)
        if found.shares is not None or draws:  # which may decide what was read
            self._interact(
                f"the model's forward makes one value of a whole batch, or reads values "
                f"({found.shares}), by which samples may decide for one another"
            )
        elif any(read.followed for read in found.reads):
            self.findings.alone, self._ways = True, Ways(self._model)

    def _look_at(self, inputs: Samples, draws: Draws | None = None) -> Look:
        """Run one sample, the second: of samples that are summed up so far the first is right.

        Args:
            inputs: of N samples.
            draws: what a pass over them drew, if N > 1.

        Raises:
            DrawsError: if the sample draws otherwise.
        """
        one = inputs[1:2] if len(inputs) > 1 else inputs
        around = None if draws is None else draws.of_one(1)
        with buffers_kept(self._model), random_states_kept(one.device):
            outputs, calls, graph = self._forward(one, around)
        key, uses = key_of(self._model, calls, graph), graph.uses()
        look = Look(key, one, outputs.detach(), calls, uses, graph.shapes(uses.places))
        self._have_checked(look.key, inputs)
        return look

    def _draws_of(
        self, inputs: Samples, outputs: Tensor, states: Sequence[Tensor]
    ) -> tuple[Draws | None, set[str]]:
        """Return what a pass drew, and the parameters of modules to be run once more that did.

        Raises:
            DrawsError: see ``draws_of``.
        """
        if same_states(states, random_states(inputs.device)):
            return None, set()
        self._tell_of_draws()
        inside: set[str] = set()
        with ExitStack() as stack:
            for layer in self._layers:
                if isinstance(layer, ReplayedLayer):
                    stack.enter_context(layer.noting_draws(inside))
            draws = draws_of(self._model, inputs, outputs, states)
        return draws, inside

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

    def _interact(self, why: str = "outputs depend on what else is in a batch") -> None:
        if self._draws:
            why = "what the forward pass draws cannot be told apart by sample"
        if self.findings.alone and self._ways is None:
            return
        self.findings.alone, self._ways = True, None
        if self._check is None and self._looks:
            return  # within a check, whose findings are told of
        self._tell_that_alone(why)

    def _tell_of_draws(self) -> None:
        if not self._draws and self._check is not None:
            logger.warning(
                "Fisher diagonal of %s: the forward pass draws random numbers, and the information "
                "is that of one draw",
                type(self._model).__name__,
            )
        self._draws = True

    def _tell_that_alone(self, why: str) -> None:
        if not self._told_that_alone:
            self._told_that_alone = True
            logger.warning(
                "Fisher diagonal of %s: %s, so each sample is one of its own",
                type(self._model).__name__,
                why,
            )
