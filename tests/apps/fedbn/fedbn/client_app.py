"""The clients' side."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedbn.task import Net, load_data, of_batch_norm
from fedbn.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    net = Net()
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict(), strict=False)
    if "batch-norm" in context.state:
        mine = context.state["batch-norm"].to_torch_state_dict()
        net.load_state_dict(mine, strict=False)
    node = context.node_config
    trainloader = load_data(node["partition-id"], node["num-partitions"])
    train_loss = train_fn(
        net, trainloader, context.run_config["local-epochs"], context.run_config["learning-rate"]
    )
    context.state["batch-norm"] = ArrayRecord(of_batch_norm(net.state_dict(), True))
    shared = of_batch_norm(net.state_dict(), False)
    metrics = {"train_loss": train_loss, "num-examples": len(trainloader.dataset)}
    content = RecordDict({"arrays": ArrayRecord(shared), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)
