"""A federation whose clients have a term of a method, in the form of an existing app."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from fedcurv.clients import ClientTerm
from fedcurv.simulations.runners.local import LocalGrid
from fedcurv.strategies import start
from fedcurv.strategies.loop.rounds import RoundRecord
from fedcurv.strategies.wire.records import CLIENT_ID_ACTION, CONFIG, pack_client_id
from tests.federation import Spoil, new_model, samples, served_on

PLAIN = {"steps": 3, "lr": 0.1, "momentum": 0.0, "nesterov": False, "decay": 0.0, "mu": 0.0}


def client(partition: int, number: int = 12, **more) -> dict:
    """Return how a client trains; as ``tests.oracles.methods`` has it."""
    inputs, targets = samples(partition, number)
    return {**PLAIN, "inputs": inputs, "targets": targets, **more}


# of unequal numbers of samples and of steps
UNEQUAL = [client(0, 12), client(1, 5, steps=7), client(2, 20, steps=1), client(3, 9, steps=4)]


@dataclass
class Methods:
    """Runs rounds of clients that go through all of their samples in each step.

    Attributes:
        clients: how each trains.
        spoil: by (round, partition), what becomes of the honest reply; it may raise.
        forgetful: by (round, partition): the node lost its state before this round.
        state_dir: where clients remember; None for their contexts.
        seen: by round, who trained.
    """

    clients: list[dict]
    spoil: Mapping[tuple[int, int], Spoil] = field(default_factory=dict)
    forgetful: frozenset[tuple[int, int]] = frozenset()
    state_dir: Path | None = None
    plain: frozenset[int] = frozenset()
    make_model = staticmethod(new_model)
    seen: dict[int, list[int]] = field(default_factory=dict)
    rounds: list[RoundRecord] = field(default_factory=list)
    asks_for_ids: bool = True

    def train(self, message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        server_round = int(message.content["config"]["server-round"])
        self.seen.setdefault(server_round, []).append(partition)
        if (server_round, partition) in self.forgetful:
            context.state = RecordDict()
        how, model = self.clients[partition], self.make_model()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        term = None
        if partition not in self.plain:
            term = ClientTerm(message, context, model, state_dir=self.state_dir)
        optimizer = how.get("optimizer", self.sgd)(model, how)
        before = [p.detach().clone() for p in model.parameters()]
        loss = torch.zeros(())
        for _ in range(how["steps"]):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(how["inputs"]), how["targets"])
            for p, q in zip(model.parameters(), before, strict=True):
                loss = loss + how["mu"] / 2 * (p - q).square().sum()
            loss.backward()
            optimizer.step()
        metrics = MetricRecord({"num-examples": len(how["inputs"]), "loss": loss.item()})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        if term is not None:
            term.report(content, model)
        self.spoil.get((server_round, partition), lambda content: None)(content)
        return Message(content, reply_to=message)

    @staticmethod
    def sgd(model: nn.Module, how: dict) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            model.parameters(),
            lr=how["lr"],
            momentum=how["momentum"],
            nesterov=how["nesterov"],
            weight_decay=how["decay"],
        )

    def run(self, strategy: Strategy, num_rounds: int = 4, **options) -> Result:
        """Run our loop, or with ``own_loop=True`` Flower's."""
        app = ClientApp()
        app.train()(self.train)
        if self.asks_for_ids:

            @app.query(CLIENT_ID_ACTION)
            def tell(message: Message, context: Context) -> Message:
                return Message(RecordDict({CONFIG: pack_client_id(context)}), reply_to=message)

        own_loop = options.pop("own_loop", False)
        grid = options.pop("grid", None) or LocalGrid(app, len(self.clients))
        arrays = options.pop("arrays", None) or ArrayRecord(self.make_model().state_dict())
        options = {"on_round": self.rounds.append, **options}

        def serve(grid):
            if own_loop:
                return strategy.start(grid, arrays, num_rounds=num_rounds)
            return start(strategy, grid, arrays, num_rounds=num_rounds, **options)

        return served_on(grid, serve)

    def participants(self, num_rounds: int = 4) -> list[list[int]]:
        return [sorted(self.seen[r]) for r in range(1, num_rounds + 1)]

    def reasons(self, server_round: int) -> dict[str, str]:
        return {c.client_id: c.reason for c in self.rounds[server_round].clients if c.reason}


def vector(arrays: ArrayRecord) -> torch.Tensor:
    """Return a model as the oracles have it."""
    tensors = arrays.to_torch_state_dict()
    return torch.cat([tensors["weight"].flatten(), tensors["bias"]]).double()


def first_vector() -> torch.Tensor:
    return vector(ArrayRecord(new_model().state_dict()))
