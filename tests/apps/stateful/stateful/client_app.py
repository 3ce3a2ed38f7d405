"""The clients' side."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import arrays_size_mod, message_size_mod

from stateful.task import Net, load_data
from stateful.task import train as train_fn


def count_rounds(msg: Message, context: Context, call_next) -> Message:
    """Add to the reply's metrics how many rounds this client has taken part in."""
    reply = call_next(msg, context)
    before = context.state["counts"]["rounds"] if "counts" in context.state else 0
    context.state["counts"] = MetricRecord({"rounds": before + 1})
    reply.content["metrics"]["rounds"] = before + 1
    return reply


app = ClientApp(mods=[message_size_mod, arrays_size_mod, count_rounds])


@app.train()
def train(msg: Message, context: Context) -> Message:
    net = Net()
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    node = context.node_config
    trainloader = load_data(node["partition-id"], node["num-partitions"])
    remembered = context.state.get("momentum", ArrayRecord())
    momentum = remembered.to_torch_state_dict()
    train_loss = train_fn(net, trainloader, momentum)
    context.state["momentum"] = ArrayRecord(momentum)
    metrics = {"train_loss": train_loss, "num-examples": len(trainloader.dataset)}
    content = RecordDict(
        {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord(metrics)}
    )
    return Message(content=content, reply_to=msg)
