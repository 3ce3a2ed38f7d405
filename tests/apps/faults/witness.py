"""FedCurv on a linear model; nodes and server note what happens and follow orders, all in files.

seen-ROUND-CLIENT.npy   the precision that pulled the client, before it trained
sent-ROUND-CLIENT.npy   the precision that it reported
hold-ROUND-CLIENT       order to wait before training; holding-ROUND-CLIENT says that it does
hold-server-ROUND       order to the server to wait after a round; server-ROUND has its process id
spoil-ROUND-CLIENT      order to spoil the reply; the text says how
"""

import os
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedcurv.clients import ClientCurvature, private_errors_mod
from fedcurv.strategies import FedCurv, JsonLines, start
from fedcurv.strategies.loop.rounds import RoundRecord
from fedcurv.strategies.wire.records import CLIENT_ID_ACTION, CONFIG, PRECISION, pack_client_id

CLASSES = 5
MAX_PRECISION = 1e6
SECRET = "/wards/oncology/jane-doe.dcm"

server_app = ServerApp()
client_app = ClientApp(mods=[private_errors_mod])


def wait_while(order: Path, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while order.exists() and time.monotonic() < deadline:
        time.sleep(0.1)


def new_model(features: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(features, features if features > 1000 else CLASSES)


def note(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write some of the numbers: all of a small model."""
    flat = torch.cat([tensors[name].flatten() for name in sorted(tensors)])
    np.save(path, flat[:: max(1, len(flat) // 100_000)].numpy())


@client_app.query(CLIENT_ID_ACTION)
def tell_client_id(message: Message, context: Context) -> Message:
    return Message(RecordDict({CONFIG: pack_client_id(context)}), reply_to=message)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    notes, features = Path(context.run_config["notes"]), context.run_config["features"]
    client, server_round = (
        context.node_config["partition-id"],
        message.content["config"]["server-round"],
    )
    place = f"{server_round}-{client}"
    model = new_model(features)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    curvature = ClientCurvature(message, context, model, state_dir=notes / f"disk-{client}")
    if curvature.penalty is not None:
        note(notes / f"seen-{place}.npy", curvature.penalty.curvature.precision)
    curvature.attach(optimizer, mode="proximal")
    if (notes / f"hold-{place}").exists():
        (notes / f"holding-{place}").write_text("yes")
        wait_while(notes / f"hold-{place}")

    generator = torch.Generator().manual_seed(int(client))
    inputs = torch.randn(8, features, generator=generator)
    targets = torch.randint(0, CLASSES, (8,), generator=generator)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    content = RecordDict(
        {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": 8})}
    )
    curvature.report(content, model, [(inputs, targets)])
    note(notes / f"sent-{place}.npy", content[PRECISION].to_torch_state_dict())
    order = notes / f"spoil-{place}"
    if order.exists():
        SPOILS[order.read_text()](content)
    return Message(content, reply_to=message)


def in_record(name: str, change) -> None:
    def spoil(content: RecordDict) -> None:
        tensors = content[name].to_torch_state_dict()
        content[name] = ArrayRecord({**tensors, "bias": change(tensors["bias"])})

    return spoil


def a_pickle(content: RecordDict) -> None:
    buffer = BytesIO()
    np.save(buffer, np.array([{"any": "object"}], dtype=object), allow_pickle=True)
    content["arrays"]["bias"] = Array("object", (1,), "numpy.ndarray", buffer.getvalue())


def somebody_elses_stamp(content: RecordDict) -> None:
    content[CONFIG]["message-id"] = "0" * 64


def an_exception(content: RecordDict) -> None:
    raise FileNotFoundError(SECRET)


SPOILS = {
    "NaN": in_record("arrays", lambda bias: bias * torch.nan),
    "a huge array": in_record("arrays", lambda bias: torch.zeros(5_000_000)),
    "an enormous precision": in_record(PRECISION, lambda bias: bias + 2 * MAX_PRECISION),
    "somebody else's stamp": somebody_elses_stamp,
    "a pickle": a_pickle,
    "an exception": an_exception,
}


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    notes = Path(config["notes"])

    def stand_by(record: RoundRecord) -> None:
        (notes / f"server-{record.server_round}").write_text(str(os.getpid()))
        wait_while(notes / f"hold-server-{record.server_round}")

    result = start(
        FedCurv(
            bits=32,  # which a witness can read
            strength=1.0,
            max_precision=MAX_PRECISION,
            min_train_nodes=1,
            min_available_nodes=1,
            fraction_evaluate=0.0,
        ),
        grid,
        ArrayRecord(new_model(config["features"]).state_dict()),
        num_rounds=config["num-rounds"],
        timeout=config["timeout"],
        wait_for_nodes=[str(node) for node in range(config["num-nodes"])],
        wait_timeout=120.0,
        checkpoint=notes / "run",
        resume=config["resume"],
        on_round=[JsonLines(notes / "rounds.jsonl"), stand_by],
    )
    torch.save(result.arrays.to_torch_state_dict(), notes / "model.pt")
