"""Attacks on a federation's model and on its sums, and a table of what each costs.

``python -m tests.attacks`` prints the tables of docs/robustness.md. Attackers see what all others
reply in a round and answer together, from round 3 on.
"""

import argparse
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdam,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    MultiKrum,
    Strategy,
)
from torch import Tensor

from fedcurv.simulations.configuration import composed, resolve
from fedcurv.simulations.federation.client_app import app as client_app
from fedcurv.simulations.federation.client_app import make_task
from fedcurv.simulations.federation.server_app import make_server_app
from fedcurv.simulations.reports.history import History
from fedcurv.simulations.runners.batched.grid import BatchedGrid
from fedcurv.simulations.runners.local import run_on
from fedcurv.strategies import AutoStrength, FedCurv, RoundFailed
from fedcurv.strategies.wire.arrays import pack_tensors, unpack_tensors
from fedcurv.strategies.wire.coded_arrays import unpack_coded
from fedcurv.strategies.wire.records import PRECISION
from tests.federation import options

FIRST_ROUND = 3

STRENGTH = 30.0


@dataclass
class Reply:
    """What one client says: θ̂_j, P_j (nothing under a plain strategy), and its weight."""

    solution: dict[str, Tensor]
    precision: dict[str, Tensor]
    weight: float

    @classmethod
    def of(cls, message: Message) -> "Reply":
        content = message.content
        precision = unpack_coded(content[PRECISION], "precision") if PRECISION in content else {}
        return cls(
            {name: t.clone() for name, t in unpack_tensors(content["arrays"]).items()},
            {name: p.clone() for name, p in precision.items()},
            float(content["metrics"]["num-examples"]),
        )

    def put_into(self, message: Message) -> None:
        content = message.content
        content["arrays"] = ArrayRecord(self.solution)
        if PRECISION in content:
            content[PRECISION] = pack_tensors(self.precision)
        content["metrics"] = MetricRecord({**content["metrics"], "num-examples": self.weight})

    def distance(self, sent: dict[str, Tensor]) -> float:
        return math.hypot(*(float((t - sent[name]).norm()) for name, t in self.solution.items()))

    def trace(self) -> float:
        return sum(float(p.sum()) for p in self.precision.values())


# changes the attackers' replies, given the others' and the model that was sent
Attack = Callable[[Sequence[Reply], Sequence[Reply], dict[str, Tensor]], None]


def shift(attackers, others, sent) -> None:
    """θ + 1, P as it is."""
    for one in attackers:
        one.solution = {name: t + 1 for name, t in one.solution.items()}


def inflate(attackers, others, sent) -> None:
    """P × 1e6 with an honest θ."""
    for one in attackers:
        one.precision = {name: p * 1e6 for name, p in one.precision.items()}


def shift_and_inflate(attackers, others, sent) -> None:
    """θ + 1 and P × 1e6, with a weight that no average feels."""
    shift(attackers, others, sent)
    inflate(attackers, others, sent)
    for one in attackers:
        one.weight = 1e-9


def just_near(attackers, others, sent) -> None:
    """A common direction, just near enough to the middle for FedCurv's robust sums."""
    generator = torch.Generator().manual_seed(1)
    away = {name: torch.randn(t.shape, generator=generator) for name, t in sent.items()}
    length = math.hypot(*(float(t.norm()) for t in away.values()))
    distance = 3.4 * middle(one.distance(sent) for one in others)
    for one in attackers:
        one.solution = {name: t + away[name] * distance / length for name, t in sent.items()}
    as_heavy_as_is_near(attackers, others)


def as_heavy_as_is_near(attackers, others) -> None:
    trace = max(2.55 * middle(one.trace() for one in others), 0.99 / STRENGTH)
    for one in attackers:
        scale = trace / max(one.trace(), 1e-30)
        one.precision = {name: p * scale for name, p in one.precision.items()}


def inside_the_range(attackers, others, sent) -> None:
    """By coordinate the farthest honest θ̂ against the others' mean step, the greatest honest P."""
    for one in attackers:
        for name, before in sent.items():
            values = torch.stack([other.solution[name] for other in others])
            goes_up = values.mean(0) > before
            one.solution[name] = torch.where(goes_up, values.amin(0), values.amax(0))
        for name in one.precision:
            one.precision[name] = torch.stack([other.precision[name] for other in others]).amax(0)


def inside_the_range_and_heavy(attackers, others, sent) -> None:
    """The same, with as much P as is near."""
    inside_the_range(attackers, others, sent)
    as_heavy_as_is_near(attackers, others)


ATTACKS: dict[str, Attack] = {
    "θ + 1": shift,
    "P × 1e6": inflate,
    "θ + 1, P × 1e6, weight 1e-9": shift_and_inflate,
    "one direction, just near": just_near,
    "within the honest range, P just near": inside_the_range_and_heavy,
}


