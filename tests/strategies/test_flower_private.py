"""If one of these fails after an update of Flower, one module is to be mended."""

import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedcurv.strategies.flower_private import (
    CLIENT_APP_RAISED_EXCEPTION,
    MOD_FAILED_PRECONDITION,
    empty_run,
    set_message_id,
    task_identity,
)


def test_messages_can_be_made_and_named_inside_the_identity_only():
    with task_identity(run_id=11, node_id=1):
        message = Message(RecordDict(), dst_node_id=2, message_type="train")
    set_message_id(message, "abc")
    assert message.metadata.run_id == 11
    assert Message(RecordDict(), reply_to=message).metadata.reply_to_message_id == "abc"
    with pytest.raises(RuntimeError):
        Message(RecordDict(), dst_node_id=2, message_type="train")


def test_error_codes_are_flowers():
    assert (CLIENT_APP_RAISED_EXCEPTION, MOD_FAILED_PRECONDITION) == (2, 6)


def test_an_empty_run_has_its_id():
    assert empty_run(7).run_id == 7


def test_the_grid_is_still_the_abstract_class_that_ours_implement():
    assert Grid.__abstractmethods__ == {
        "set_run",
        "run",
        "create_message",
        "get_node_ids",
        "push_messages",
        "pull_messages",
        "send_and_receive",
    }
