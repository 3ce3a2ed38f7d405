"""What a secure sum costs: a client's own time beside training, the server's, and the upload."""

import os
import time

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fedcurv.clients.secure.node import Node
from fedcurv.strategies.secure.secure_round import SecureRound
from fedcurv.strategies.wire.secure.digests import digest_of_arrays
from fedcurv.strategies.wire.secure.form import summed_shapes
from fedcurv.strategies.wire.secure.neighbours import DEFAULT_NEIGHBOURS, DEFAULT_THRESHOLD
from fedcurv.strategies.wire.secure.plan import ARRAYS, Place, Plan
from fedcurv.strategies.wire.secure.stages import Masked
from fedcurv.strategies.wire.secure.vector import sums_of, vector_of
from fedcurv.strategies.wire.sums import PRECISION, WEIGHTED
from tests.benchmarks.conftest import Tables

SHAPES = {"0.weight": (1000, 1000), "1.weight": (200, 1000), "1.bias": (200,)}
NAME = ("federation", "session", 1)
# who is lost before its numbers come, so that masks must be found again
LOST = 0.05


class Clock:
    """Adds up processor time, which other processes disturb least."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self._began


def arrays(generator: np.random.Generator) -> ArrayRecord:
    return ArrayRecord({n: Array(generator.random(s, np.float32) - 0.5) for n, s in SHAPES.items()})


def plan_for(clients: int, kinds: list[str]) -> Plan:
    bounds: dict[Place, float] = {(kind, name): 64.0 for kind in kinds for name in SHAPES}
    sizes = {place: int(np.prod(SHAPES[place[1]])) for place in bounds}
    return Plan.from_bounds(clients, "num-examples", bounds, sizes)


@pytest.mark.benchmark_suite
@pytest.mark.parametrize("clients", list(map(int, os.environ.get("CLIENTS", "10,100").split(","))))
@pytest.mark.parametrize("around", ["FedAvg", "FedCurv"])
def test_secure_sum(clients: int, around: str, benchmark, tables: Tables) -> None:
    generator = np.random.default_rng(0)
    sent, trained = arrays(generator), arrays(generator)
    content = RecordDict({"arrays": trained, "metrics": MetricRecord({"num-examples": 20})})
    kinds = [ARRAYS]
    if around == "FedCurv":
        statistics = {n: Array(np.abs(a.numpy())) for n, a in trained.items()}
        content[PRECISION] = content[WEIGHTED] = ArrayRecord(statistics)
        kinds += ["precision", "weighted-parameters"]
    message = RecordDict({"arrays": sent})
    on_server, on_clients = Clock(), Clock()
    sizes: list[int] = []

    def play() -> None:
        settings = {"neighbours": DEFAULT_NEIGHBOURS, "threshold": DEFAULT_THRESHOLD}
        server = SecureRound(NAME, **settings, smallest_group=3)
        nodes = {str(i): Node(str(i)) for i in range(clients)}
        for node in nodes.values():
            with on_clients:
                keys = node.keys(server.ask_for_keys())
            with on_server:
                server.add_keys(keys)
        with on_server:
            members = server.ask_for_shares()
        for client_id, node in nodes.items():
            with on_clients:
                shares = node.shares(members)
            with on_server:
                server.add_shares(client_id, shares)
        plan = plan_for(clients, kinds)
        with on_server:
            asked = server.ask_for_masked(plan, summed_shapes(sent))
            digest_of_arrays(message)
        packed = b""
        for number, (client_id, node) in enumerate(nodes.items()):
            if number >= max(3, round(clients * (1 - LOST))):
                continue
            with on_clients:
                arrays_digest = digest_of_arrays(message)
                node.accept(asked[client_id], arrays_digest)
                form, words = vector_of(plan, sent, content)
                node.add_masks(words)
                packed = words.to_bytes()
            with on_server:
                server.add_masked(client_id, Masked(*NAME, form=form.to_text()), packed)
        sizes.append(len(packed))
        with on_server:
            alive, agreement = server.ask_for_agreement(arrays_digest)
        for client_id in alive:
            with on_clients:
                agreed = nodes[client_id].agree(agreement)
            with on_server:
                server.add_agreed(client_id, agreed)
        with on_server:
            signers, unmasking = server.ask_for_unmasking()
        for client_id in signers:
            with on_clients:
                revealed = nodes[client_id].reveal(unmasking)
            with on_server:
                server.add_revealed(client_id, revealed)
        with on_server:
            form, words = server.total()
            sums = sums_of(plan, sent, form, words, len(alive))
        expected = trained["1.weight"].numpy()
        np.testing.assert_allclose(sums.arrays["1.weight"].numpy(), expected, atol=1e-4)

    benchmark.pedantic(play, rounds=1)
    plain = sum(4 * int(np.prod(shape)) for shape in SHAPES.values())
    tables.add(
        "Secure sums of 1.2 million parameters, 5 % of the clients lost, seconds of one core",
        clients=clients,
        around=around,
        client=f"{on_clients.seconds / clients:.3f}",
        server=f"{on_server.seconds:.2f}",
        upload_in_FedAvgs=f"{sizes[0] / plain:.2f}",
        target="client 0.5, server 10, upload 2 (FedAvg)",
    )