def middle(values) -> float:
    ranked = sorted(values)
    return ranked[len(ranked) // 2]


class AttackedGrid(BatchedGrid):
    """Trains all clients honestly, and lets the first few say something else from round 3 on."""

    def __init__(self, num_nodes: int, num_attackers: int, attack: Attack | None) -> None:
        super().__init__(client_app, make_task, num_nodes)
        self._attackers, self._attack = list(self.contexts)[:num_attackers], attack
        self.ratios: dict[str, float] = {"distance": 0.0, "trace": 0.0}

    def replies(self, messages, *, timeout) -> Iterator[Message]:
        messages = list(messages)
        config = messages[0].content.config_records.get("config", {})
        sent = messages[0].content.array_records.get("arrays")
        received = list(super().replies(messages, timeout=timeout))
        if sent is not None:
            self._note(received, unpack_tensors(sent))
        if sent is not None and self._attack and int(config["server-round"]) >= FIRST_ROUND:
            fit = [message for message in received if message.has_content()]
            lying = [m for m in fit if m.metadata.src_node_id in self._attackers]
            attackers = [Reply.of(message) for message in lying]
            others = [Reply.of(message) for message in fit if message not in lying]
            if others:
                self._attack(attackers, others, unpack_tensors(sent))
            for message, reply in zip(lying, attackers, strict=True):
                reply.put_into(message)
        yield from received

    def _note(self, received: Sequence[Message], sent: dict[str, Tensor]) -> None:
        replies = [Reply.of(message) for message in received if message.has_content()]
        for kind, values in (
            ("distance", [one.distance(sent) for one in replies]),
            ("trace", [one.trace() for one in replies]),
        ):
            if len(values) >= 3 and middle(values) > 0:
                self.ratios[kind] = max(self.ratios[kind], max(values) / middle(values))


@dataclass(frozen=True)
class Outcome:
    """What a run came to: its accuracy in %, and the greatest ratios to the round's middle."""

    accuracy: float
    distance: float
    trace: float
    refused: int
    left_out: int


def outcome(
    strategy: Strategy,
    overrides: Sequence[str],
    *,
    seed: int,
    num_attackers: int = 0,
    attack: Attack | None = None,
) -> Outcome:
    """Return what a strategy on digits comes to; a run that ends early counts as 0 %."""
    config = resolve(composed(["strategy=fedavg", *overrides, f"seed={seed}"]))
    history = History("attacked")
    grid = AttackedGrid(config["num_clients"], num_attackers, attack)
    left_out: list[int] = []
    watch = [lambda record: left_out.append(len(getattr(strategy, "left_out", ())))]
    accuracy = 0.0
    try:
        run_on(grid, make_server_app(config, strategy, history, watch))
        accuracy = 100 * float(history.rounds[-1].server_metrics["accuracy"])
    except RoundFailed:
        pass
    refused = sum(c.status == "refused" for r in history.rounds for c in r.clients)
    return Outcome(accuracy, grid.ratios["distance"], grid.ratios["trace"], refused, sum(left_out))


# by name: of so many clients, and attackers that it is told to stand
STRATEGIES: dict[str, Callable[[int, int], Strategy]] = {
    "FedAvg": lambda clients, liars: FedAvg(**options()),
    "FedAdam": lambda clients, liars: FedAdam(**options()),
    "FedMedian": lambda clients, liars: FedMedian(**options()),
    "FedTrimmedAvg": lambda clients, liars: FedTrimmedAvg(
        beta=(liars + 0.01) / clients, **options()
    ),
    "Krum": lambda clients, liars: Krum(num_malicious_nodes=liars, **options()),
    "MultiKrum": lambda clients, liars: MultiKrum(
        num_malicious_nodes=liars, num_nodes_to_select=clients - 2 * liars, **options()
    ),
    "Bulyan": lambda clients, liars: Bulyan(num_malicious_nodes=liars, **options()),
}

IID = ["partition=iid", "num_clients=5", "num_rounds=8"]
DIRICHLET = ["partition=dirichlet", "partition.alpha=0.1", "num_clients=10", "num_rounds=10"]
SETTINGS: dict[str, tuple[list[str], int]] = {
    "iid-1": (IID, 1),
    "iid-2": (IID, 2),
    "iid-1-of-8": (["partition=iid", "num_clients=8", "num_rounds=8"], 1),
    "shards": (["partition=shards", "num_clients=10", "num_rounds=10"], 2),
    "pathological": (["partition=pathological", "num_clients=10", "num_rounds=10"], 2),
    "dirichlet": (DIRICHLET, 2),
    "dirichlet-1": (DIRICHLET, 1),
}


# honest clients of many kinds, 20 of them in 30 rounds unless said
HONEST: dict[str, tuple[list[str], float | AutoStrength]] = {
    "IID": (["partition=iid"], 30),
    "shards": (["partition=shards"], 30),
    "pathological": (["partition=pathological"], 30),
    "Dirichlet 0.1": (["partition=dirichlet", "partition.alpha=0.1"], 30),
    "Dirichlet 0.1, auto": (
        ["partition=dirichlet", "partition.alpha=0.1"],
        AutoStrength(lr=0.2, epochs=5, batch_size=16),
    ),
    "unequal numbers": (["partition=quantity"], 30),
    "unequal numbers, a fifth stragglers": (
        ["partition=quantity", "client.stragglers.share=0.2", "client.epochs=20"],
        30,
    ),
    "shards, half stragglers": (
        ["partition=shards", "client.stragglers.share=0.5", "client.epochs=20"],
        30,
    ),
    "Dirichlet 0.1, half stragglers": (
        [
            *("partition=dirichlet", "partition.alpha=0.1"),
            *("client.stragglers.share=0.5", "client.epochs=20"),
        ],
        30,
    ),
    "shards, 12 of 40 in a round": (
        ["partition=shards", "num_clients=40", "fraction_train=0.3"],
        30,
    ),
    "pathological, λ = 0.01, a fifth stragglers": (
        ["partition=pathological", "client.stragglers.share=0.2", "client.epochs=20"],
        0.01,
    ),
    "shards, λ = 0.01, empirical, a fifth stragglers": (
        [
            *("partition=shards", "client.stragglers.share=0.2", "client.epochs=20"),
            "client.fisher_kind=empirical",
        ],
        0.01,
    ),
}


def rows(
    setting: str,
    strategies: Sequence[str],
    attacks: Sequence[str],
    seeds: Sequence[int],
    robust: str | float = "auto",
) -> Iterator[str]:
    """Yield lines of a table: what a strategy comes to alone and with FedCurv around it."""
    overrides, liars = SETTINGS[setting]
    clients = resolve(composed(["strategy=fedavg", *overrides]))["num_clients"]
    for name in strategies:
        make = partial(STRATEGIES[name], clients, liars)
        for attack in ("", *attacks):
            columns = []
            for wrap, chosen in (
                (lambda strategy: strategy, seeds),
                # under an attack one seed is enough to see what it does
                (
                    lambda strategy: FedCurv(strategy, strength=STRENGTH, **UNBOUNDED),
                    seeds[:1] if attack else seeds,
                ),
                (lambda strategy: FedCurv(strategy, strength=STRENGTH, robust=robust), seeds),
            ):
                found = [
                    outcome(
                        wrap(make()),
                        overrides,
                        seed=seed,
                        num_attackers=liars if attack else 0,
                        attack=ATTACKS[attack] if attack else None,
                    )
                    for seed in chosen
                ]
                columns.append(", ".join(f"{one.accuracy:.1f}" for one in found))
            yield f"| {name} | {attack or 'none'} | {' | '.join(columns)} |"


UNBOUNDED = {"robust": "none", "max_distance": math.inf, "max_trace": math.inf}


def honest_rows(names: Sequence[str], seeds: Sequence[int]) -> Iterator[str]:
    """Yield lines of a table: how far honest clients go from their round's middle."""
    for name in names:
        overrides, strength = HONEST[name]
        found = [
            outcome(
                FedCurv(strength=strength, **options(fraction_train=fraction_of(overrides))),
                overrides,
                seed=seed,
            )
            for seed in seeds
        ]
        shown = (
            ", ".join(f"{one.distance:.1f}" for one in found),
            ", ".join(f"{one.trace:.3g}" for one in found),
            ", ".join(f"{one.refused}, {one.left_out}" for one in found),
        )
        yield f"| {name} | {' | '.join(shown)} |"


def fraction_of(overrides: Sequence[str]) -> float:
    return float(resolve(composed(["strategy=fedavg", *overrides]))["fraction_train"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("setting", choices=[*SETTINGS, "honest"])
    parser.add_argument("--strategies", default="FedAvg,FedMedian,FedTrimmedAvg,Krum,MultiKrum")
    parser.add_argument("--attacks", default="0,1,2,3,4", help="by their places in ATTACKS")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--robust", default="auto", help="of the last column")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    if given.setting == "honest":
        print("| clients | distance | trace | refused, left out |\n|---|---|---|---|")
        found = honest_rows(list(HONEST), seeds)
    else:
        attacks = [list(ATTACKS)[int(place)] for place in given.attacks.split(",")]
        print("| strategy | attack | alone | unbounded | FedCurv |\n|---|---|---|---|---|")
        found = rows(given.setting, given.strategies.split(","), attacks, seeds, given.robust)
    for row in found:
        print(row, flush=True)


if __name__ == "__main__":
    main()
