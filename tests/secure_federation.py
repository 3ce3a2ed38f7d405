"""A federation under secure sums whose nodes can be lost at any stage, and what was told in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Context, Message
from flwr.serverapp import Grid

from fedcurv.clients import SecureSumsMod
from fedcurv.simulations.runners.local import LocalGrid
from fedcurv.strategies import start
from fedcurv.strategies.wire.secure.stages import SECURE
from tests.federation import Federation, new_model, served_on


@dataclass
class SecureFederation(Federation):
    """Adds the mod, and keeps every reply of a secure sum as the server gets it.

    Attributes:
        lost: by (round, stage), the partitions that do not answer.
        mod: of the nodes.
        replies: by (round, stage, partition).
        contexts: of the nodes, as the run leaves them.
        node_config: what all nodes' owners say.
    """

    num_nodes: int = 6
    lost: Mapping[tuple[int, str], set[int]] = field(default_factory=dict)
    mod: SecureSumsMod = field(default_factory=SecureSumsMod)
    replies: dict[tuple[int, str, int], Message] = field(default_factory=dict)
    contexts: dict[int, Context] = field(default_factory=dict)
    node_config: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self):
        self.mods = [self.watch, self.mod, *self.mods]

    def watch(self, message, context, call_next):
        context.node_config.update(self.node_config)
        partition = int(context.node_config["partition-id"])
        config = message.content.config_records.get(SECURE, {})
        where = config.get("number", 0), config.get("stage", "none")
        reply = call_next(message, context)
        self.contexts[partition] = context
        if partition in self.lost.get(where, ()):
            raise ConnectionError("lost")
        self.replies[(*where, partition)] = reply
        return reply

    def run(self, strategy, num_rounds=3, **options):
        own_loop = options.pop("own_loop", False)
        arrays = self.pack(new_model())

        def serve(grid: Grid):
            if own_loop:
                return strategy.start(grid, arrays, num_rounds=num_rounds)
            more = {"on_round": self.rounds.append, **options}
            return start(strategy, grid, arrays, num_rounds=num_rounds, **more)

        return served_on(LocalGrid(self.client_app(), self.num_nodes), serve)
