"""The clients' side."""

import json

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from opacus import PrivacyEngine

from dpsgd.task import Net, load_data
from dpsgd.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    torch.manual_seed(msg.content["config"]["server-round"])
    net = Net()
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    node = context.node_config
    trainloader = load_data(node["partition-id"], node["num-partitions"])

    privacy = PrivacyEngine()
    if "spent" in context.state:  # earlier rounds count too
        history = json.loads(context.state["spent"]["history"])
        privacy.accountant.history = [tuple(steps) for steps in history]
    train_loss = train_fn(net, trainloader, privacy, context.run_config)
    content = RecordDict({"arrays": ArrayRecord(net.state_dict())})

    history = json.dumps(privacy.accountant.history)
    context.state["spent"] = ConfigRecord({"history": history})
    metrics = {
        "train_loss": train_loss,
        "epsilon": float(privacy.get_epsilon(context.run_config["delta"])),
        "num-examples": len(trainloader.dataset),
    }
    content["metrics"] = MetricRecord(metrics)
    return Message(content=content, reply_to=msg)
