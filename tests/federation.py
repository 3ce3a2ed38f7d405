"""A small federation in this process: softmax regression, and nodes told to misbehave."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from fedcurv.clients import ClientCurvature
from fedcurv.global_state import seeded
from fedcurv.simulations.runners.local import LocalGrid, run_on
from fedcurv.strategies import start
from fedcurv.strategies.flower_private import set_message_id, task_identity
from fedcurv.strategies.loop.rounds import RoundRecord
from fedcurv.strategies.wire.records import (
    CLIENT_ID_ACTION,
    CONFIG,
    Instruction,
    pack_client_id,
    pack_instruction,
)

FEATURES, CLASSES = 4, 3
NAMES = ["weight", "bias"]

Samples = tuple[torch.Tensor, torch.Tensor]


def samples(partition: int, number: int = 12) -> Samples:
    generator = torch.Generator().manual_seed(partition)
    inputs = torch.randn(number, FEATURES, generator=generator) + partition
    return inputs, torch.randint(0, CLASSES, (number,), generator=generator)


def new_model(seed: int = 0) -> nn.Module:
    with seeded(seed):
        return nn.Linear(FEATURES, CLASSES)


def served_on(grid: Grid, serve: Callable[[Grid], Result]) -> Result:
    """Return what a server makes of a federation."""
    results, server_app = [], ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        results.append(serve(grid))

    run_on(grid, server_app)
    return results[0]


@dataclass
class Visit:
    """What one client saw in one round, for assertions."""

    server_round: int
    partition: int
    start: dict[str, torch.Tensor]
    solution: dict[str, torch.Tensor]
    precision: dict[str, torch.Tensor] | None
    weighted_parameters: dict[str, torch.Tensor] | None
    strength: float | None


# spoils a reply: gets the content that an honest client would send
Spoil = Callable[[RecordDict], None]


def crash(content: RecordDict) -> None:
    """Spoil a reply so that there is none."""
    raise ConnectionError("lost")


def options(**more):
    """Return a strategy's options for a small federation that is not evaluated on its clients."""
    return {"min_train_nodes": 1, "min_available_nodes": 1, "fraction_evaluate": 0.0, **more}


@dataclass
class Federation:
    """Runs rounds and keeps what clients saw.

    Attributes:
        spoil: by (round, partition), what becomes of the honest reply; it may raise.
        plain: partitions whose client knows nothing of FedCurv.
        forgetful: by (round, partition): the node lost its state before this round.
        steps: local gradient steps.
        mods: of the ClientApp.
        list_of_arrays: the app's arrays have numbers for names.
    """

    num_nodes: int = 4
    spoil: Mapping[tuple[int, int], Spoil] = field(default_factory=dict)
    plain: frozenset[int] = frozenset()
    forgetful: frozenset[tuple[int, int]] = frozenset()
    steps: int = 3
    lr: float = 0.1
    mode: str = "gradient"
    mods: list = field(default_factory=list)
    list_of_arrays: bool = False
    visits: list[Visit] = field(default_factory=list)
    rounds: list[RoundRecord] = field(default_factory=list)

    def client_app(self) -> ClientApp:
        app = ClientApp(mods=self.mods)
        app.train()(self.train)

        @app.query(CLIENT_ID_ACTION)
        def tell(message: Message, context: Context) -> Message:
            return Message(RecordDict({CONFIG: pack_client_id(context)}), reply_to=message)

        return app

    def train(self, message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        server_round = int(message.content["config"]["server-round"])
        if (server_round, partition) in self.forgetful:
            context.state = RecordDict()
        inputs, targets = samples(partition)
        model = new_model()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr)
        curvature = None
        if partition not in self.plain:
            curvature = ClientCurvature(message, context, model)
            curvature.attach(optimizer, mode=self.mode)
        for _ in range(self.steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        content = RecordDict(
            {
                "arrays": self.pack(model),
                "metrics": MetricRecord({"num-examples": len(inputs), "loss": 1.0}),
            }
        )
        penalty = curvature.penalty if curvature is not None else None
        if curvature is not None:
            curvature.report(content, model, [(inputs, targets)])
        self.visits.append(
            Visit(
                server_round,
                partition,
                before,
                {n: p.detach().clone() for n, p in model.named_parameters()},
                None if penalty is None else penalty.curvature.precision,
                None if penalty is None else penalty.curvature.weighted_parameters,
                None if penalty is None else penalty.strength,
            )
        )
        self.spoil.get((server_round, partition), lambda content: None)(content)
        return Message(content, reply_to=message)

    def pack(self, model: nn.Module) -> ArrayRecord:
        if self.list_of_arrays:
            return ArrayRecord([p.detach().numpy() for p in model.parameters()])
        return ArrayRecord(model.state_dict())

    def run(self, strategy: Strategy, num_rounds: int = 3, **options) -> Result:
        """Run our loop, or with ``own_loop=True`` Flower's."""
        own_loop = options.pop("own_loop", False)
        arrays = self.pack(new_model())
        options = {"on_round": self.rounds.append, **options}

        def serve(grid: Grid) -> Result:
            if own_loop:
                return strategy.start(grid, arrays, num_rounds=num_rounds)
            return start(strategy, grid, arrays, num_rounds=num_rounds, **options)

        return served_on(LocalGrid(self.client_app(), self.num_nodes), serve)

    def statuses(self, server_round: int) -> dict[str, str]:
        return {c.client_id: c.status for c in self.rounds[server_round].clients}

    def reasons(self, server_round: int) -> dict[str, str]:
        return {c.client_id: c.reason for c in self.rounds[server_round].clients if c.reason}


def same_bits(one: ArrayRecord, other: ArrayRecord) -> bool:
    a, b = one.to_torch_state_dict(), other.to_torch_state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def message_with(instruction: Instruction | None) -> Message:
    content = RecordDict() if instruction is None else pack_instruction(instruction)
    with task_identity(run_id=1, node_id=1):
        message = Message(content, dst_node_id=2, message_type="train")
    set_message_id(message, "question")
    return message


def context_of(partition: int) -> Context:
    return Context(1, 2 + partition, {"partition-id": partition}, RecordDict(), {})
