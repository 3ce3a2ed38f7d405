"""The clients' side."""

import lightning as L
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from autoencoder.task import LitDigits, load_data

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    model = LitDigits()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    node = context.node_config
    loader = load_data(node["partition-id"], node["num-partitions"])

    trainer = L.Trainer(
        max_epochs=context.run_config["max-epochs"],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, loader)

    train_loss = trainer.callback_metrics["train_loss"].item()
    metrics = {"train_loss": train_loss, "num-examples": len(loader.dataset)}
    content = RecordDict(
        {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)}
    )
    return Message(content=content, reply_to=msg)
