"""An exception's text stays on the device."""

import re

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.common.constant import ErrorCode

from fedcurv.clients import ClientFailed, client_app, private_errors_mod
from fedcurv.clients.errors import SEND_ERRORS_VARIABLE
from fedcurv.simulations.runners.local import LocalGrid
from fedcurv.strategies.flower_private import task_identity

SECRET = "/wards/oncology/jane-doe.dcm"


def make_task(message: Message, context: Context):
    raise FileNotFoundError(SECRET)


def asked(message_type: str) -> Message:
    with task_identity(run_id=1, node_id=1):
        return Message(RecordDict(), dst_node_id=2, message_type=message_type)


def context_of(**node_config) -> Context:
    return Context(1, 2, {"client-id": "ward-3", **node_config}, RecordDict(), {})


def spoilt_mod(message, context, call_next):
    raise KeyError(SECRET)


def own_app() -> ClientApp:
    app = ClientApp(mods=[private_errors_mod])

    @app.query()
    def query(message: Message, context: Context) -> Message:
        raise PermissionError(SECRET)

    return app


CASES = {
    "training": (client_app(make_task), "train", "FileNotFoundError"),
    "evaluation": (client_app(make_task), "evaluate", "FileNotFoundError"),
    "a mod of the user's": (client_app(make_task, mods=[spoilt_mod]), "train", "KeyError"),
    "a query of the user's own app": (own_app(), "query", "PermissionError"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_server_learns_the_class_and_the_client_alone(case):
    app, message_type, of_class = CASES[case]
    with pytest.raises(
        ClientFailed, match=f"{of_class} in client ward-3; the device's own"
    ) as told:
        app(asked(message_type), context_of(**{"partition-id": 0, "num-partitions": 2}))
    assert SECRET not in str(told.value)
    assert SECRET in str(told.value.__cause__)  # which Flower writes into the device's own log


@pytest.mark.parametrize("case", CASES)
def test_the_devices_owner_may_let_the_text_be_sent(case, monkeypatch):
    app, message_type, of_class = CASES[case]
    for value in (True, "true", 1):
        with pytest.raises(Exception, match=SECRET) as told:
            app(asked(message_type), context_of(**{"send-errors": value}))
        assert type(told.value).__name__ == of_class
    for value in (False, "false", 0, ""):
        with pytest.raises(ClientFailed):
            app(asked(message_type), context_of(**{"send-errors": value}))
    monkeypatch.setenv(SEND_ERRORS_VARIABLE, "1")
    with pytest.raises(Exception, match=SECRET):
        app(asked(message_type), context_of())


def test_a_simulation_has_the_whole_traceback():
    grid = LocalGrid(client_app(make_task), 1)
    with task_identity(run_id=1, node_id=1):
        message = Message(RecordDict(), dst_node_id=1000, message_type="train")
    (reply,) = grid.send_and_receive([message])
    assert "raise FileNotFoundError(SECRET)" in reply.error.reason
    assert SECRET in reply.error.reason


def error_mod(message, context, call_next):
    return Message(Error(ErrorCode.MOD_FAILED_PRECONDITION, SECRET), reply_to=message)


def flowers_mod(message, context, call_next):
    return LocalDpMod(1.0, 1.0, 1.0, 0.1)(message, context, call_next)


@pytest.mark.parametrize("mod", [error_mod, flowers_mod])
def test_an_error_that_a_mod_returns_keeps_its_code_and_loses_its_text(mod, monkeypatch, caplog):
    app = client_app(make_task, mods=[mod])
    reply = app(asked("train"), context_of())
    assert reply.error.code == ErrorCode.MOD_FAILED_PRECONDITION
    assert re.fullmatch(
        r"error code 6 in client ward-3; the device's own log has the text .*", reply.error.reason
    )
    assert "a mod answers with error code 6: " in caplog.text
    monkeypatch.setenv(SEND_ERRORS_VARIABLE, "1")
    whole = app(asked("train"), context_of())
    assert whole.error.reason == SECRET if mod is error_mod else "LocalDpMod" in whole.error.reason


def test_a_client_that_does_not_answer_stays_silent():
    app = ClientApp(mods=[private_errors_mod])
    app.train()(lambda message, context: None)
    assert app(asked("train"), context_of()) is None
