"""FedCurv in any ClientApp, in three lines (arXiv 1910.07796)."""

import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from flwr.app import Context, Message, RecordDict
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedcurv.clients.state import Contribution, store_for
from fedcurv.curvature import Curvature, shapes_of
from fedcurv.fisher import fisher_diagonal
from fedcurv.likelihoods import FisherKind, Likelihood
from fedcurv.parameters import trainable_parameters
from fedcurv.penalty import CurvaturePenalty, PenaltyMode
from fedcurv.strategies.records import Instruction, add_report, take_instruction

logger = logging.getLogger(__name__)


class ClientCurvature:
    """What the server's message says about curvature, less what this node put into it itself.

    The node's own terms are subtracted only if the server lists the message that the node answered
    last among those whose replies are in the sum. A node that was absent, failed, or was started
    anew without its state subtracts nothing.

    Two numbers for each parameter are held while the node trains: the sums are taken out of the
    message, and the penalty is let go before the Fisher information is estimated.

    Args:
        message: a training message. One without FedCurv's records, from a plain server, makes every
            method do nothing, so that one app serves both.
        context: of the ClientApp; small statistics are remembered in its state.
        model: the model to be trained, with the parameter names under which its arrays travel, and
            on the device where it will be trained.
        mode: attach the penalty, in this mode, to whichever optimizer the training code makes; None
            leaves it to :meth:`attach`.
        state_dir: remember on disk below this folder instead; see ``fedcurv.clients.state``.

    Attributes:
        penalty: the others' pull as a ``CurvaturePenalty``; None while there is none, and again
            after ``report``.

    Raises:
        ValueError: if the server's sums are for other parameters than the model's, or were taken
            out of this message before.
    """

    def __init__(
        self,
        message: Message,
        context: Context,
        model: nn.Module,
        *,
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
        size = sum(p.numel() * p.element_size() for p in trainable_parameters(model).values())
        directory = None if state_dir is None else Path(state_dir)
        self._store = store_for(context, size, directory, instruction.federation)
        if instruction.sums is not None:
            self._instruction = dataclasses.replace(instruction, sums=None)
            self.penalty = self._penalty(model, instruction, instruction.sums)
        if mode is not None:
            self.attach(mode=mode)

    @property
    def active(self) -> bool:
        """Whether the server runs FedCurv with a strength above 0."""
        return self._instruction is not None and self._instruction.strength > 0

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
        batches: Iterable[tuple[Tensor, Tensor]],
        *,
        kind: FisherKind = "empirical",
        likelihood: Likelihood = "categorical",
        generator: torch.Generator | None = None,
    ) -> RecordDict:
        """Estimate the Fisher diagonal at the local solution, remember it, add it to the reply.

        It ends the node's training in this round: the penalty is taken off the optimizer.

        Args:
            content: the reply's content. Its ArrayRecord should hold the model as it is now, by
                parameter name; where it does not (a list of arrays, say), F·θ̂ is sent as well.
            model: the trained model.
            batches: the node's own training data, (inputs, targets).
            kind: see ``fisher_diagonal``; docs/results.md shows what each kind is worth.
            likelihood: see ``fisher_diagonal``.
            generator: see ``fisher_diagonal``.

        Returns:
            ``content``, with FedCurv's records added if the server asked for them.

        Raises:
            ValueError: as ``fisher_diagonal`` does.
        """
        if not self.active:
            return content
        self._end_penalty()
        fisher = fisher_diagonal(
            model, batches, kind=kind, likelihood=likelihood, generator=generator
        )
        return self.report_fisher(content, model, fisher)

    def report_fisher(
        self, content: RecordDict, model: nn.Module, fisher: Mapping[str, Tensor]
    ) -> RecordDict:
        """Remember a Fisher diagonal that has been estimated elsewhere, and add it to the reply.

        Args:
            content: see :meth:`report`.
            model: the trained model.
            fisher: at the model's parameters, the mean over the node's samples.

        Returns:
            ``content``, with FedCurv's records added if the server asked for them.

        Raises:
            ValueError: if it is not of the model's parameters, or not valid.
        """
        if not self.active:
            return content
        self._end_penalty()
        # what is remembered must be what is sent: else a difference of sums could become negative
        curvature = Curvature.at(model, fisher).to(torch.float32)
        instruction = self._active_instruction
        sent = {name for record in content.array_records.values() for name in record}
        server_can_multiply = sent >= curvature.precision.keys()
        add_report(
            content,
            self._context,
            curvature,
            message_id=self._message_id,
            with_information=instruction.secure_sums or not server_can_multiply,
        )
        self._store.save(Contribution(instruction.server_round, self._message_id, curvature))
        return content

    def _end_penalty(self) -> None:
        if self._handles and self.penalty is not None and not self.penalty.found_optimizer:
            logger.warning(
                "the penalty was attached, but no optimizer stepped with the model's parameters: "
                "was another model trained, or a copy of this one?"
            )
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
        own = self._own_terms(instruction, sums)
        if own is None:
            return CurvaturePenalty(model, sums, strength=instruction.strength)
        if len(instruction.contributors) == 1:
            return None
        return CurvaturePenalty(model, sums - own, strength=instruction.strength, consume=True)

    def _own_terms(self, instruction: Instruction, sums: Curvature) -> Curvature | None:
        """Return this node's own terms if they are in the sums."""
        own = self._store.load()
        if own is None or own.server_round != instruction.sums_round:
            return None
        if own.message_id not in instruction.contributors:
            logger.info("the reply of round %d is not in the sum", own.server_round)
            return None
        if shapes_of(own.curvature.precision) != shapes_of(sums.precision):
            logger.warning("own statistics are of another model and count as absent")
            return None
        return own.curvature
