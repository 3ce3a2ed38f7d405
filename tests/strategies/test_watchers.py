import json
import math
from dataclasses import replace

from flwr.app import MetricRecord

from fedcurv.strategies import FedCurv, JsonLines
from fedcurv.strategies.rounds import RoundRecord
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
