"""One client's metric that is NaN or inf leaves the mean to the others, and is told by name."""

import logging
import math

import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg

from fedcurv.strategies import EarlyStopping, FedCurv
from tests.federation import Federation, options

EVERYONE = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
STRATEGIES = {
    "FedAvg": FedAvg,
    "FedAdam": FedAdam,
    "FedCurv": lambda **o: FedCurv(strength=0.1, **o),
    "FedCurv around FedAdam": lambda **o: FedCurv(FedAdam(**o), strength=0.1),
}


def evaluating(metrics, num_nodes: int = 4) -> Federation:
    """Return a federation whose clients report what ``metrics(round, partition)`` says."""
    federation = Federation(num_nodes=num_nodes)
    app = federation.client_app()

    @app.evaluate()
    def evaluate(message: Message, context) -> Message:
        partition = int(context.node_config["partition-id"])
        told = metrics(int(message.content["config"]["server-round"]), partition)
        return Message(RecordDict({"metrics": MetricRecord(told)}), reply_to=message)

    federation.client_app = lambda: app
    return federation


def warnings(caplog, pattern: str) -> list[str]:
    found = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    return [text for text in found if pattern in text]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("name", "own_loop"),
    [*((name, False) for name in STRATEGIES), ("FedCurv", True), ("FedCurv around FedAdam", True)],
)
def test_an_evaluation_that_is_not_finite_leaves_the_mean_to_the_others(
    name, own_loop, bad, caplog
):
    def metrics(server_round, partition):
        loss = bad if partition == 1 and server_round > 1 else 1.0 + partition
        pair = [0.5, bad if partition == 1 else float(partition)]
        return {"num-examples": 1 + partition, "loss": loss, "pair": pair, "right": 3}

    federation = evaluating(metrics)
    result = federation.run(STRATEGIES[name](**EVERYONE), num_rounds=3, own_loop=own_loop)
    means = result.evaluate_metrics_clientapp
    # weights 1, 2, 3, 4 and losses 1, 2, 3, 4; without the second client 1, 3, 4
    assert means[1]["loss"] == pytest.approx(30 / 10)
    assert means[2]["loss"] == means[3]["loss"] == pytest.approx(26 / 8)
    assert means[1]["pair"] == pytest.approx([0.5, 18 / 8])
    assert means[3]["right"] == pytest.approx(3)
    (line,) = warnings(caplog, "'loss'")
    assert line.startswith("round 2: the evaluation's 'loss' is NaN or inf at node-1001")
    assert "as the others' mean" in line
    assert own_loop or "(client 1)" in line


@pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES)
def test_a_training_metric_that_is_not_finite_costs_no_reply_and_no_mean(make, caplog):
    def spoil(content: RecordDict) -> None:
        content["metrics"] = MetricRecord({**content["metrics"], "loss": math.nan})

    def other(content: RecordDict) -> None:
        content["metrics"] = MetricRecord({**content["metrics"], "loss": 7.0, "num-examples": 36})

    spoilt = {(r, 1): spoil for r in (1, 2)} | {(r, 2): other for r in (1, 2)}
    federation = Federation(num_nodes=3, spoil=spoilt)
    result = federation.run(make(**options()), num_rounds=2)
    assert set(federation.statuses(1).values()) == {"ok"}
    for server_round in (1, 2):
        mean = result.train_metrics_clientapp[server_round]["loss"]
        assert mean == pytest.approx((12 * 1.0 + 36 * 7.0) / 48)
    (line,) = warnings(caplog, "'loss'")
    assert line.startswith("round 1: the training's 'loss' is NaN or inf at client 1")
    # the client's own part is noted as it was sent
    assert math.isnan(federation.rounds[1].clients[1].metrics["loss"])


@pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES)
def test_a_mean_that_nobody_can_make_finite_is_told_once(make, caplog):
    federation = evaluating(lambda r, p: {"num-examples": 3, "loss": math.nan})
    result = federation.run(
        make(**EVERYONE),
        num_rounds=3,
        evaluate_fn=lambda r, arrays: MetricRecord({"error": math.inf if r > 1 else 1.0}),
    )
    assert math.isnan(result.evaluate_metrics_clientapp[3]["loss"])
    (line,) = warnings(caplog, "'loss'")
    assert line.startswith("round 1: 'loss' of evaluation on the clients is NaN or inf (nan)")
    (line,) = warnings(caplog, "'error'")
    assert line.startswith("round 2: 'error' of evaluation on the server is NaN or inf (inf)")


@pytest.mark.parametrize("make", [FedAvg, STRATEGIES["FedCurv"]], ids=["FedAvg", "FedCurv"])
def test_a_round_whose_evaluations_are_all_refused_does_not_end_a_run_that_may_stop_early(make):
    def metrics(server_round, partition):
        return {"num-examples": 0 if server_round == 1 else 3, "accuracy": server_round / 10}

    stops = EarlyStopping(target=0.3)
    federation = evaluating(metrics)
    result = federation.run(make(**EVERYONE), num_rounds=9, early_stopping=stops)
    assert sorted(result.evaluate_metrics_clientapp) == [2, 3]
    assert len(federation.rounds[1].refused_evaluations) == 4


@pytest.mark.parametrize(
    ("evaluations", "last"),
    [([math.nan, math.nan, 0.1, 0.2, 0.2, 0.2], 5), ([math.nan] * 5, 2), ([0.5, math.nan, 1.0], 2)],
)
def test_patience_begins_with_the_first_number(evaluations, last):
    federation = Federation(num_nodes=2)
    federation.run(
        FedAvg(**options()),
        num_rounds=len(evaluations) - 1,
        evaluate_fn=lambda r, arrays: MetricRecord({"accuracy": evaluations[r]}),
        early_stopping=EarlyStopping(patience=2),
    )
    assert federation.rounds[-1].server_round == last


def test_a_list_is_no_metric_to_stop_by():
    with pytest.raises(ValueError, match="one number for the metric 'accuracy', got a list"):
        Federation(num_nodes=2).run(
            FedAvg(**options()),
            evaluate_fn=lambda r, arrays: MetricRecord({"accuracy": [0.1, 0.2]}),
            early_stopping=EarlyStopping(patience=2),
        )
