"""FedCurv in any ClientApp, in three lines (arXiv 1910.07796)."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedcurv.batches import Forward, Targets
from fedcurv.clients.bounded import BoundedHere
from fedcurv.clients.privacy import Accountant, estimated
from fedcurv.clients.reported import reported
from fedcurv.clients.state import Contribution, own_terms, store_for
from fedcurv.clients.telling import once_a_run, tell_of_pull, tell_once
from fedcurv.clients.travelling import require_known, spoken_of, tell_what_stays, withheld
from fedcurv.curvature import Curvature, require_same_shapes, shapes_of
from fedcurv.likelihoods import FisherKind, Likelihood
from fedcurv.parameters import (
    Chosen,
    listed,
    named_like,
    only_these_require_gradients,
    trainable_parameters,
)
from fedcurv.penalty import CurvaturePenalty, PenaltyMode
from fedcurv.strategies.wire.records import Instruction, add_report, client_id_of, take_instruction
from fedcurv.strategies.wire.sums import names_of_arrays
from fedcurv.subset import Number


class ClientCurvature:
    """What the server's message says about curvature, less what this node put into it itself.

    The node's own terms are subtracted only if the server lists the message that the node answered
    then among those whose replies are in the sum. A node that was absent, failed, or was started
    anew without its state subtracts nothing. The terms in the server's latest checkpoint are
    remembered beside the latest, for a server that goes on from there.

    Penalty and report are about the parameters that travel and no others: a layer that stays home
    would be known from its statistics. Those are the trainable parameters whose names are among the
    message's arrays; where the arrays have other names than parameters (adapters, a list of
    arrays), all trainable ones; or those that ``parameters`` chooses. Later rounds are about the
    parameters that the sums hold, also while these are frozen.

    Two numbers for each parameter are held while the node trains: the sums are taken out of the
    message, and the penalty is let go before the Fisher information is estimated.

    Args:
        message: a training message. One without FedCurv's records, from a plain server, makes every
            method do nothing, so that one app serves both.
        context: of the ClientApp; small statistics are remembered in its state.
        model: the model to be trained, with the parameter names under which its arrays travel, and
            on the device where it will be trained.
        parameters: an explicit choice: names, which choose frozen parameters too, or a predicate on
            the names of the trainable ones. The same at all clients.
        mode: attach the penalty, in this mode, to whichever optimizer the training code makes; None
            leaves it to :meth:`attach`.
        state_dir: remember on disk below this folder instead; see ``fedcurv.clients.state``.

    Attributes:
        penalty: the others' pull as a ``CurvaturePenalty``; None while there is none, and again
            after ``report``.

    Raises:
        ValueError: if the server's sums are of parameters that the model does not have, or that
            stay home, or were taken out of this message before; if ``parameters`` does not fit; or
            if another node that lives uses the same client id and state folder.
    """

    def __init__(
        self,
        message: Message,
        context: Context,
        model: nn.Module,
        *,
        parameters: Chosen | None = None,
        mode: PenaltyMode | None = None,
        state_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self._message_id = message.metadata.message_id
        self._context = context
        self._instruction = take_instruction(message.content)
        self._handles: list[RemovableHandle] = []
        self.penalty: CurvaturePenalty | None = None
        if not self.active:
            return
        instruction = self._active_instruction
        if not (parameters is None or callable(parameters) or isinstance(parameters, str)):
            parameters = list(parameters)
        self._chosen = parameters
        model = named_like(model, names_of_arrays(message.content))
        self._shapes = shapes_of(dict(model.named_parameters()))
        self._withheld = withheld(model, names_of_arrays(message.content))
        self._about = spoken_of(model, self._chosen, self._withheld)
        self._bounded = BoundedHere.of(message.content, model)
        self._sums_names: frozenset[str] = frozenset()
        size = sum(p.numel() * p.element_size() for p in trainable_parameters(model).values())
        directory = None if state_dir is None else Path(state_dir)
        self._store = store_for(context, size, directory, instruction)
        if self._chosen is None:
            tell_what_stays(context, model, self._withheld)
        if instruction.sums is not None:
            self._instruction = dataclasses.replace(instruction, sums=None, bounds=None)
            self._require_sums_of_what_travels(instruction.sums)
            self.penalty = self._penalty(model, instruction, instruction.sums)
        if self.penalty is not None:
            self.penalty.tell = once_a_run(context, self.federation, "optimizer")
        if mode is not None:
            self.attach(mode=mode)

    @property
    def active(self) -> bool:
        """Whether the server runs FedCurv with a strength above 0."""
        return self._instruction is not None and self._instruction.strength > 0

    @property
    def federation(self) -> str:
        """The name of the training, as far as the server tells one."""
        return "" if self._instruction is None else self._instruction.federation

    def attach(
        self, optimizer: torch.optim.Optimizer | None = None, *, mode: PenaltyMode = "gradient"
    ) -> RemovableHandle | None:
        """Make every ``optimizer.step()`` feel the penalty; see ``CurvaturePenalty.attach``.

        Args:
            optimizer: of the model's parameters; None for whichever the training code makes.
            mode: ``gradient`` or ``proximal``.

        Returns:
            the handle that ends it, as ``report`` does; None where there is no penalty.
        """
        if self.penalty is None:
            return None
        handle = self.penalty.attach(optimizer, mode=mode)
        self._handles.append(handle)
        return handle

    def report(
        self,
        content: RecordDict,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        forward: Forward | None = None,
        targets: Targets | None = None,
        kind: FisherKind = "empirical",
        likelihood: Likelihood = "categorical",
        generator: torch.Generator | None = None,
        samples: Number = "all",
        private_fisher: tuple[float, float] | None = None,
        accountant: Accountant | None = None,
    ) -> RecordDict:
        """Estimate the Fisher diagonal at the local solution, remember it, add it to the reply.

        It ends the node's training in this round: the penalty is taken off the optimizer.

        Args:
            content: the reply's content. Its ArrayRecord should hold the model as it is now, by
                parameter name; where it does not (a list of arrays, say), F·θ̂ is sent as well.
            model: the trained model.
            batches: the node's own training data, in any form that ``fisher_diagonal`` takes.
            forward: see ``fisher_diagonal``.
            targets: likewise.
            kind: likewise; docs/results.md shows what each kind is worth.
            likelihood: likewise.
            generator: likewise; by default the global random state and the round decide.
            samples: likewise.
            private_fisher: (clip, noise_multiplier) of ``fedcurv.private_fisher``, for clients that
                train by DP-SGD; those of Opacus are refused without it.
            accountant: Opacus', of the training, which counts this release too.

        Returns:
            ``content``, with FedCurv's records added if the server asked for them.

        Raises:
            ValueError: as ``fisher_diagonal`` does, or if the model's parameters have other names
                than those of the model that was given first, as in a wrapper.
        """
        if not self.active:
            return content
        self._end_penalty()
        model = named_like(model, self._shapes)
        names = self._to_report(model, content)
        if not names:
            return content
        with only_these_require_gradients(model, names):
            fisher = estimated(
                model,
                batches,
                private_fisher=private_fisher,
                accountant=accountant,
                forward=forward,
                targets=targets,
                kind=kind,
                likelihood=likelihood,
                generator=generator,
                samples=samples,
                server_round=self._active_instruction.server_round,
            )
        return self.report_fisher(content, model, fisher)

    def report_fisher(
        self, content: RecordDict, model: nn.Module, fisher: Mapping[str, Tensor]
    ) -> RecordDict:
        """Remember a Fisher diagonal that has been estimated elsewhere, and add it to the reply.

        Args:
            content: see :meth:`report`.
            model: the trained model.
            fisher: at the model's parameters, the mean over the node's samples; what it says of
                parameters that stay home is left out.

        Returns:
            ``content``, with FedCurv's records added if the server asked for them.

        Raises:
            ValueError: if it is not of the model's parameters, or not valid.
        """
        if not self.active:
            return content
        self._end_penalty()
        model = named_like(model, self._shapes)
        require_known(self._shapes, fisher, "the model that ClientCurvature got", "the report")
        names = self._to_report(model, content)
        if not names:
            return content
        fisher = {name: one for name, one in fisher.items() if name in names}
        instruction, client_id = self._active_instruction, client_id_of(self._context)
        told = reported(model, fisher, names, instruction, client_id, content, self._bounded)
        add_report(
            content, self._context, told.precision, told.weighted, message_id=self._message_id
        )
        self._store.save(
            Contribution(instruction.server_round, self._message_id, told.curvature),
            instruction.saved_round,
        )
        return content

    def _to_report(self, model: nn.Module, content: RecordDict) -> list[str]:
        """Return the names of the parameters that this round's report is about."""
        names: Iterable[str] = self._sums_names
        if not names:
            stays = self._withheld
            if self._chosen is None:  # the message may have lost its arrays before it came here
                stays |= withheld(model, names_of_arrays(content))
                tell_what_stays(self._context, model, stays)
            names = spoken_of(model, self._chosen, stays) or [
                name for name in self._about if name not in stays
            ]
        own = shapes_of(dict(model.named_parameters()))
        require_known(self._shapes, own, "the model that ClientCurvature got", "the report's model")
        return [name for name in own if name in names]

    def _require_sums_of_what_travels(self, sums: Curvature) -> None:
        """Refuse sums of foreign parameters, or of some that stay home; note whose they are."""
        shapes = shapes_of(sums.precision)
        require_known(self._shapes, shapes, "this client's model", "the server's sums")
        here = {name: self._shapes[name] for name in shapes}
        require_same_shapes(here, shapes, "the model", "the statistics")
        stays = set(self._withheld)
        if callable(self._chosen):
            stays = {name for name in shapes if not self._chosen(name)}
        elif self._chosen is not None:
            stays = shapes.keys() - self._about.keys()
        if stay := [name for name in shapes if name in stays]:
            raise ValueError(
                f"expected statistics of what travels only, got the server's sums of "
                f"{listed(stay)} too, which this client withholds; let all clients choose the same "
                "parameters, and begin with a server that has no earlier sums"
            )
        self._sums_names = frozenset(shapes)
        if new := [name for name in self._about if name not in shapes]:
            tell_once(
                self._context,
                "unknown",
                f"not pulled and not reported, as the first rounds' statistics are without them: "
                f"{', '.join(new)}",
            )

    def _end_penalty(self) -> None:
        if self.penalty is not None:
            attached = bool(self._handles)
            tell_of_pull(self._context, self.federation, self.penalty, attached=attached)
        while self._handles:
            self._handles.pop().remove()
        self.penalty = None

    @property
    def _active_instruction(self) -> Instruction:
        assert self._instruction is not None  # callers asked ``active``
        return self._instruction

    def _penalty(
        self, model: nn.Module, instruction: Instruction, sums: Curvature
    ) -> CurvaturePenalty | None:
        """Return the pull of the sums without this node's own terms; None if nothing remains."""
        bounded = self._bounded
        own = own_terms(self._store, instruction, sums, noised=bounded is not None)
        if own is not None and len(instruction.contributors) == 1:
            return None
        if own is not None and bounded is not None:
            sums = bounded.rest(sums, own)
        elif own is not None:
            bounds = instruction.bounds
            sums = sums - own if bounds is None else sums.without(own, bounds.least)
        sums = sums.to(torch.float32)  # those of a secure sum are exact, in float64
        return CurvaturePenalty(
            model,
            sums,
            strength=instruction.strength,
            parameters=self._sums_names,
            consume=own is not None,
        )
