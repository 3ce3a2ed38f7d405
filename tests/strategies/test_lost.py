"""Clients that a round did without are told, each once."""

import logging
import traceback

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedcurv.errors import error_in
from fedcurv.simulations.runners.local import LocalGrid
from fedcurv.strategies import FedCurv, start
from fedcurv.strategies.loop.lost import LostClients
from fedcurv.strategies.loop.rounds import ClientRecord, RoundRecord
from tests.federation import new_model, options, served_on


def record(server_round: int, **reasons: str) -> RoundRecord:
    """Return a round with a client of each status, by its reason."""
    return RoundRecord(
        server_round,
        tuple(ClientRecord(c, "failed", reason, {}, {}, {}) for c, reason in reasons.items()),
    )


def rounds_with(strategy, fails: dict[int, Exception], rounds: int = 2, phase: str = "train"):
    """Run rounds of three clients, of which some fail."""
    app = ClientApp()

    def answer(message: Message, context: Context, what: str) -> Message:
        partition = int(context.node_config["partition-id"])
        if what == phase and partition in fails:
            raise fails[partition]
        metrics = MetricRecord({"num-examples": 3, "loss": 1.0})
        content = RecordDict({"metrics": metrics})
        if what == "train":
            content["arrays"] = message.content["arrays"]
        return Message(content, reply_to=message)

    app.train()(lambda message, context: answer(message, context, "train"))
    app.evaluate()(lambda message, context: answer(message, context, "evaluate"))
    arrays = ArrayRecord(new_model().state_dict())
    records: list[RoundRecord] = []
    served_on(
        LocalGrid(app, 3),
        lambda grid: start(
            strategy,
            grid,
            arrays,
            num_rounds=rounds,
            train_config=ConfigRecord(),
            on_round=records.append,
        ),
    )
    return records


@pytest.mark.parametrize("make", [FedAvg, lambda **o: FedCurv(strength=1.0, **o)])
def test_a_client_that_fails_is_told_once_with_its_error(make, caplog) -> None:
    rounds_with(make(**options()), {1: ValueError("more than 1 value\nper channel")})
    lines = [r.getMessage() for r in caplog.records if "failed at" in r.getMessage()]
    assert lines == [
        "round 1: training failed at 1 of 3 clients (node-1001): ValueError: more than 1 value "
        "per channel"
    ]


def test_a_client_whose_evaluation_fails_is_told_and_recorded(caplog) -> None:
    strategy = FedAvg(**options(fraction_evaluate=1.0))
    records = rounds_with(strategy, {0: KeyError("test"), 2: KeyError("test")}, phase="evaluate")
    lines = [r.getMessage() for r in caplog.records if "failed at" in r.getMessage()]
    assert lines == [
        "round 1: evaluation failed at 2 clients (node-1000, node-1002): KeyError: 'test'"
    ]
    assert [error_in(text) for text in records[2].lost_evaluations.values()] == 2 * [
        "KeyError: 'test'"
    ]


def test_a_new_reason_and_a_new_client_are_told_and_the_same_are_not(caplog) -> None:
    tell = LostClients()
    with caplog.at_level(logging.WARNING):
        tell(record(1, a="first"))
        tell(record(2, a="first", b="first"))
        tell(record(3, a="second", b="first"))
    assert [r.getMessage().partition("failed at ")[2] for r in caplog.records] == [
        "1 of 1 clients (a): first",
        "1 of 2 clients (b): first",
        "1 of 2 clients (a): second",
    ]


def test_many_reasons_in_a_round_are_few_lines(caplog) -> None:
    LostClients()(record(1, **{f"c{n}": f"reason {n}" for n in range(50)}))
    assert len(caplog.records) == 4
    assert "at 47 clients more" in caplog.records[-1].getMessage()


def test_a_silent_client_is_told(caplog) -> None:
    silent = ClientRecord("kitchen", "missing", "no reply in time", {}, {}, {})
    LostClients()(RoundRecord(4, (silent,)))
    assert "round 4: training failed at 1 of 1 clients (kitchen): no reply in time" in caplog.text


@pytest.mark.parametrize(
    "error",
    [ValueError("one line"), RuntimeError("several\n\tMissing key(s)\n  indented"), KeyError("x")],
)
def test_the_error_at_the_end_of_a_traceback_is_one_line(error) -> None:
    try:
        try:
            raise OSError("cause")
        except OSError as cause:
            raise error from cause
    except Exception:
        text = traceback.format_exc()
    told = error_in(text)
    assert told == " ".join(f"{type(error).__name__}: {error}".split())
    assert error_in(f"round 1: the first said:\n{text}") == told
    assert error_in("no traceback\n at all") == "no traceback at all"
    assert len(error_in("x" * 9000)) < 600
