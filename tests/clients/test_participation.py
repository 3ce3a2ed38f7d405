"""Thousands of rounds of joins, losses, restarts and late replies, against a book-keeper.

Precisions are small whole numbers, so that float32 adds and subtracts them without rounding and
what remains for a client can be asked to be exactly the sum over the other contributors.
"""

import itertools
import random

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import nn

from fedcurv.clients import ClientCurvature
from fedcurv.simulations.local import LocalGrid
from fedcurv.strategies import FedCurv, RoundFailed
from fedcurv.strategies.flower_private import task_identity

SIZE = 3
MOST_CLIENTS = 6

FATES = st.sampled_from(["ok", "ok", "ok", "ok", "crash", "poison", "late"])


def new_model() -> nn.Module:
    model = nn.Linear(SIZE, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


class Participation(RuleBasedStateMachine):
    """Plays the federation; the book-keeper knows who answered what, and with which numbers."""

    rounds_played = 0

    def __init__(self) -> None:
        super().__init__()
        app = ClientApp()
        app.train()(self.train)
        self.grid = LocalGrid(app, 1)
        self.grid.contexts.clear()
        self.strategy = self.new_strategy()
        self.numbers, self.node_ids = itertools.count(1), itertools.count(5000)
        self.away: list[Context] = []
        self.fates: dict[str, str] = {}
        self.server_round = 0
        # the book-keeper's: answer ids and values in the sums, each client's last answer, and what
        # clients saw in the round that is on
        self.in_sums: dict[int, torch.Tensor] = {}
        self.last_answer: dict[str, int] = {}
        self.answers: dict[str, tuple[int, torch.Tensor]] = {}
        self.seen: dict[str, torch.Tensor | None] = {}
        self.snapshots = [(0, self.strategy.state_dict(), dict(self.in_sums))]

    @staticmethod
    def new_strategy() -> FedCurv:
        return FedCurv(
            strength=0.1, min_train_nodes=1, min_available_nodes=1, fraction_evaluate=0.0
        )

    def train(self, message: Message, context: Context) -> Message:
        client = str(context.node_config["client-id"])
        model = new_model()
        curvature = ClientCurvature(message, context, model)
        penalty = curvature.penalty
        self.seen[client] = None if penalty is None else penalty.curvature.precision["weight"]
        if self.fates[client] == "crash":
            raise ConnectionError("lost")
        number = next(self.numbers)
        value = torch.tensor([[float(number * k % 97) for k in (1, 5, 7)]])
        arrays = ArrayRecord(model.state_dict())
        if self.fates[client] == "poison":
            arrays = ArrayRecord({"weight": torch.full((1, SIZE), torch.nan)})
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
        curvature.report_fisher(content, model, {"weight": value})
        self.last_answer[client] = number
        self.answers[client] = number, value
        return Message(content, reply_to=message)

    # ---- what may happen

    @initialize(number=st.integers(1, 4))
    def begin(self, number: int) -> None:
        for _ in range(number):
            self.join()

    @precondition(lambda self: len(self.grid.contexts) + len(self.away) < MOST_CLIENTS)
    @rule()
    def join(self) -> None:
        node = next(self.node_ids)
        config = {"client-id": f"client-{node}"}
        self.grid.contexts[node] = Context(1, node, config, RecordDict(), {})

    @precondition(lambda self: len(self.grid.contexts) > 1)
    @rule(which=st.integers(0, 99))
    def leave(self, which: int) -> None:
        nodes = sorted(self.grid.contexts)
        self.away.append(self.grid.contexts.pop(nodes[which % len(nodes)]))

    @precondition(lambda self: self.away)
    @rule(which=st.integers(0, 99), remembers=st.booleans())
    def come_back(self, which: int, remembers: bool) -> None:
        """As a node without a key does: under another node id, with or without its state."""
        old = self.away.pop(which % len(self.away))
        if not remembers:
            self.last_answer.pop(str(old.node_config["client-id"]), None)
        node = next(self.node_ids)
        state = old.state if remembers else RecordDict()
        self.grid.contexts[node] = Context(1, node, old.node_config, state, {})

    @precondition(lambda self: self.grid.contexts)
    @rule(which=st.integers(0, 99))
    def forget(self, which: int) -> None:
        """As a node does whose disk is replaced."""
        nodes = sorted(self.grid.contexts)
        context = self.grid.contexts[nodes[which % len(nodes)]]
        context.state = RecordDict()
        self.last_answer.pop(str(context.node_config["client-id"]), None)

    @rule(back=st.integers(1, 3))
    def restart_the_server(self, back: int) -> None:
        """From its latest checkpoint, or from one of some rounds before."""
        del self.snapshots[len(self.snapshots) - min(back, len(self.snapshots)) + 1 :]
        self.server_round, state, in_sums = self.snapshots[-1]
        self.strategy, self.in_sums = self.new_strategy(), dict(in_sums)
        self.strategy.load_state_dict(state)

    @precondition(lambda self: self.grid.contexts)
    @rule(
        fates=st.lists(FATES, min_size=MOST_CLIENTS, max_size=MOST_CLIENTS),
        fraction=st.sampled_from([1.0, 1.0, 0.5]),
        seed=st.integers(0, 999),
    )
    def play_a_round(self, fates: list[str], fraction: float, seed: int) -> None:
        clients = [str(c.node_config["client-id"]) for c in self.grid.contexts.values()]
        Participation.rounds_played += 1
        self.fates = dict(zip(clients, fates, strict=False))
        self.seen, self.answers = {}, {}
        answered_before = dict(self.last_answer)
        self.strategy.strategy.fraction_train = fraction
        random.seed(seed)
        self.server_round += 1
        with task_identity(run_id=1, node_id=1):
            messages = self.strategy.configure_train(
                self.server_round, ArrayRecord(new_model().state_dict()), ConfigRecord(), self.grid
            )
            replies = [
                reply
                for reply in self.grid.replies(list(messages), timeout=None)
                if self.fates[self.client_of(reply)] != "late"
            ]
            self.check_what_clients_saw(answered_before)
            try:
                self.strategy.aggregate_train(self.server_round, replies)
            except RoundFailed:
                self.restart_the_server(1)
                return
        arrived = [c for c in self.answers if self.fates[c] == "ok"]
        self.in_sums = dict(self.answers[c] for c in arrived)
        self.snapshots.append((self.server_round, self.strategy.state_dict(), dict(self.in_sums)))

    def client_of(self, reply: Message) -> str:
        node = self.grid.contexts[reply.metadata.src_node_id]
        return str(node.node_config["client-id"])

    def check_what_clients_saw(self, answered_before: dict[str, int]) -> None:
        for client, got in self.seen.items():
            others = [v for n, v in self.in_sums.items() if n != answered_before.get(client)]
            if not others:
                assert got is None or not got.any()
            else:
                assert torch.equal(got, sum(others))


@pytest.mark.slow
def test_any_history_leaves_every_client_exactly_the_other_contributors():
    run_state_machine_as_test(
        Participation,
        settings=settings(
            max_examples=500,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
    assert Participation.rounds_played > 3000
