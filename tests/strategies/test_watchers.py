import json
import math
import sys
from dataclasses import replace

import pytest
from flwr.app import MetricRecord

from fedcurv.strategies import FedCurv, JsonLines, ScalarLog, TensorBoard
from fedcurv.strategies.loop.rounds import ClientRecord, RoundRecord
from tests.federation import Federation, crash, options


def test_every_round_is_a_line_with_every_clients_part(tmp_path):
    """A resumed run, here a second one, appends."""
    path = tmp_path / "new" / "rounds.jsonl"
    federation = Federation(num_nodes=3, spoil={(2, 1): crash})
    federation.run(
        FedCurv(strength=0.1, **options()),
        num_rounds=2,
        evaluate_fn=lambda r, arrays: MetricRecord(
            {"accuracy": r / 10, "per-class": [0.5, 1.0 * r]}
        ),
    )
    for record in federation.rounds:
        JsonLines(path)(record)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["server_round"] for line in lines] == [0, 1, 2]
    assert lines[2]["server_metrics"] == {"accuracy": 0.2, "per-class": [0.5, 2.0]}
    assert [client["status"] for client in lines[2]["clients"]] == ["ok", "failed", "ok"]
    assert "ConnectionError: lost" in lines[2]["clients"][1]["reason"]
    fine = federation.rounds[2].clients[0]
    assert lines[2]["clients"][0]["metrics"] == dict(fine.metrics)
    assert sum(lines[2]["clients"][0]["down"].values()) == fine.bytes_down


def test_what_is_not_finite_is_still_json(tmp_path):
    path = tmp_path / "rounds.jsonl"
    record = RoundRecord(1, train_metrics={"loss": math.nan, "all": [1.0, math.inf]})
    JsonLines(path)(record)
    JsonLines(path)(replace(record, server_round=2))
    one, two = (json.loads(line) for line in path.read_text().splitlines())
    assert one["train_metrics"] == two["train_metrics"] == {"loss": None, "all": [1.0, None]}


def test_what_was_written_can_be_read_back(tmp_path):
    """Of a round that a resumed run repeated, what came last; a line that was cut off, not."""
    path = tmp_path / "rounds.jsonl"
    federation = Federation(num_nodes=3, spoil={(2, 1): crash})
    federation.run(FedCurv(strength=0.1, **options()), num_rounds=3)
    first, *_, last = federation.rounds
    for record in (first, replace(last, seconds=-1.0), *federation.rounds[1:]):
        JsonLines(path)(record)
    with path.open("a") as file:
        file.write('{"server_round": 4, "cli')
    assert JsonLines.read(path) == federation.rounds


def test_another_file_is_no_list_of_rounds(tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text('{"any": "thing"}\n')
    with pytest.raises(ValueError, match=r"other\.jsonl, line 1: expected a round"):
        JsonLines.read(path)


def test_a_round_after_a_line_that_was_cut_off_has_a_line_of_its_own(tmp_path):
    path = tmp_path / "rounds.jsonl"
    JsonLines(path)(RoundRecord(1))
    with path.open("a") as file:
        file.write('{"server_round": 2, "cli')
    JsonLines(path)(RoundRecord(2, seconds=2.5))
    JsonLines(path)(RoundRecord(3))
    assert JsonLines.read(path) == [RoundRecord(1), RoundRecord(2, seconds=2.5), RoundRecord(3)]


LINES = {
    "no UTF-8": b'{"server_round": "\xff"}',
    "a round that is no number": b'{"server_round": "1", "clients": []}',
    "a round that is a truth value": b'{"server_round": true, "clients": []}',
    "clients that are a number": b'{"server_round": 1, "clients": 3}',
    "a client of another kind": b'{"server_round": 1, "clients": [{"client_id": 1}]}',
    "metrics that are a list": b'{"server_round": 1, "clients": [], "train_metrics": [1]}',
    "lists in lists": b'{"server_round": 1, "clients": ' + b"[" * 100_000,
    "a number of 5000 digits": b'{"server_round": ' + b"9" * 5000 + b', "clients": []}',
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_line_that_is_no_round_is_named(line, tmp_path):
    path = tmp_path / "rounds.jsonl"
    JsonLines(path)(RoundRecord(1))
    with path.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ValueError, match=r"rounds\.jsonl, line 2: expected a round: ") as told:
        JsonLines.read(path)
    assert type(told.value) is ValueError
    assert len(str(told.value)) < 1000


A_ROUND = RoundRecord(
    3,
    clients=(
        ClientRecord("0", "ok", "", {"arrays": 2_000_000}, {"arrays": 1_000_000}, {}),
        ClientRecord("1", "failed", "lost", {"arrays": 2_000_000}, {}, {}),
    ),
    train_metrics={"loss": 0.5},
    client_metrics={"accuracy": 0.25},
    server_metrics={"accuracy": 0.75, "per-class": [0.5, 1.0]},
    seconds=1.5,
)
ITS_SCALARS = {
    "server/accuracy": 0.75,
    "clients/accuracy": 0.25,
    "train/loss": 0.5,
    "round/seconds": 1.5,
    "round/clients-ok": 1.0,
    "round/clients-lost": 1.0,
    "round/megabytes-down": 4.0,
    "round/megabytes-up": 1.0,
}


def test_trackers_get_every_number_and_its_round():
    calls = []
    ScalarLog(lambda numbers, step: calls.append((numbers, step)))(A_ROUND)
    assert calls == [(ITS_SCALARS, 3)]


def test_tensorboard_reads_what_was_written(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    TensorBoard(tmp_path / "events")(A_ROUND)
    events = accumulators.EventAccumulator(str(tmp_path / "events")).Reload()
    read = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    assert {name: (e.step, e.value) for name, (e,) in read.items()} == {
        name: (3, value) for name, value in ITS_SCALARS.items()
    }


def test_tensorboard_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        TensorBoard(tmp_path)
