"""A Grid that trains a round's clients together, by few large operations for many small ones."""

import copy
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from flwr.app import Message, MessageType
from flwr.clientapp import ClientApp

from fedcurv.clients.local_round import LocalRound, MakeTask, begin_round
from fedcurv.global_state import num_threads
from fedcurv.simulations.console.telling import tell_once
from fedcurv.simulations.runners.batched.batches import StackedSamples, stacked_choice
from fedcurv.simulations.runners.batched.fisher import OWN_KINDS, can_be_estimated, fisher_stacked
from fedcurv.simulations.runners.batched.stacked import (
    same_kind,
    stacked_parameters,
    train_stacked,
    why_not_stacked,
    why_terms_not_stacked,
)
from fedcurv.simulations.runners.local import LocalGrid
from fedcurv.strategies.wire.secure.stages import SECURE

# on a CPU the weights of so many clients stay in a core's cache
_CLIENTS_ON_CPU = 8


class BatchedGrid(LocalGrid):
    """Trains stacks of clients side by side, where the model allows it; see ``stacked``.

    What cannot be stacked (other models, optimizers, losses and terms) is trained as LocalGrid
    does, and that is told once. On a GPU all clients of a round are one stack; on a CPU the stacks
    are small, and each core takes one after the other. The clients' mods do not see what is
    stacked.

    Args:
        client_app: handles all other messages.
        make_task: the ClientApp's, see ``fedcurv.clients.client_app``.
        num_nodes: see LocalGrid.
        on_reply: called likewise, or with the message of a client that was stacked when it has
            trained, in a thread of its stack.
    """

    def __init__(
        self,
        client_app: ClientApp,
        make_task: MakeTask,
        num_nodes: int,
        *,
        on_reply: Callable[[Message], object] = lambda message: None,
    ) -> None:
        super().__init__(client_app, num_nodes, on_reply=on_reply)
        self._make_task = make_task

    def replies(self, messages: Iterable[Message], *, timeout: float | None) -> Iterator[Message]:
        """Train what can be stacked, then handle each message when its reply is asked for."""
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        messages = list(messages)
        rounds = [self._begun(message) for message in messages]
        _train([local for local in rounds if local is not None], self._on_reply)
        for index, message in enumerate(messages):
            left = None if timeout is None else deadline - time.monotonic()
            # let go of each client's model with its reply
            if (local := rounds[index]) is None:
                yield from super().replies([message], timeout=left)
            else:
                rounds[index] = None
                if left is None or left > 0:
                    yield from self.pull_messages([self._finish(local)])

    def _begun(self, message: Message) -> LocalRound | None:
        """Return a client's round if it can be stacked; None leaves it to the ClientApp."""
        if message.metadata.message_type != MessageType.TRAIN:
            return None
        if SECURE in message.content:
            tell_once("runner=batched: clients train one by one, since secure sums need their mod")
            return None
        self._forget(message)
        context = self.contexts[message.metadata.dst_node_id]
        try:
            task = self._make_task(message, context)
            if why := why_not_stacked(task):
                tell_once(f"runner=batched: clients train one by one, since {why}")
                return None
            self._name(message)  # the client remembers which message it answers
            # stacks go to a GPU in one piece; only what a client does by itself is there before
            device = None if task.settings.fisher_kind in OWN_KINDS else torch.device("cpu")
            local = begin_round(task, copy.deepcopy(message), context, device)
            if why := why_terms_not_stacked(local):
                tell_once(f"runner=batched: clients train one by one, since {why}")
                return None
            return local
        except Exception:
            return None  # the ClientApp will meet it again, and say so in its reply

    def _finish(self, local: LocalRound) -> str:
        def answer() -> Message:
            with local.reproducible():
                return local.reply()

        return self._keep(local.message, local.context, answer)


def _train(rounds: Sequence[LocalRound], on_trained: Callable[[Message], object]) -> None:
    def train(stack: Sequence[LocalRound]) -> None:
        _train_stack(stack)
        for local in stack:
            on_trained(local.message)

    together: dict[tuple[object, ...], list[LocalRound]] = {}
    for local in rounds:
        together.setdefault(same_kind(local), []).append(local)
    stacks = [stack for group in together.values() for stack in _stacks(group)]
    # each core takes one stack after the other; a GPU, one stack at a time
    at_a_time = os.cpu_count() if all(map(_on_cpu, stacks)) else 1
    with num_threads(1):
        pool = ThreadPoolExecutor(at_a_time)
        try:
            list(pool.map(train, stacks))  # raises what they raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # who was interrupted must not wait
            raise
        pool.shutdown()


def _train_stack(stack: Sequence[LocalRound]) -> None:
    settings = stack[0].task.settings
    device = settings.make_device()
    samples = StackedSamples([local.samples for local in stack], device)
    parameters = stacked_parameters(stack, device)
    for local, loss in zip(stack, train_stacked(stack, samples, parameters), strict=True):
        local.trained(loss)
    if can_be_estimated(stack[0]):
        if settings.fisher_samples != "all":
            samples = stacked_choice([local.fisher_samples() for local in stack], device)
        estimates = fisher_stacked(stack, samples, parameters)
        for local, fisher in zip(stack, estimates, strict=True):
            local.fisher = fisher


def _stacks(rounds: Sequence[LocalRound]) -> list[list[LocalRound]]:
    """Return stacks of clients with about equally many samples, so that little is padding."""
    by_size = sorted(rounds, key=lambda local: len(local.samples[0]))
    size = _CLIENTS_ON_CPU if _on_cpu(rounds) else len(by_size)
    return [by_size[start : start + size] for start in range(0, len(by_size), size)]


def _on_cpu(rounds: Sequence[LocalRound]) -> bool:
    """Return whether rounds of one kind are trained on the CPU."""
    return rounds[0].task.settings.make_device().type == "cpu"
