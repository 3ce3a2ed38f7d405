import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedcurv.simulations.runners.local import LocalGrid, run_local
from fedcurv.strategies.flower_private import task_identity


def talk(handler, num_nodes=2, contents=None, **options):
    """Send a message to each node and return the replies."""
    app, replies = ClientApp(), []
    app.train()(handler)
    server_app = ServerApp()

    @server_app.main()
    def main(grid, context):
        for content in contents or [RecordDict()]:
            messages = [Message(content, node_id, "train") for node_id in grid.get_node_ids()]
            replies.append(list(grid.send_and_receive(messages, **options)))

    run_local(server_app, app, num_nodes)
    return replies


def test_nodes_get_their_partition_and_keep_their_own_state():
    def handler(message, context):
        seen = context.state.setdefault("seen", ConfigRecord({"times": 0}))
        seen["times"] += 1
        answer = ConfigRecord({**context.node_config, "times": seen["times"]})
        return Message(RecordDict({"answer": answer}), reply_to=message)

    replies = talk(handler, 3, [RecordDict(), RecordDict()])
    assert [dict(r.content["answer"]) for r in replies[1]] == [
        {"partition-id": i, "num-partitions": 3, "send-errors": True, "times": 2} for i in range(3)
    ]


def test_no_side_can_change_what_the_other_holds():
    kept = []

    def handler(message, context):
        message.content["sent"]["x"] = 99.0
        answer = RecordDict({"answer": ConfigRecord({"y": 1.0})})
        kept.append(answer)
        return Message(answer, reply_to=message)

    sent = RecordDict({"sent": ConfigRecord({"x": 1.0})})
    ((first, _),) = talk(handler, contents=[sent])
    assert sent["sent"]["x"] == 1.0
    first.content["answer"]["y"] = 5.0
    assert kept[0]["answer"]["y"] == 1.0


def test_arrays_arrive_bit_for_bit():
    tensor = torch.randn(5, 3)

    def handler(message, context):
        assert torch.equal(message.content["a"].to_torch_state_dict()["t"], tensor)
        return Message(message.content, reply_to=message)

    ((reply, _),) = talk(handler, contents=[RecordDict({"a": ArrayRecord({"t": tensor})})])
    assert torch.equal(reply.content["a"].to_torch_state_dict()["t"], tensor)


def test_an_exception_is_an_error_reply_with_traceback_and_the_old_state():
    def handler(message, context):
        context.state["half"] = ConfigRecord({"written": True})
        if context.node_config["partition-id"] == 1 and "whole" in context.state:
            raise KeyError("unplugged")
        context.state["whole"] = ConfigRecord({"ok": True})
        return Message(
            RecordDict({"state": ConfigRecord({"n": len(context.state)})}), reply_to=message
        )

    _, second = talk(handler, contents=[RecordDict(), RecordDict()])
    assert second[0].has_content()
    assert second[1].has_error()
    assert second[1].error.code == 2
    assert "KeyError: 'unplugged'" in second[1].error.reason
    assert second[1].metadata.src_node_id == 1001


def test_replies_name_the_message_that_they_answer():
    app = ClientApp()
    seen = []

    @app.train()
    def train(message, context):
        seen.append(message.metadata.message_id)
        return Message(RecordDict(), reply_to=message)

    grid = LocalGrid(app, 2)
    with task_identity(run_id=1, node_id=1):
        messages = [Message(RecordDict(), node_id, "train") for node_id in grid.get_node_ids()]
        ids = grid.push_messages(messages)
        replies = grid.pull_messages(ids)
    assert ids == seen == [m.metadata.message_id for m in messages]
    assert [r.metadata.reply_to_message_id for r in replies] == ids
    assert grid.pull_messages(ids) == []


def test_messages_that_no_time_is_left_for_get_no_reply():
    ((*replies,),) = talk(lambda m, c: Message(RecordDict(), reply_to=m), timeout=0.0)
    assert replies == []


def test_what_the_server_raises_is_raised():
    server_app = ServerApp()

    @server_app.main()
    def main(grid, context):
        raise LookupError("no data on the server")

    with pytest.raises(LookupError, match="no data on the server"):
        run_local(server_app, ClientApp(), 2)
    with pytest.raises(RuntimeError):  # the identity is gone
        Message(RecordDict(), 1, "train")


def test_num_nodes_must_be_positive():
    with pytest.raises(ValueError, match="num_nodes must be >= 1, got 0"):
        run_local(ServerApp(), ClientApp(), 0)
