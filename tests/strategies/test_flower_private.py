"""If one of these fails after an update of Flower, one module is to be mended."""

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore import differential_privacy
from flwr.supercore.differential_privacy import adaptive_clip_inputs_inplace, clip_inputs_inplace

from fedcurv.strategies.flower_private import (
    CLIENT_APP_RAISED_EXCEPTION,
    MOD_FAILED_PRECONDITION,
    NORM_BIT,
    empty_run,
    let_unmoved_models_be_clipped,
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


@pytest.mark.parametrize("clip", [clip_inputs_inplace, adaptive_clip_inputs_inplace])
def test_an_update_of_zero_is_clipped_to_zero_and_others_as_before(clip):
    let_unmoved_models_be_clipped()
    zero, small, large = [np.zeros(2), np.zeros((2, 3))], [np.array([0.3])], [np.array([3.0, 4.0])]
    tiny = [np.full(4, 1e-30, np.float32)]  # whose squares are 0
    told = [clip(update, 1.0) for update in (zero, tiny, small, large)]
    assert not any(told[:3])
    assert all((array == 0).all() for array in zero)
    assert (tiny[0] == np.float32(1e-30)).all()
    assert small[0] == 0.3
    np.testing.assert_allclose(large[0], [0.6, 0.8])


def test_flower_still_divides_by_a_norm_of_zero():
    """Where it does not, there is nothing left to mend."""
    let_unmoved_models_be_clipped()
    guarded = differential_privacy.get_norm
    try:
        differential_privacy.get_norm = guarded.__wrapped__
        with pytest.raises(ZeroDivisionError):
            clip_inputs_inplace([np.zeros(2)], 1.0)
    finally:
        differential_privacy.get_norm = guarded


def test_flower_leaves_what_has_no_dimension_unclipped():
    """Where it does not, such models need no longer be refused."""
    arrays = [np.array(30.0), np.array([40.0])]
    differential_privacy.compute_clip_model_update(arrays, [np.array(0.0), np.array([0.0])], 1.0)
    np.testing.assert_allclose(arrays[1], [0.8])
    assert arrays[0] == 30.0


def test_the_bit_of_adaptive_clipping_has_its_name():
    assert NORM_BIT == differential_privacy.KEY_NORM_BIT
