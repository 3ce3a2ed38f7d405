"""The clients' side."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from numpyclient.task import DigitsClient

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    node, run = context.node_config, context.run_config
    client = DigitsClient(node["partition-id"], node["num-partitions"], run["local-epochs"])
    parameters = msg.content["arrays"].to_numpy_ndarrays()
    weights, num_examples, metrics = client.fit(parameters, msg.content["config"])
    metrics = MetricRecord({"num-examples": num_examples, **metrics})
    content = RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics})
    return Message(content=content, reply_to=msg)
