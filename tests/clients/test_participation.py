"""Thousands of rounds of joins, losses, kills, twins and late replies, against a book-keeper.

Precisions are small whole numbers, so that float32 adds and subtracts them without rounding and
what remains for a client can be asked to be exactly the sum over the other contributors.
"""

import itertools
import os
import random
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

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
from fedcurv.clients.state import STATE_DIRECTORY_VARIABLE, DiskStore, default_directory
from fedcurv.simulations.runners.local import LocalGrid
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
    """Plays the federation; the book-keeper knows who answered what, and with which numbers.

    Nodes remember in their contexts, each for itself, or, where the server says that it keeps
    checkpoints, on disk, where nodes of one client id would share what they remember.
    """

    rounds_played = 0
    kills_after_a_reply = 0
    refused_twins = 0
    on_disk = False
    checkpoint_every = 1

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp(dir=os.environ.get("TMPDIR"))
        os.environ[STATE_DIRECTORY_VARIABLE] = self.directory
        app = ClientApp()
        app.train()(self.train)
        self.grid = LocalGrid(app, 1)
        self.grid.contexts.clear()
        self.strategy = self.new_strategy()
        self.numbers, self.node_ids = itertools.count(1), itertools.count(5000)
        self.away: list[Context] = []
        self.fates: dict[int, str] = {}
        self.server_round = 0
        # whether the server returned to a checkpoint that is not its latest, which nodes may have
        # forgotten
        self.is_older = False
        # client ids that two nodes have had at once
        self.doubled: set[str] = set()
        # the book-keeper's: answer ids and values in the sums, the answers that each memory has
        # been given, and answers and what nodes saw in the round that is on
        self.in_sums: dict[int, torch.Tensor] = {}
        self.given: defaultdict[str, set[int]] = defaultdict(set)
        self.answers: dict[int, tuple[int, torch.Tensor]] = {}
        self.seen: dict[int, torch.Tensor | None] = {}

    def teardown(self) -> None:
        del os.environ[STATE_DIRECTORY_VARIABLE]
        shutil.rmtree(self.directory)

    def new_strategy(self) -> FedCurv:
        strategy = FedCurv(
            strength=0.1, min_train_nodes=1, min_available_nodes=1, fraction_evaluate=0.0
        )
        if self.on_disk:
            strategy.will_be_saved()
        return strategy

    def train(self, message: Message, context: Context) -> Message:
        node, model = context.node_id, new_model()
        curvature = ClientCurvature(message, context, model)
        penalty = curvature.penalty
        self.seen[node] = None if penalty is None else penalty.curvature.precision["weight"]
        if self.fates[node] == "crash":
            raise ConnectionError("lost")
        number = next(self.numbers)
        value = torch.tensor([[float(number * k % 97) for k in (1, 5, 7)]])
        arrays = ArrayRecord(model.state_dict())
        if self.fates[node] == "poison":
            arrays = ArrayRecord({"weight": torch.full((1, SIZE), torch.nan)})
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
        curvature.report_fisher(content, model, {"weight": value})
        self.answers[node] = number, value
        return Message(content, reply_to=message)

    # ---- what may happen

    @initialize(number=st.integers(1, 4), on_disk=st.booleans(), checkpoint_every=st.integers(1, 5))
    def begin(self, number: int, on_disk: bool, checkpoint_every: int) -> None:
        self.on_disk, self.checkpoint_every = on_disk, checkpoint_every
        self.strategy = self.new_strategy()
        self.snapshots = [(0, self.strategy.state_dict(), dict(self.in_sums), False)]
        for _ in range(number):
            self.join()

    @precondition(lambda self: len(self.grid.contexts) + len(self.away) < MOST_CLIENTS)
    @rule()
    def join(self) -> None:
        self.add_node(f"client-{next(self.node_ids)}", RecordDict())

    def add_node(self, client: str, state: RecordDict, memory: str = "") -> None:
        node = next(self.node_ids)
        config = {"client-id": client, "memory": memory or f"{client} on node {node}"}
        self.grid.contexts[node] = Context(1, node, config, state, {})
        if [self.client_of(n) for n in self.grid.contexts].count(client) > 1:
            self.doubled.add(client)

    def client_of(self, node: int) -> str:
        return str(self.grid.contexts[node].node_config["client-id"])

    def memory_of(self, context: Context) -> str:
        return str(context.node_config["client-id" if self.on_disk else "memory"])

    def wipe(self, context: Context) -> None:
        self.given.pop(self.memory_of(context), None)
        context.state = RecordDict()
        if self.on_disk:
            # the server's name for the training is not the test's to know
            for federation in Path(default_directory()).iterdir():
                name = DiskStore(federation, context, "").folder.path.name
                shutil.rmtree(federation / name, ignore_errors=True)

    @precondition(lambda self: 0 < len(self.grid.contexts) < MOST_CLIENTS - len(self.away))
    @rule(which=st.integers(0, 99))
    def double(self, which: int) -> None:
        """As when a device's configuration is copied to another one."""
        nodes = sorted(self.grid.contexts)
        self.add_node(self.client_of(nodes[which % len(nodes)]), RecordDict())

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
            self.wipe(old)
        client, memory = (str(old.node_config[name]) for name in ("client-id", "memory"))
        self.add_node(client, old.state, memory)

    @precondition(lambda self: self.grid.contexts)
    @rule(which=st.integers(0, 99))
    def forget(self, which: int) -> None:
        """As a node does whose disk is replaced."""
        nodes = sorted(self.grid.contexts)
        self.wipe(self.grid.contexts[nodes[which % len(nodes)]])

    @rule(back=st.integers(1, 3))
    def restart_the_server(self, back: int) -> None:
        """From its latest checkpoint, or from one of some before."""
        del self.snapshots[len(self.snapshots) - min(back, len(self.snapshots)) + 1 :]
        self.server_round, state, in_sums, is_older = self.snapshots[-1]
        self.is_older = is_older or back > 1
        self.snapshots[-1] = self.server_round, state, in_sums, self.is_older
        self.strategy, self.in_sums = self.new_strategy(), dict(in_sums)
        self.strategy.load_state_dict(state)

    @precondition(lambda self: self.grid.contexts)
    @rule(
        fates=st.lists(FATES, min_size=MOST_CLIENTS, max_size=MOST_CLIENTS),
        fraction=st.sampled_from([1.0, 1.0, 0.5]),
        seed=st.integers(0, 999),
        killed_after=st.sampled_from([None, None, None, 0, 1, 2, 3]),
    )
    def play_a_round(
        self, fates: list[str], fraction: float, seed: int, killed_after: int | None
    ) -> None:
        Participation.rounds_played += 1
        self.fates = dict(zip(self.grid.contexts, fates, strict=False))
        self.seen, self.answers = {}, {}
        self.strategy.strategy.fraction_train = fraction
        random.seed(seed)
        self.server_round += 1
        with task_identity(run_id=1, node_id=1):
            messages = list(
                self.strategy.configure_train(
                    self.server_round,
                    ArrayRecord(new_model().state_dict()),
                    ConfigRecord(),
                    self.grid,
                )
            )
            replies = list(self.grid.replies(messages[:killed_after], timeout=None))
            self.check_what_nodes_saw()
            self.check_who_was_refused(replies)
            for node, (number, _) in self.answers.items():
                self.given[self.memory_of(self.grid.contexts[node])].add(number)
            if killed_after is not None:
                Participation.kills_after_a_reply += bool(replies)
                self.restart_the_server(1)
                return
            in_time = [r for r in replies if self.fates[r.metadata.src_node_id] != "late"]
            try:
                self.strategy.aggregate_train(self.server_round, in_time)
            except RoundFailed:
                self.restart_the_server(1)
                return
        self.is_older = False
        self.in_sums = {}
        clients: set[str] = set()
        for node in (r.metadata.src_node_id for r in in_time if not r.has_error()):
            if self.client_of(node) in clients:  # one node is a client, and it has replied
                continue
            clients.add(self.client_of(node))
            if self.fates[node] == "ok":
                number, value = self.answers[node]
                self.in_sums[number] = value
        if self.server_round % self.checkpoint_every == 0:
            self.snapshots.append(
                (self.server_round, self.strategy.state_dict(), dict(self.in_sums), False)
            )

    def check_what_nodes_saw(self) -> None:
        for node, got in self.seen.items():
            own = self.given[self.memory_of(self.grid.contexts[node])]
            others = [v for n, v in self.in_sums.items() if n not in own]
            allowed = [others, [*self.in_sums.values()]] if self.is_older else [others]
            seen = torch.zeros(1, SIZE) if got is None else got
            assert any(torch.equal(seen, sum(v, torch.zeros(1, SIZE))) for v in allowed)

    def check_who_was_refused(self, replies: list[Message]) -> None:
        for node in (r.metadata.src_node_id for r in replies if r.has_error()):
            if self.fates[node] != "crash" or node not in self.seen:
                assert self.on_disk
                assert self.client_of(node) in self.doubled
                Participation.refused_twins += 1


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
    assert Participation.kills_after_a_reply > 300
    assert Participation.refused_twins > 100
